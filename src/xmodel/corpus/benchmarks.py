"""Benchmarks in local folders, as the texts that training documents are searched for.

A folder of benchmarks has a subfolder for each; files are JSON lines (plain, .gz, .zst), JSON (a list, or an object
with one list of records), Parquet, CSV, TSV, or what `datasets` saves. Nothing is known of a benchmark but its records:
every string in one, at any depth, is a text of that item, but for `IGNORED`.
"""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from xmodel.corpus.sources.columnar import arrow_batches, parquet_file
from xmodel.corpus.sources.files import in_folder, split_of
from xmodel.corpus.sources.streams import blocks
from xmodel.errors import UserError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz", ".parquet", ".arrow", ".csv", ".tsv")
BOOKKEEPING = ("state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")  # of `datasets`
# Passages that an item quotes from public pages. A page in the training text does not give the question away (Brown et
# al. 2020, appendix C, found most matches of reading comprehension to be of this kind), so they are not searched for.
PASSAGES = {"passage", "context", "support", "paragraph", "article", "story", "background"}
METADATA = {"id", "ind", "idx", "url", "uri", "source", "source_id", "subject", "category", "split", "label"}
IGNORED = PASSAGES | METADATA


@dataclass
class Benchmark:
    """A benchmark: the texts of each of its items."""

    name: str
    items: list[list[str]] = field(default_factory=list)


def load_benchmarks(paths: list[str], where: str = "corpus.benchmarks") -> list[Benchmark]:
    """Read the benchmarks of folders, files or patterns, sorted by name.

    The training split of a benchmark is left out where the benchmark has another: to train on it is common practice.

    Args:
        where: the recipe key, for messages.

    Raises:
        UserError: a path that matches nothing, a file that cannot be read, a benchmark without a text.
    """
    found: dict[str, Benchmark] = {}
    for number, written in enumerate(paths):
        for name, files in _by_name(written, f"{where}[{number}]").items():
            benchmark = found.setdefault(name, Benchmark(name))
            for path in files:
                benchmark.items += (texts for record in _records(path) if (texts := list(_texts(record))))
            if not benchmark.items:
                raise UserError(f"{where}[{number}]: the benchmark {name} holds no item with a text in {files[0]}")
    return [found[name] for name in sorted(found)]


def benchmark_files(paths: list[str], where: str = "corpus.benchmarks") -> list[Path]:
    """Every file that `load_benchmarks` reads."""
    groups = (_by_name(written, f"{where}[{number}]") for number, written in enumerate(paths))
    return [path for group in groups for files in group.values() for path in files]


def _by_name(written: str, key: str) -> dict[str, list[Path]]:
    roots = [Path(written)]
    if glob.has_magic(written) and not roots[0].exists():
        roots = sorted(map(Path, glob.glob(written, recursive=True)))  # noqa: PTH207 - Path.glob takes no absolute pattern
    if not roots or not roots[0].exists():
        raise UserError(f"{key}: {written} matches nothing; name a folder of benchmarks, a subfolder for each")
    by_name: dict[str, list[Path]] = {}
    for root in roots:
        if root.is_file():
            by_name.setdefault(root.name.split(".")[0], []).append(root)
            continue
        for path in in_folder(root, SUFFIXES):
            if path.name not in BOOKKEEPING:
                inside = path.relative_to(root).parts
                saved = (root / "dataset_dict.json").exists()  # its subfolders are splits
                by_name.setdefault(root.name if len(inside) == 1 or saved else inside[0], []).append(path)
    if not by_name:
        raise UserError(f"{key}: {written} holds no benchmark: no {', '.join(SUFFIXES)} file below it")
    return {name: _without_training(files) for name, files in by_name.items()}


def _without_training(files: list[Path]) -> list[Path]:
    kept = [path for path in files if split_of(path, path.parents[1]) != "train"]
    return kept or files


def _texts(record: Any, name: str = "") -> Iterator[str]:
    """Every string of a record that may give the item away."""
    if name.lower() in IGNORED:
        return
    if isinstance(record, str):
        if len(record.strip()) > 1:  # no letters of answers
            yield record
    elif isinstance(record, dict):
        for key, value in record.items():
            yield from _texts(value, str(key))
    elif isinstance(record, list):
        for value in record:
            yield from _texts(value, name)


def _records(path: Path) -> Iterator[Any]:
    """The records of a file."""
    name = path.name
    if name.endswith((".csv", ".tsv")):
        with open(path, encoding="utf-8-sig", newline="", errors="replace") as stream:
            yield from csv.DictReader(stream, delimiter="\t" if name.endswith(".tsv") else ",")
    elif name.endswith(".parquet"):
        with parquet_file(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    elif name.endswith(".arrow"):
        try:
            with pa.memory_map(str(path)) as stored:
                for batch in arrow_batches(stored):
                    yield from batch.to_pylist()
        except pa.ArrowInvalid as error:
            raise UserError(f"{path}: not an Arrow file ({' '.join(str(error).split())[:120]})") from None
    elif ".jsonl" in name:
        for number, line in enumerate(_whole(path).split(b"\n"), start=1):
            if line.strip():
                yield _parsed(line, f"{path}:{number}")
    else:
        value = _parsed(_whole(path), str(path))
        lists = [inner for inner in value.values() if isinstance(inner, list)] if isinstance(value, dict) else [value]
        yield from max(lists, key=len, default=[])


def _whole(path: Path) -> bytes:
    pieces = []
    for block in blocks(path, 0, 0):
        if block.wrong:
            raise UserError(f"{path}: {block.detail or 'a line that is too long'}; copy it again")
        pieces.append(block.data)
    return b"".join(pieces).removeprefix(b"\xef\xbb\xbf")


def _parsed(data: bytes, at: str) -> Any:
    try:
        return json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{at}: not JSON ({str(error)[:80]}); a benchmark file is JSON lines or a list") from None
