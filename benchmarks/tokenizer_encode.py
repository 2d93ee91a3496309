"""Text to ids: our kernel, SentencePiece and Hugging Face tokenizers with the same vocabulary; and the tokens stage.

    python benchmarks/tokenizer_encode.py TEXT.jsonl.gz [MORE.jsonl.gz ...] --tokenizer RUN/tokenizer

`--tokenizer` is what `xmodel tokenizer` leaves: tokenizer.model for SentencePiece and tokenizer.json for tokenizers. A
document whose characters are Han ideographs by a fifth or more counts as Chinese. The ways take turns within a round;
MB are of UTF-8 text; MB/s per core are of processor time, the best of the rounds, and a ratio is the median over rounds
of the ratio within the round. With two threads MB/s are of the clock, so a machine that does other work shows in them;
what a second thread gains is therefore measured by turns as well, on all of the text, with the processor time it costs.
Every way gets what suits it best: an Arrow array, or a list of Python strings. `encode_batch_fast` is tokenizers' own
way without offsets. Our kernel remembers words; it begins every round without any. The tokens stage reads Parquet
(zstd, row groups as the corpus stage writes them) and leaves shards with checksums on the disk.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xmodel.console import table
from xmodel.files import write_json
from xmodel.recipe.settings import Tokens
from xmodel.run import hardware, versions
from xmodel.tokenizer.codec import Tokenizer
from xmodel.tokens.write import write_tokens

HAN = re.compile("[\u3400-\u9fff]")
OURS, STRINGS, PIECE, BATCH, FAST = (
    "xmodel, Arrow to array",
    "xmodel, list of str to arrays",
    "SentencePiece encode, numpy",
    "tokenizers encode_batch",
    "tokenizers encode_batch_fast",
)


def read(paths: list[Path], megabytes: float) -> dict[str, list[str]]:
    """Documents of each language, and of both by turns, up to about `megabytes` of each."""
    texts = []
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            texts += [json.loads(line)["text"] for line in stream]
    random.Random(0).shuffle(texts)
    parts: dict[str, list[str]] = {"en": [], "zh": [], "mixed": []}
    sizes = dict.fromkeys(parts, 0.0)
    for text in texts:
        size = len(text.encode()) / 1e6
        for name in ("zh" if len(HAN.findall(text)) > 0.2 * len(text) else "en", "mixed"):
            if sizes[name] < megabytes:
                parts[name].append(text)
                sizes[name] += size
    return {name: part for name, part in parts.items() if part}


def ways(folder: Path, texts: list[str], threads: int) -> dict[str, Callable[[], Any]]:
    """What each library does with the texts."""
    import sentencepiece
    import tokenizers

    ours = Tokenizer.load(folder)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    column = pa.array(texts)
    ends = np.cumsum([0, *(len(text.encode()) for text in texts)])
    rows = np.searchsorted(ends, np.linspace(0, ends[-1], threads * 4 + 1)).tolist()
    slices = [column[first:last] for first, last in pairwise(rows)]

    def in_new_threads(function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
        """So that our kernel knows no word from an earlier round."""
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(function, items))

    return {
        OURS: lambda: in_new_threads(ours.encode_arrow, slices),
        STRINGS: lambda: in_new_threads(lambda batch: ours.encode_batch(batch, threads), [texts])[0],
        PIECE: lambda: processor.encode(texts, return_type="numpy", num_threads=threads),
        BATCH: lambda: theirs.encode_batch(texts, add_special_tokens=False),
        FAST: lambda: theirs.encode_batch_fast(texts, add_special_tokens=False),
    }


def same_ids(folder: Path, texts: list[str]) -> dict[str, float]:
    """Share of the documents that get the same ids as from our kernel."""
    every = ways(folder, texts, 1)
    ours = every[STRINGS]()
    theirs = {PIECE: every[PIECE](), BATCH: [found.ids for found in every[BATCH]()]}
    return {
        name: sum(np.array_equal(a, b) for a, b in zip(ours, found, strict=True)) / len(texts)
        for name, found in theirs.items()
    }


def rates(folder: Path, parts: dict[str, list[str]], rounds: int, threads: int) -> list[dict[str, Any]]:
    """MB/s of every way, for every part of the text."""
    rows = []
    for part, texts in parts.items():
        size = sum(len(text.encode()) for text in texts) / 1e6
        seconds: dict[str, list[tuple[float, float]]] = {}
        every = ways(folder, texts, threads)
        for turn in range(rounds + 1):
            for name, way in every.items():
                started, processor = time.perf_counter(), time.process_time()
                way()
                took = time.process_time() - processor, time.perf_counter() - started
                if turn:  # the first warms up
                    seconds.setdefault(name, []).append(took)
        for name, taken in seconds.items():
            at = 0 if threads == 1 else 1
            ratios = [peer[at] / own[at] for own, peer in zip(taken, seconds[BATCH], strict=True)]
            rows.append(
                {
                    "text": part,
                    "MB": round(size, 2),
                    "way": name,
                    "threads": threads,
                    "MB_per_core_second": round(size / min(processor for processor, _ in taken), 2),
                    "MB_per_second": round(size / min(clock for _, clock in taken), 2),
                    "times_encode_batch": round(statistics.median(ratios), 2),
                }
            )
    return rows


def scaling(work: Callable[[int], Any], size: float, rounds: int) -> dict[str, Any]:
    """What a second thread gains: one and two take turns, so that what else the machine does meets both alike.

    Args:
        work: does the work with so many threads.
        size: of the text, in MB.
    """
    seconds: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for turn in range(rounds + 1):
        for threads, taken in seconds.items():
            started, processor = time.perf_counter(), time.process_time()
            work(threads)
            took = time.process_time() - processor, time.perf_counter() - started
            if turn:  # the first warms up
                taken.append(took)
    clock = [one[1] / two[1] for one, two in zip(*seconds.values(), strict=True)]
    cost = [two[0] / one[0] for one, two in zip(*seconds.values(), strict=True)]
    rates = {
        f"{label}_with_{threads}": round(size / min(took[at] for took in taken), 2)
        for threads, taken in seconds.items()
        for at, label in enumerate(("MB_per_core_second", "MB_per_second"))
    }
    return rates | {
        "MB": round(size, 1),
        "gain_of_the_clock": round(statistics.median(clock), 2),
        "gain_range": [round(min(clock), 2), round(max(clock), 2)],
        "processor_time_ratio": round(statistics.median(cost), 2),
    }


def encoding(folder: Path, paths: list[Path], rounds: int) -> dict[str, Any]:
    """How our kernel gains from a second thread, on all of the text."""
    texts = read(paths, 1e9)["mixed"]
    made = {threads: ways(folder, texts, threads)[OURS] for threads in (1, 2)}
    return scaling(lambda threads: made[threads](), sum(len(text.encode()) for text in texts) / 1e6, rounds)


def stage(folder: Path, paths: list[Path], rounds: int) -> dict[str, Any]:
    """The tokens stage from Parquet to shards, on all of the text; and what a second thread gains."""
    texts = read(paths, 1e9)["mixed"]
    tokenizer = Tokenizer.load(folder)
    tokenizer.encode("")
    with tempfile.TemporaryDirectory() as name:
        place, number = Path(name), count()
        (place / "corpus/train").mkdir(parents=True)
        column = pa.table({"text": texts})
        rows = max(1, len(texts) * (16 << 20) // column.nbytes)
        options: dict[str, Any] = {"compression": "zstd", "use_dictionary": False, "row_group_size": rows}
        pq.write_table(column, place / "corpus/train/mixed.parquet", **options)

        def work(threads: int) -> None:
            write_tokens(place / "corpus", tokenizer, Tokens(workers=threads), place / f"tokens-{next(number)}")

        return scaling(work, sum(len(text.encode()) for text in texts) / 1e6, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, nargs="+", help="gzip JSON lines with a field `text`")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of tokenizer.model and tokenizer.json")
    parser.add_argument("--megabytes", type=float, default=4, help="of each language")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)  # what a child process measures
    arguments = parser.parse_args()
    parts = read(arguments.text, arguments.megabytes)
    if arguments.threads:
        print(json.dumps(rates(arguments.tokenizer, parts, arguments.rounds, arguments.threads)))
        return
    rows = []
    for threads in (1, 2):  # tokenizers asks the environment once, when a process begins
        environment = os.environ | {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}
        command = [sys.executable, *sys.argv, "--threads", str(threads)]
        rows += json.loads(
            subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        )
    print(
        table(
            ["text", "way", "threads", "MB/s per core", "MB/s", "× encode_batch"],
            [
                [
                    row["text"], row["way"], row["threads"], f"{row['MB_per_core_second']:.1f}",
                    f"{row['MB_per_second']:.1f}", f"{row['times_encode_batch']:.1f}",
                ]
                for row in rows
            ],
        )
    )  # fmt: skip
    equal = {part: same_ids(arguments.tokenizer, texts) for part, texts in parts.items()}
    gains = {
        "encode_scaling": encoding(arguments.tokenizer, arguments.text, arguments.rounds),
        "tokens_stage": stage(arguments.tokenizer, arguments.text, arguments.rounds),
    }
    for name, found in gains.items():
        print(name, found)
    print("documents with the same ids as ours:", equal)
    result = {
        "vocab_size": Tokenizer.load(arguments.tokenizer).vocab_size,
        "versions": versions(),
        "hardware": hardware(),
        "rounds": arguments.rounds,
        "encode": rows,
        "same_ids_as_ours": equal,
        **gains,
    }
    write_json(Path(__file__).parent / "results" / "tokenizer_encode.json", result)


if __name__ == "__main__":
    main()
