"""Reading JSON lines, Parquet and packed files into batches, against json.loads line by line into the same batches.

    python benchmarks/read_sources.py TEXT.jsonl.gz [MORE.jsonl.gz ...]

Processor time of one core, best of the rounds, the ways taking turns; MB are of UTF-8 text. json.loads is given its
best case: plain lines, long texts, gathered into Arrow arrays of the same size, nothing checked. `short` is the same
text cut into documents of 600 characters, with six more fields, as web corpora have them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from xmodel.console import table
from xmodel.corpus import sources
from xmodel.corpus.batches import batched
from xmodel.files import write_json
from xmodel.recipe.settings import Source


def plainly(path: Path) -> Iterator[pa.RecordBatch]:
    """What a person writes first."""

    def documents() -> Iterator[tuple[str, str, str | None]]:
        with open(path, encoding="utf-8") as stream:
            for line in stream:
                record = json.loads(line)
                yield record["id"], record["text"], None

    return batched(documents())


def measure(path: Path, folder: Path, rounds: int, short: bool) -> dict[str, Any]:
    """MB/s of each way of reading a text."""
    texts = gzip.decompress(path.read_bytes())
    records = [json.loads(line) for line in texts.splitlines()]
    if short:
        pieces = (record["text"][at : at + 600] for record in records for at in range(0, len(record["text"]), 600))
        more = {"url": "https://example.org/" + "a" * 60, "dump": "CC-MAIN-2024-10", "language": "en", "score": 3.14159}
        records = [{"text": piece, **more, "language_score": 0.97, "token_count": 150} for piece in pieces]
    records = records * max(1, 40_000_000 // len(texts))
    records = [{**record, "id": f"<urn:uuid:{n:036}>"} for n, record in enumerate(records)]
    data = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    megabytes = sum(len(record["text"].encode()) for record in records) / 1e6
    (folder / "plain.jsonl").write_bytes(data)
    (folder / "packed.jsonl.gz").write_bytes(gzip.compress(data, 6))
    (folder / "packed.jsonl.zst").write_bytes(pa.Codec("zstd").compress(data, asbytes=True))
    pq.write_table(pa.Table.from_pylist(records), folder / "rows.parquet", compression="zstd")

    def ours(name: str) -> Callable[[], int]:
        source = Source(reader="parquet" if name.endswith("parquet") else "jsonl", paths=[str(folder / name)])
        return lambda: sum(len(batch) for batch in sources.read(source, "source", seed=0))

    ways: dict[str, Callable[[], int]] = {
        "json.loads, plain": lambda: sum(len(batch) for batch in plainly(folder / "plain.jsonl")),
        "ours, plain": ours("plain.jsonl"),
        "ours, gzip": ours("packed.jsonl.gz"),
        "ours, zstd": ours("packed.jsonl.zst"),
        "ours, Parquet": ours("rows.parquet"),
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.process_time()
            assert way() == len(records)
            best[name] = min(best[name], time.process_time() - start)
    speeds = {name: round(megabytes / seconds, 1) for name, seconds in best.items()}
    return {"megabytes": round(megabytes, 1), "documents": len(records), "MB_per_second": speeds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="JSON lines packed with gzip, with the field text")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    results = {}
    for path in options.files:
        for short in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                name = path.name.split(".")[0] + (", short" if short else "")
                results[name] = measure(path, Path(folder), options.rounds, short)
    rows = [
        [name, way, str(speed), f"{speed / found['MB_per_second']['json.loads, plain']:.2f}"]
        for name, found in results.items()
        for way, speed in found["MB_per_second"].items()
    ]
    print(table(["text", "way", "MB/s", "ratio"], rows))
    write_json(Path(__file__).parent / "results" / "read-sources.json", results)


if __name__ == "__main__":
    main()
