"""The whole corpus stage, reading and writing included, beside a comparable datatrove pipeline on the same text.

    python -m venv /tmp/datatrove
    /tmp/datatrove/bin/pip install datatrove==0.10.1 spacy jieba nltk orjson tokenizers 'xxhash<4'
    python benchmarks/corpus_stage.py --peer /tmp/datatrove/bin/python
    python benchmarks/corpus_stage.py --peer ... --text en=pages-en.jsonl.gz --text zh=pages-zh.jsonl.gz

datatrove reads JSON lines, filters by Gopher's quality and repetition rules, deduplicates by MinHash and writes JSON
lines. Here the same lines are cleaned line by line, filtered by all the rules of a recipe's defaults, judged by
perplexity under a 5-gram Kneser-Ney model (trained first, on a tenth of the text), searched for exact and near
duplicates, and written to Parquet. Both sides run as commands of their own, so what it takes to start them counts: a
second or two, which weighs on the faster side. Its rate is therefore also measured on a larger text: documents of as
many characters, put together from paragraphs drawn at random, so that they are no near duplicates.

A rate is megabytes of UTF-8 text per second: of processor time, which other people's work on the machine does not
change, or of wall-clock time.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xmodel.console import log, table
from xmodel.corpus.workers import cores
from xmodel.files import write_json

FILES = 4  # that a text is spread over, so that several workers have something to do
PEER = Path(__file__).with_name("corpus_stage_peer.py")


def documents(language: str, path: str | None) -> Iterator[str]:
    """Texts: of the file, or of the sandbox."""
    if path is None:
        from xmodel.corpus import sandbox

        yield from (made.text for made in sandbox.documents(language, 10**9, seed=0))
        return
    with gzip.open(path, "rt") if path.endswith(".gz") else open(path, encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)["text"]


def mixed(texts: list[str], seed: int) -> Iterator[str]:
    """As many texts, about as long, made of paragraphs (or else lines) of these in another order."""
    draw = random.Random(seed)
    paragraphs = [part for text in texts for part in text.split("\n\n" if text.count("\n\n") > 2 else "\n") if part]
    for text in texts:
        parts, size = [], 0
        while size < len(text):
            parts.append(draw.choice(paragraphs))
            size += len(parts[-1]) + 2
        yield "\n\n".join(parts)


def write_text(folder: Path, texts: list[str], copies: int) -> float:
    """Write the texts as JSON lines, or `copies` times as much that is made of them; returns megabytes of text."""
    folder.mkdir(parents=True)
    size = 0
    for copy in range(copies):
        made = texts if copies == 1 else list(mixed(texts, copy))
        for number in range(FILES):
            with open(folder / f"{copy:04d}-{number}.jsonl", "w", encoding="utf-8") as stream:
                for index, text in enumerate(made[number::FILES]):
                    size += len(text.encode())
                    record = {"id": f"{copy}-{number}-{index}", "text": text}
                    stream.write(json.dumps(record, ensure_ascii=False) + "\n")
    return size / 1e6


def timed(command: list[str], **environment: str) -> tuple[float, float]:
    """Processor seconds (of the command and its children) and wall-clock seconds."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent, time.perf_counter() - started


def ours(folder: Path, text: Path, reference: Path, language: str, workers: int) -> tuple[float, float]:
    """Time `xmodel corpus` on a folder of JSON lines."""
    source = {"name": "text", "paths": [str(text)], "language": language, "weight": 1.0}
    good = {"name": "good", "paths": [str(reference)], "language": language}
    recipe = {
        "name": "bench",
        "corpus": {"sources": [source], "quality": {"reference": [good]}},
        "model": {"preset": "nano"},
    }
    folder.mkdir()
    (folder / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    command = [sys.executable, "-m", "xmodel", "corpus", str(folder / "recipe.yaml"), f"corpus.workers={workers}"]
    return timed([*command, "--dir", str(folder / "run")])


def main() -> None:
    """Measure, print the table, write results/corpus_stage.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="Python of a venv that has datatrove (default: measure this side only)")
    parser.add_argument("--text", action="append", default=[], metavar="LANGUAGE=FILE", help="JSON lines, also .gz")
    parser.add_argument("--megabytes", type=float, default=8, help="text that both sides get")
    parser.add_argument("--copies", type=int, default=20, help="times that text, for the rate without the start")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    given = dict(pair.split("=", 1) for pair in arguments.text)
    rows: list[dict[str, Any]] = []
    work = Path(tempfile.mkdtemp(prefix="corpus-stage-"))
    for language in ("en", "zh"):
        texts: list[str] = []
        size = 0
        for text in documents(language, given.get(language)):
            texts.append(text)
            size += len(text.encode())
            if size > arguments.megabytes * 1e6:
                break
        small, large = work / f"{language}-small", work / f"{language}-large"
        megabytes, many = write_text(small, texts, 1), write_text(large, texts, arguments.copies)
        reference = work / f"{language}-reference"
        write_text(reference, texts[::10], 1)
        ours(work / f"{language}-warm", small, reference, language, 1)  # compiles what is not in the cache
        for workers in arguments.workers:
            name = f"{language}-{workers}"
            cells = {
                "xmodel": (megabytes, *ours(work / f"{name}-small", small, reference, language, workers)),
                "xmodel, large": (many, *ours(work / f"{name}-large", large, reference, language, workers)),
            }
            if arguments.peer:
                log(f"{language}, {workers} workers: datatrove on {megabytes:.0f} MB")
                command = [arguments.peer, str(PEER), str(small), str(work / f"{name}-peer"), language, str(workers)]
                cells["datatrove"] = (megabytes, *timed(command))
            for who, (amount, spent, passed) in cells.items():
                row = {"text": language, "workers": workers, "who": who, "megabytes": round(amount, 1)}
                row |= {"cpu_seconds": round(spent, 2), "seconds": round(passed, 2)}
                row |= {"mb_per_cpu_second": round(amount / spent, 3), "mb_per_second": round(amount / passed, 3)}
                if "datatrove" in cells:
                    size, cpu, wall = cells["datatrove"]
                    row["cpu_ratio"] = round(amount / spent / (size / cpu), 1)
                    row["ratio"] = round(amount / passed / (size / wall), 1)
                rows.append(row)
            write_json(Path(__file__).parent / "results" / "corpus_stage.json", facts(given, rows))
    shutil.rmtree(work)
    print(table(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))


def facts(given: dict[str, str], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The results with what they were measured on."""
    texts = {language: Path(given[language]).name if language in given else "sandbox" for language in ("en", "zh")}
    return {"machine": platform.machine(), "cores": cores(), "python": platform.python_version(), "text": texts} | {
        "rows": rows
    }


if __name__ == "__main__":
    main()
