"""Near duplicates of a whole corpus: buckets, verified pairs, clusters, and who is kept; a folder that is an index.

    records.npy          what is known of every document, [N] of `record_dtype`: an index's documents, then the new ones
    kept.npy             int64 [N]: the document that is kept instead; -1: this one is kept
    index.json           settings, and the files of documents in their order
    glances.npy          what most candidates are refused by, [N] of `glance_dtype`       } gone when all is decided
    buckets/00000.npy    per chunk of documents: (key, document) by partition, .starts    }
    pairs/00000.npy      per partition of the keys: verified pairs                        }

**Which member of a cluster is kept: the first one**, in the order of the files and of the rows within them, as for
exact duplicates; a document of the index comes before all new ones and is never dropped for them.

The outcome is a function of the sketches, their order and the settings alone. A connected component does not depend on
the order in which its edges are found, so partitions and workers may be as many as one likes and finish when they like.
Each step writes whole files or nothing, and a repeated call does only what is missing. Memory holds one partition, 8
bytes a document, and the pages of glances.npy and records.npy that the system can spare.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from xmodel.corpus.batches import alive
from xmodel.corpus.near_duplicates.pairs import (
    bucket_keys,
    glance_dtype,
    glances,
    hamming,
    join,
    number_of_keys,
    roots,
    threshold,
    verified_pairs,
)  # fmt: skip
from xmodel.corpus.near_duplicates.sketch import COLUMN, sketch, sketch_dtype, sketches
from xmodel.errors import MachineError, UserError
from xmodel.files import atomic_write, checksum, read_json, write_json
from xmodel.recipe.settings import NearDuplicates

CHUNK = 1 << 14  # documents of a bucket file
PARTITION_RECORDS = 4 << 20  # keys of a partition, about; 8 bytes each
MOST_PARTITIONS = 1 << 16
COPIED = 1 << 24  # bytes

Mapper = Callable[[Callable[[int], Any], Iterable[int]], Iterable[Any]]


def record_dtype(permutations: int) -> np.dtype:
    """What is recorded of a document: whether it takes part, and its sketch."""
    return np.dtype([("takes_part", "?"), ("sketch", sketch_dtype(permutations))], align=True)


def records(batch: pa.RecordBatch, settings: NearDuplicates) -> np.ndarray:
    """What the map stage records of a batch that has the column `sketch`: [D] of `record_dtype`.

    Documents that have a `reason` already, or fewer than `settings.shortest` characters, do not take part.
    """
    records_D = np.zeros(len(batch), record_dtype(settings.permutations))
    records_D["sketch"] = sketches(batch[COLUMN], settings.permutations)
    records_D["takes_part"] = alive(batch) & (records_D["sketch"]["characters"] >= settings.shortest)
    return records_D


@contextmanager
def record_file(path: Path, settings: NearDuplicates) -> Iterator[Callable[[np.ndarray], None]]:
    """A file of documents for `find_near_duplicates`; the function that is yielded appends the records of a batch."""
    kind = record_dtype(settings.permutations)
    documents = 0

    def write_header() -> None:  # numpy pads it, so that a larger shape takes the same room
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (documents,)}
        np.lib.format.write_array_header_1_0(stream, header)

    def append(records_D: np.ndarray) -> None:
        nonlocal documents
        stream.write(records_D.tobytes())
        documents += len(records_D)

    with atomic_write(path, shared=True) as stream:
        write_header()
        yield append
        stream.seek(0)
        write_header()


def write_records(path: Path, parts: Iterable[np.ndarray], settings: NearDuplicates) -> None:
    """Write a file of documents, batch after batch."""
    with record_file(path, settings) as append:
        for part in parts:
            append(part)


def find_near_duplicates(
    files: Sequence[Path],
    settings: NearDuplicates,
    folder: Path,
    *,
    index: Path | None = None,
    excluded: Sequence[np.ndarray] | None = None,
    mapper: Mapper = map,
    partitions: int | None = None,
) -> list[np.ndarray]:
    """Find the documents that are near duplicates of earlier ones.

    Args:
        files: records of the documents, as `write_records` wrote them, in the order that decides who is first.
        settings: `corpus.near_duplicates` of the recipe; the mode is not "off".
        folder: where the index is built. A call that was cut short is taken up where it stopped; so the same folder
            must be given the same files (by content), settings and index.
        index: the folder of an earlier call with the same settings; its documents come first and stay as they are.
        excluded: bool [D] for each file: documents that take no part, because they are dropped for another reason.
        mapper: carries out a picklable function for numbers, in any order, by any number of workers.
        partitions: of the keys; the outcome does not depend on it. None: as many as the documents need.

    Returns:
        For each file int64 [D]: -1 for a document that is kept (or takes no part), else the number of the document that
        is kept instead, in the order of the index's and then the files' documents.

    Raises:
        UserError: the index was made with other settings.
        MachineError: a file of records is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    inputs = [{"file": path.name, "checksum": checksum(path)} for path in files]
    flags = (
        [hashlib.blake2b(np.packbits(flag).tobytes()).hexdigest() for flag in excluded]
        if excluded is not None
        else None
    )
    plan = {
        "settings": _shape(settings),
        "files": inputs,
        "index": index and checksum(index / "kept.npy"),
        "excluded": flags,
        "partitions": partitions,
    }
    if not (folder / "plan.json").exists() or read_json(folder / "plan.json") != plan:
        for name in ("buckets", "pairs"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in ("index.json", "kept.npy", "records.npy", "glances.npy"):
            (folder / name).unlink(missing_ok=True)
        write_json(folder / "plan.json", plan)
    if not (folder / "index.json").exists():
        _build(files, settings, folder, index, excluded, mapper, partitions)
    described = read_json(folder / "index.json")
    kept_N = np.load(folder / "kept.npy", mmap_mode="r")
    starts = np.cumsum(
        [
            described["settled"],
            *(file["documents"] for file in described["files"][len(described["files"]) - len(files) :]),
        ]
    )
    return [np.array(kept_N[begin:end]) for begin, end in itertools.pairwise(starts)]


def _shape(settings: NearDuplicates) -> dict[str, Any]:
    return {**asdict(settings), "threshold": threshold(settings)}


def _build(
    files: Sequence[Path],
    settings: NearDuplicates,
    folder: Path,
    index: Path | None,
    excluded: Sequence[np.ndarray] | None,
    mapper: Mapper,
    partitions: int | None,
) -> None:
    described: list[dict[str, Any]] = []
    settled = 0
    if index is not None:
        earlier = read_json(index / "index.json")
        if earlier["settings"] != _shape(settings):
            raise UserError(
                f"{index}: this index of near duplicates was made with other settings ({earlier['settings']}); "
                "use those, or build the index anew"
            )
        described, settled = earlier["files"], sum(file["documents"] for file in earlier["files"])
    arrays = [_load_records(path, settings) for path in files]
    described = described + [{"file": path.name, "documents": len(a)} for path, a in zip(files, arrays, strict=True)]
    documents = sum(file["documents"] for file in described)
    if not (folder / "glances.npy").exists():
        everything = [(array, None if excluded is None else excluded[number]) for number, array in enumerate(arrays)]
        if index is not None:
            everything.insert(0, (_load_records(index / "records.npy", settings), None))
        _concatenate(folder, everything, settings.permutations)

    partitions = partitions or -(-documents * number_of_keys(settings) // PARTITION_RECORDS) or 1
    partitions = min(partitions, MOST_PARTITIONS)
    for folder_of in ("buckets", "pairs"):
        (folder / folder_of).mkdir(exist_ok=True)
    for _ in mapper(partial(_write_buckets, folder, settings, partitions), range(-(-documents // CHUNK))):
        pass
    for _ in mapper(partial(_write_pairs, folder, settings, settled), range(partitions)):
        pass

    parents_N = np.arange(documents)
    kept_N = np.full(documents, -1, np.int64)
    if index is not None:
        kept_N[:settled] = np.load(index / "kept.npy")
        dropped = np.flatnonzero(kept_N >= 0)
        join(parents_N, np.stack([kept_N[dropped], dropped], axis=1))
    for path in sorted((folder / "pairs").glob("*.npy")):
        join(parents_N, np.load(path))
    first_N = roots(parents_N)
    new_N = np.arange(settled, documents)
    kept_N[settled:] = np.where(first_N[settled:] < new_N, first_N[settled:], -1)
    with atomic_write(folder / "kept.npy") as stream:
        np.save(stream, kept_N)
    write_json(folder / "index.json", {"settings": _shape(settings), "settled": settled, "files": described})
    for folder_of in ("buckets", "pairs"):
        shutil.rmtree(folder / folder_of)
    (folder / "glances.npy").unlink()


def _load_records(path: Path, settings: NearDuplicates) -> np.ndarray:
    """The records of a file, mapped into memory."""
    try:
        mapped_D = np.load(path, mmap_mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise MachineError(f"{path}: no readable records of documents ({error})") from None
    if mapped_D.dtype != record_dtype(settings.permutations):
        raise MachineError(f"{path}: sketches of another shape than corpus.near_duplicates.permutations asks for")
    return mapped_D.view(np.ndarray)


def _concatenate(folder: Path, arrays: list[tuple[np.ndarray, np.ndarray | None]], permutations: int) -> None:
    """One file of all records, and one of their glances; what is excluded takes no part."""
    kinds = {"records.npy": record_dtype(permutations), "glances.npy": glance_dtype(permutations)}
    shape = (sum(len(array) for array, _ in arrays),)
    with ExitStack() as files:
        streams = {name: files.enter_context(atomic_write(folder / name)) for name in reversed(kinds)}
        for name, kind in kinds.items():
            header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(streams[name], header)
        step = max(1, COPIED // kinds["records.npy"].itemsize)
        for array, excluded_D in arrays:
            for begin in range(0, len(array), step):
                part = np.array(array[begin : begin + step])
                if excluded_D is not None:
                    part["takes_part"] &= ~excluded_D[begin : begin + step]
                streams["records.npy"].write(part.tobytes())
                streams["glances.npy"].write(glances(part["sketch"]).tobytes())


def _write_buckets(folder: Path, settings: NearDuplicates, partitions: int, chunk: int) -> None:
    """The keys of a chunk of documents by partition, each with its document: uint64, the key in the upper half."""
    path = folder / "buckets" / f"{chunk:05d}.npy"
    if path.exists():
        return
    records_D = _load_records(folder / "records.npy", settings)[chunk * CHUNK : (chunk + 1) * CHUNK]
    nodes_D = np.flatnonzero(records_D["takes_part"])
    keys_DT = bucket_keys(records_D["sketch"][nodes_D], settings)
    numbers_D = (nodes_D + chunk * CHUNK).astype(np.uint64)
    records_R = ((keys_DT.astype(np.uint64) << np.uint64(32)) | numbers_D[:, None]).ravel()
    of_R = (keys_DT.ravel() % np.uint32(partitions)).astype(np.uint16)
    order_R = np.argsort(of_R, kind="stable")
    starts_P1 = np.searchsorted(of_R[order_R], np.arange(partitions + 1))
    for target, array in ((path.with_suffix(".starts"), starts_P1), (path, records_R[order_R])):
        with atomic_write(target) as stream:
            np.save(stream, array)


def _write_pairs(folder: Path, settings: NearDuplicates, settled: int, partition: int) -> None:
    """The verified pairs of one partition of the keys."""
    path = folder / "pairs" / f"{partition:05d}.npy"
    if path.exists():
        return
    parts = [np.zeros(0, np.uint64)]
    for bucket in sorted((folder / "buckets").glob("*.npy")):
        begin, end = np.load(bucket.with_suffix(".starts"))[partition : partition + 2]
        parts.append(np.load(bucket, mmap_mode="r")[begin:end])
    records_R = np.concatenate(parts)
    records_R.sort()
    glances_N = np.load(folder / "glances.npy", mmap_mode="r").view(np.ndarray)
    sketches_N = _load_records(folder / "records.npy", settings)["sketch"]
    distance = settings.distance if settings.mode == "simhash" else 64
    pairs_E2 = verified_pairs(
        records_R, glances_N["simhash"], glances_N["bits"], glances_N["characters"],
        sketches_N["characters"], sketches_N["values"], sketches_N["positions"],
        settled, distance, threshold(settings),
    )  # fmt: skip
    with atomic_write(path) as stream:
        np.save(stream, pairs_E2)


def compare(first: bytes, second: bytes, permutations: int = 256) -> dict[str, Any]:
    """How near two folded texts are: "hamming" (bits of 64) and "shared" (estimated Jaccard similarity of 5-grams)."""
    one, other = sketch(pa.array([first, second], pa.binary()), permutations)
    return {
        "hamming": int(hamming(one["simhash"], other["simhash"])),
        "shared": float((one["values"] == other["values"]).mean()),
    }
