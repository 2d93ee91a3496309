"""The tokens stage: from the corpus' Parquet files to the token shards of shards.py.

Threads read and encode row groups, and do not hold Python's lock while they do; this thread takes what they find in the
order of the corpus and writes one shard after the other. So the shards are the same to the byte for any number of
threads. A shard stands together with a note of the row at which the next one begins; after a kill it is not done again.
Memory holds a few row groups, which the corpus stage keeps small.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from xmodel.console import log, progress
from xmodel.errors import MachineError, UserError
from xmodel.files import PARTIAL, atomic_write, checksum, read_json, write_json
from xmodel.recipe.settings import Tokens as Settings
from xmodel.tokenizer.codec import Tokenizer, encode_arrow_by_batch, pieces_fingerprint
from xmodel.tokens.shards import END, PIECE_BYTES, TOKEN

SPLITS = ("train", "validation")


@dataclass
class _Source:
    """One Parquet file of the corpus, and the shards that stand of it."""

    split: str
    path: Path
    metadata: Any  # pyarrow.parquet.FileMetaData
    shards: list[dict[str, Any]] = field(default_factory=list)  # entries of the manifest
    next_row: int = 0  # the first that is in none of them


class _Group(NamedTuple):
    """A row group that is to be encoded."""

    source: _Source
    number: int
    skip: int  # rows at its beginning that stand already
    size: int  # bytes of text, as far as the file says


class _Encoded(NamedTuple):
    """The documents of a row group."""

    ids_T: np.ndarray  # uint16
    ends_D: np.ndarray  # int64, in ids_T
    bytes_D: np.ndarray  # int64, UTF-8 bytes of the text


def write_tokens(
    corpus_folder: Path,
    tokenizer: Tokenizer,
    settings: Settings,
    folder: Path,
    work: Path | None = None,
    fingerprint: str = "",
) -> dict[str, Any]:
    """Encode corpus/train/*.parquet and corpus/validation/*.parquet into shards under `folder`.

    Args:
        corpus_folder: as the corpus stage leaves it.
        tokenizer: at most 65,536 pieces.
        settings: whether documents begin with `<s>`; the size of a shard; the number of threads.
        folder: a fresh folder; the manifest is written last.
        work: folder for what is to survive a kill, best on the file system of `folder`. The caller removes it when
            `folder` stands. None: a temporary folder.
        fingerprint: stands for all that the shards depend on; what `work` holds from another one is thrown away.

    Returns:
        The manifest.

    Raises:
        UserError: a training source without a document, or a vocabulary that 16 bits cannot hold.
        MachineError: a file of the corpus is missing or damaged.
        OSError: the disk is full.
    """
    if work is None:
        with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
            return write_tokens(corpus_folder, tokenizer, settings, folder, Path(name), fingerprint)
    if tokenizer.vocab_size > 65_536:
        raise UserError(
            f"tokenizer.vocab_size: {tokenizer.vocab_size:,} does not fit token ids of 16 bits; at most 65,536"
        )
    sources = [_open(split, path) for split in SPLITS for path in sorted((corpus_folder / split).glob("*.parquet"))]
    if not any(source.split == "train" for source in sources):
        raise MachineError(f"{corpus_folder / 'train'}: no parquet file; the corpus stage has not finished")
    for source in sources:
        if source.split == "train" and not source.metadata.num_rows:
            raise UserError(
                f"source {source.path.stem!r}: no document is left to train on; corpus/funnel.json says why they were "
                "dropped: loosen corpus.filters, or remove the source and give its weight to others"
            )
    _take_up(work, sources, tokenizer, settings, fingerprint)
    _write_shards(work, sources, tokenizer, settings)

    manifest: dict[str, Any] = {"bos": settings.bos, "vocab_size": tokenizer.vocab_size, "dtype": "uint16"}
    manifest["tokenizer"] = pieces_fingerprint(tokenizer)
    for split in SPLITS:
        (folder / split).mkdir(parents=True, exist_ok=True)
        manifest[split] = {source.path.stem: _entry(source) for source in sources if source.split == split}
    for source in sources:
        if source.split == "validation":  # small: tokens per character of text that the tokenizer was not trained on
            manifest["validation"][source.path.stem]["characters"] = _characters(source.path)
    for source in sources:
        for shard in source.shards:
            for suffix in (".bin", ".ends"):
                name = Path(shard["file"]).with_suffix(suffix)
                _same_file(work / name, folder / name)
    tokenizer.piece_bytes.astype(TOKEN).tofile(folder / PIECE_BYTES)
    manifest["piece_bytes"] = {"file": PIECE_BYTES, "checksum": checksum(folder / PIECE_BYTES)}
    write_json(folder / "manifest.json", manifest)
    return manifest


def _open(split: str, path: Path) -> _Source:
    import pyarrow
    import pyarrow.parquet

    try:
        return _Source(split, path, pyarrow.parquet.read_metadata(path))
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> MachineError:
    return MachineError(f"{path}: damaged ({' '.join(str(error).split())}); run the corpus stage again")


def _take_up(work: Path, sources: list[_Source], tokenizer: Tokenizer, settings: Settings, fingerprint: str) -> None:
    """Find the shards that stand in the work folder; what was made from anything else is removed."""
    files = [(source.split, source.path.name, source.path.stat()) for source in sources]
    made_from = {
        "fingerprint": fingerprint,
        "pieces": pieces_fingerprint(tokenizer),
        "bos": settings.bos,
        "shard_tokens": settings.shard_tokens,
        "corpus": [[split, name, stat.st_size, stat.st_mtime_ns] for split, name, stat in files],
    }
    note = work / "made-from.json"
    if not note.exists() or read_json(note) != made_from:
        shutil.rmtree(work, ignore_errors=True)
        write_json(note, made_from)
    for unfinished in work.rglob(f"*{PARTIAL}"):
        unfinished.unlink()
    for source in sources:
        while (note := work / f"{_stem(source)}.json").exists():
            found = read_json(note)
            source.shards.append(found["shard"])
            source.next_row = found["next_row"]
    if standing := sum(len(source.shards) for source in sources):
        log(f"tokens: {standing} shards stand already")


def _stem(source: _Source) -> str:
    """Of the next shard's files."""
    return f"{source.split}/{source.path.stem}-{len(source.shards):05d}"


def _write_shards(work: Path, sources: list[_Source], tokenizer: Tokenizer, settings: Settings) -> None:
    """Write all shards that do not stand yet into the work folder."""
    groups = [list(_groups(source)) for source in sources]
    left = [[group for group in of_source if group.skip < _rows(group)] for of_source in groups]
    total, todo = (sum(group.size for group in chain(*some)) / 1e6 for some in (groups, left))
    workers = settings.workers or _cores()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="encode")
    try:
        with progress("tokens", total, "MB of text", total - todo) as shown:

            def counted(found: tuple[_Group, _Encoded]) -> _Encoded:
                shown.advance(found[0].size / 1e6, note=found[0].source.path.stem)
                return found[1]

            encode = partial(_encode, tokenizer=tokenizer, bos=settings.bos)
            encoded = map(counted, _ahead(pool, encode, chain(*left), 2 * workers))
            for source, of_source in zip(sources, left, strict=True):
                runs = _runs(islice(encoded, len(of_source)), settings.shard_tokens)
                for _, of_shard in groupby(runs, key=itemgetter(0)):
                    _write_shard(work, source, of_shard)
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _groups(source: _Source) -> Iterator[_Group]:
    row = 0
    for number in range(source.metadata.num_row_groups):
        group = source.metadata.row_group(number)
        columns = map(group.column, range(group.num_columns))
        size = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == "text")
        yield _Group(source, number, min(max(source.next_row - row, 0), group.num_rows), size)
        row += group.num_rows


def _rows(group: _Group) -> int:
    return group.source.metadata.row_group(group.number).num_rows


def _encode(group: _Group, tokenizer: Tokenizer, bos: bool) -> tuple[_Group, _Encoded]:
    """Read and encode what is to be done of a row group; in a thread."""
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet

    path, metadata = group.source.path, group.source.metadata
    try:
        with pyarrow.parquet.ParquetFile(path, metadata=metadata) as file:
            texts = file.read_row_group(group.number, columns=["text"], use_threads=False).column("text")
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from None
    encode = getattr(tokenizer, "encode_arrow", partial(encode_arrow_by_batch, tokenizer))
    parts = []
    for chunk in texts.slice(group.skip).chunks:
        chunk = chunk.fill_null("") if chunk.null_count else chunk
        bytes_D = pyarrow.compute.binary_length(chunk).to_numpy(zero_copy_only=False).astype(np.int64)  # pyright: ignore[reportAttributeAccessIssue]
        ids_T, ends_D = encode(chunk, bos=bos, eos=True)
        parts.append(_Encoded(ids_T, ends_D, bytes_D))
    if len(parts) == 1:
        return group, parts[0]
    starts = np.cumsum([0, *(len(part.ids_T) for part in parts)])  # more than 2 GB of text come in several chunks
    ends = [part.ends_D + start for part, start in zip(parts, starts[:-1], strict=True)]
    ids_T, bytes_D = (np.concatenate([part[column] for part in parts]) for column in (0, 2))
    return group, _Encoded(ids_T, np.concatenate(ends), bytes_D)


def _ahead(pool: ThreadPoolExecutor, function: Callable[[Any], Any], items: Iterable[Any], most: int) -> Iterator[Any]:
    """The results in the order of the items; up to `most` are begun before they are asked for."""
    begun: deque[Future[Any]] = deque()
    for item in items:
        begun.append(pool.submit(function, item))
        if len(begun) > most:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


def _runs(groups: Iterable[_Encoded], most: int) -> Iterator[tuple[int, np.ndarray, np.ndarray, int]]:
    """Cut the documents of a source into shards of at most `most` tokens, or of one longer document.

    Yields:
        Number of the shard, from 0; ids of some of its documents; where these end in the shard; bytes of their text.
    """
    shard = held = 0
    for ids_T, ends_D, bytes_D in groups:
        first = begin = 0
        while first < len(ends_D):
            last = int(np.searchsorted(ends_D, begin + most - held, side="right"))
            if last <= first and held:
                shard, held = shard + 1, 0
                continue
            last = max(last, first + 1)
            end = int(ends_D[last - 1])
            yield shard, ids_T[begin:end], ends_D[first:last] - begin + held, int(bytes_D[first:last].sum())
            held += end - begin
            first, begin = last, end


def _write_shard(work: Path, source: _Source, runs: Iterable[tuple[int, np.ndarray, np.ndarray, int]]) -> None:
    """Write the next shard of a source, and last the note by which it stands."""
    stem = _stem(source)
    tokens, ends = work / f"{stem}.bin", work / f"{stem}.ends"
    ends_D: list[np.ndarray] = []
    size = 0
    with atomic_write(tokens) as stream:
        for _, ids_T, ends_R, run_bytes in runs:
            stream.write(ids_T.astype(TOKEN, copy=False).data)
            ends_D.append(ends_R)
            size += run_bytes
    with atomic_write(ends) as stream:
        stream.write(np.concatenate(ends_D).astype(END, copy=False).data)
    documents = sum(map(len, ends_D))
    entry = {
        "file": f"{stem}.bin",
        "tokens": int(ends_D[-1][-1]),
        "documents": documents,
        "bytes": size,
        "checksum": checksum(tokens),
        "ends_checksum": checksum(ends),
    }
    write_json(work / f"{stem}.json", {"shard": entry, "next_row": source.next_row + documents})
    source.shards.append(entry)
    source.next_row += documents


def _entry(source: _Source) -> dict[str, Any]:
    totals = {key: sum(shard[key] for shard in source.shards) for key in ("tokens", "documents", "bytes")}
    return {"shards": source.shards, **totals}


def _characters(path: Path) -> int:
    """Code points of all texts of a Parquet file."""
    import pyarrow.compute
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        batches = file.iter_batches(columns=["text"])
        lengths = (pyarrow.compute.utf8_length(batch["text"].cast("string")) for batch in batches)  # pyright: ignore[reportAttributeAccessIssue]
        return sum(pyarrow.compute.sum(each).as_py() or 0 for each in lengths)  # pyright: ignore[reportAttributeAccessIssue]


def _same_file(old: Path, new: Path) -> None:
    """Give a file a second name, or copy it where that cannot be done: the first has to survive a kill."""
    new.unlink(missing_ok=True)
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)
