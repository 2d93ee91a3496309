"""Decontamination: how fast text is searched for benchmark items, and how long a shared run of words must be.

    python benchmarks/decontaminate.py --benchmarks FOLDER TEXT.jsonl.gz [MORE.jsonl.gz ...]

Speed: MB of UTF-8 text a second on one core (processor time, best of the rounds) for the n-gram search, for the search
with folding, and for sets of the same 13-grams in plain Python, which is what common tools do.

Length: each text's documents are taken for "items" of each other: of `--items` runs of 40 words (or 80 characters), cut
from documents spread over the text, the share that has a run of n words (characters) in common with another document.
What documents of one collection share by quoting each other is in it, so the figures are upper bounds for chance; what
matters is how they fall with n.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np

from xmodel.console import table
from xmodel.corpus.batches import raw_batch
from xmodel.corpus.benchmarks import load_benchmarks
from xmodel.corpus.decontaminate import Held
from xmodel.corpus.folding import fold, fold_texts
from xmodel.corpus.ngrams import search
from xmodel.files import write_json

UNIT = re.compile(r"[\u3400-\u9fff]|[a-z0-9]+")
LENGTHS = {"en": (8, 10, 13, 16), "zh": (10, 13, 16, 20, 26, 32)}


def texts_of(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in gzip.open(path)]


def speed(texts: list[str], held: Held, plain: set[tuple[str, ...]], rounds: int) -> dict[str, float]:
    batch = raw_batch([str(n) for n in range(len(texts))], texts)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    wanted = np.ones(len(batch), bool)
    assert held.ngrams is not None
    best = {"search": float("inf"), "fold and search": float("inf"), "Python sets of 13-grams": float("inf")}
    folded = fold(batch["text"])
    few = texts[:: max(1, len(texts) // 50)]
    share = sum(len(text.encode()) for text in few) / 1e6 / megabytes
    search(folded, wanted, held.ngrams)
    for _ in range(rounds):
        start = time.process_time()
        search(folded, wanted, held.ngrams)
        best["search"] = min(best["search"], time.process_time() - start)
        start = time.process_time()
        search(fold(batch["text"]), wanted, held.ngrams)
        best["fold and search"] = min(best["fold and search"], time.process_time() - start)
        start = time.process_time()
        for text in few:
            units = UNIT.findall(text.lower())
            any(tuple(units[at : at + 13]) in plain for at in range(len(units) - 12))
        seconds = (time.process_time() - start) / share
        best["Python sets of 13-grams"] = min(best["Python sets of 13-grams"], seconds)
    return {name: round(megabytes / seconds, 2) for name, seconds in best.items()}


def chance(texts: list[str], language: str, items: int) -> dict[int, float]:
    """Share of items that share a run of n units with another document."""
    documents = [UNIT.findall(folded.decode()) for folded in fold_texts(texts)]
    width = 40 if language == "en" else 80
    long = [n for n, units in enumerate(documents) if len(units) > 3 * width]
    chosen = [long[at * len(long) // items] for at in range(items)] if len(long) > items else long
    found: dict[int, float] = {}
    for length in LENGTHS[language]:
        owners: dict[int, set[int]] = {}
        for number in chosen:
            middle = len(documents[number]) // 2
            item = documents[number][middle : middle + width]
            for at in range(width - length + 1):
                owners.setdefault(hash(tuple(item[at : at + length])), set()).add(number)
        met: set[int] = set()
        for number, units in enumerate(documents):
            for at in range(len(units) - length + 1):
                for owner in owners.get(hash(tuple(units[at : at + length])), ()):
                    if owner != number:
                        met.add(owner)
        found[length] = round(len(met) / len(chosen), 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="JSON lines packed with gzip, with the field text")
    parser.add_argument("--benchmarks", required=True, help="folder of benchmarks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--items", type=int, default=300)
    options = parser.parse_args()
    benchmarks = load_benchmarks([options.benchmarks])
    held = Held([], benchmarks)
    plain: set[tuple[str, ...]] = set()
    for benchmark in benchmarks:
        for text in (text for item in benchmark.items for text in item):
            units = UNIT.findall(text.lower())
            plain |= {tuple(units[at : at + 13]) for at in range(len(units) - 12)}
    results: dict[str, Any] = {"ngrams": len(held.ngrams.keys_E) if held.ngrams else 0, "texts": {}}
    for path in options.files:
        texts = texts_of(path)
        sample = "".join(texts[:100])
        language = "zh" if len(re.findall(r"[\u3400-\u9fff]", sample)) > len(sample) / 8 else "en"
        results["texts"][path.name.split(".")[0]] = {
            "MB_per_second": speed(texts, held, plain, options.rounds),
            "share_met_elsewhere": chance(texts, language, options.items),
        }
    rows = [
        [name, way, f"{value:,.1f}"]
        for name, found in results["texts"].items()
        for way, value in found["MB_per_second"].items()
    ]
    print(table(["text", "way", "MB/s"], rows))
    rows = [
        [name, str(n), f"{value:.1%}"]
        for name, found in results["texts"].items()
        for n, value in found["share_met_elsewhere"].items()
    ]
    print(table(["text", "units in a row", "items met in another document"], rows))
    write_json(Path(__file__).parent / "results" / "decontaminate.json", results)


if __name__ == "__main__":
    main()
