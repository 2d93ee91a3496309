"""Kneser-Ney models, side by side with KenLM: training against lmplz, scoring against query, on the same text.

    python benchmarks/kneser_ney.py en=docs.jsonl.gz zh=prose.jsonl.gz --kenlm build/bin

KenLM's programs (lmplz, build_binary, query) are built from its source with cmake and Boost; --kenlm names the folder
that holds them. Both sides train on the same units: ours from the text itself, KenLM's from a file in which our units
are parted by spaces. Sides take turns, --rounds times; figures are processor seconds (user and system, all threads),
a ratio is the median over rounds of the ratio within the round. Scores are compared as well: both sides do the same.
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from xmodel.console import table
from xmodel.corpus.kneser_ney.estimate import estimate
from xmodel.corpus.kneser_ney.model import document_sums, load_model, perplexities, score, write_model
from xmodel.corpus.kneser_ney.units import END, identify, new_vocabulary
from xmodel.files import write_json

PRUNE = [0, 0, 1]


def texts(path: Path, limit: int) -> list[str]:
    """The texts of a JSON-lines file, up to `limit` bytes."""
    found: list[str] = []
    size = 0
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as stream:
        for line in stream:
            found.append(json.loads(line)["text"])
            size += len(found[-1].encode())
            if size >= limit:
                break
    return found


def batches(column: pa.Array) -> Iterator[pa.Array]:
    """The column in pieces of 256 documents."""
    for begin in range(0, len(column), 256):
        yield column[begin : begin + 256]


def seconds(action: Callable[[], Any]) -> float:
    """Processor seconds of this process and its children."""

    def spent() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    begin = spent()
    action()
    return spent() - begin


def train(column: pa.Array, folder: Path, order: int, memory: int) -> None:
    """From text to a model folder."""
    vocabulary = new_vocabulary()
    ids = [identify(piece, vocabulary, grow=True)[0] for piece in batches(column)]
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = estimate(lambda: ids, vocabulary.size, order=order, prune=PRUNE, memory=memory, folder=Path(scratch))
        write_model(folder, vocabulary, made.counts, made.ngrams, units="folded")


def write_plain(column: pa.Array, path: Path) -> int:
    """Write the units of the texts, parted by spaces; returns how many there are, ends of lines included."""
    vocabulary = new_vocabulary()
    ids_T, _ = identify(column, vocabulary, grow=True)
    words = vocabulary.words()
    path.write_text("".join("\n" if number == END else words[number] + " " for number in ids_T.tolist()))
    return len(ids_T)


def measure(
    language: str, column: pa.Array, kenlm: Path, arguments: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """All figures of one language."""
    size = sum(len(text.encode()) for text in column.to_pylist())
    plain, arpa, binary, answers = (folder / f"{language}.{kind}" for kind in ("txt", "arpa", "bin", "scores"))
    tokens = write_plain(column, plain)
    model_folder = folder / f"{language}-model"
    lmplz = [kenlm / "lmplz", "-o", str(arguments.order), "-S", f"{arguments.memory}b", "-T", folder, "--skip_symbols"]
    lmplz += ["--discount_fallback", "--prune", *map(str, PRUNE), "--text", plain, "--arpa", arpa]

    def call(command: list[Any], **files: Any) -> None:
        subprocess.run([str(word) for word in command], check=True, stderr=subprocess.DEVNULL, **files)

    def query() -> None:
        with open(plain, "rb") as source, open(answers, "wb") as target:
            call([kenlm / "query", "-v", "sentence", binary], stdin=source, stdout=target)

    def ours() -> None:
        for piece in batches(column):
            score(piece, model)

    rows: dict[str, list[float]] = {name: [] for name in ("train", "lmplz", "score", "query")}
    train(column[:1], folder / "warm", arguments.order, arguments.memory)  # compiles, or loads what was compiled
    model = load_model(folder / "warm")
    for _ in range(arguments.rounds):
        rows["train"].append(seconds(lambda: train(column, model_folder, arguments.order, arguments.memory)))
        rows["lmplz"].append(seconds(lambda: call(lmplz)))
        call([kenlm / "build_binary", "probing", arpa, binary], stdout=subprocess.DEVNULL)
        model = load_model(model_folder)
        score(column[:1], model)
        rows["score"].append(seconds(ours))
        rows["query"].append(seconds(query))
    scores = score(column, model)
    totals = [float(line.split()[1]) for line in answers.read_text().splitlines() if line.startswith("Total: ")]
    worst = np.abs(np.array(totals[: len(scores.logs_L)]) - scores.logs_L).max()
    medians = {name: statistics.median(values) for name, values in rows.items()}
    units_D = document_sums(scores.units_L, scores.ends_D1)
    perplexity_D = perplexities(document_sums(scores.logs_L, scores.ends_D1), units_D)
    return {
        "bytes": size, "units": tokens, "ngrams": model.counts, "seconds": medians, "largest_difference": float(worst),
        "train_ratio": statistics.median(a / b for a, b in zip(rows["train"], rows["lmplz"], strict=True)),
        "score_ratio": statistics.median(a / b for a, b in zip(rows["score"], rows["query"], strict=True)),
        "score_mb_per_s": size / 1e6 / medians["score"], "median_perplexity": float(np.nanmedian(perplexity_D)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", help="name=file.jsonl(.gz) with a field `text`")
    parser.add_argument("--kenlm", type=Path, required=True, help="folder of KenLM's lmplz, build_binary and query")
    parser.add_argument("--order", type=int, default=5)
    parser.add_argument("--memory", type=int, default=256 << 20, help="bytes for sorting, both sides")
    parser.add_argument("--megabytes", type=int, default=10, help="most that is read of each file")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for pair in arguments.texts:
            language, _, path = pair.partition("=")
            column = pa.array(texts(Path(path), arguments.megabytes * 1_000_000))
            results[language] = measure(language, column, arguments.kenlm, arguments, Path(folder))
    print(
        table(
            ("text", "MB", "M units", "train s", "lmplz s", "ratio", "MB/s", "score M/s", "query M/s", "differ by"),
            [
                (
                    name, f"{row['bytes'] / 1e6:.1f}", f"{row['units'] / 1e6:.2f}", f"{row['seconds']['train']:.2f}",
                    f"{row['seconds']['lmplz']:.2f}", f"{row['train_ratio']:.2f}", f"{row['score_mb_per_s']:.1f}",
                    f"{row['units'] / 1e6 / row['seconds']['score']:.2f}",
                    f"{row['units'] / 1e6 / row['seconds']['query']:.2f}", f"{row['largest_difference']:.1e}",
                )
                for name, row in results.items()
            ],
        )
    )  # fmt: skip
    settings = {"order": arguments.order, "prune": PRUNE, "memory": arguments.memory, "rounds": arguments.rounds}
    write_json(Path(__file__).parent / "results" / "kneser_ney.json", {"settings": settings, "texts": results})


if __name__ == "__main__":
    main()
