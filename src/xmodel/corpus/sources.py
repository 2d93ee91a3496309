"""Read text where people have it, as a stream of `pyarrow.RecordBatch`es of bounded size (schema: batches.RAW).

A reader is a generator of (id, text, label); one row of `READERS` each. Whatever is wrong with the input is a
`UserError` that names the recipe key or the file, and the line or byte.
"""

from __future__ import annotations

import glob
import gzip
import json
import os
import re
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from xmodel.corpus.batches import MAX_DOCUMENT_BYTES, batched
from xmodel.errors import UserError
from xmodel.recipe.settings import Corpus, Source

Document = tuple[str, str, str | None]  # id, text, label of dirt
Advance = Callable[[int], None]

SUFFIXES = {"jsonl": (".jsonl", ".jsonl.gz"), "text": (".txt", ".md", ".rst")}  # what a folder is searched for
SANDBOX_DOCUMENTS = 20_000
STDLIB_BYTES = 8_000  # a file of the standard library is cut into documents of about this size
_LARGEST = f"{MAX_DOCUMENT_BYTES >> 20} MiB"
# Not the library itself: installed packages, tests, bundled applications, generated tables.
STDLIB_SKIPPED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "idle_test", "lib2to3", "turtledemo", "encodings"}
    | {"pydoc_data", "__pycache__", "ensurepip"}
)


def read(
    source: Source, where: str, *, seed: int, dirt: float = 0.0, advance: Advance = lambda amount: None
) -> Iterator[pa.RecordBatch]:
    """Read one source.

    Args:
        source: its settings, paths absolute.
        where: the source's place in the recipe ("corpus.sources[2]"), for messages.
        seed: of the sandbox.
        dirt: share of labelled dirt in a sandbox source.
        advance: called with the amount of input consumed, in the unit of `extent`.

    Raises:
        UserError: nothing to read, or something that cannot be read; the message says where.
    """
    documents = _READERS[source.reader](source, where, seed, dirt, advance)
    if source.documents is not None:
        documents = _at_most(documents, source.documents)
    empty = True
    for batch in batched(documents):
        empty = False
        yield batch
    if empty:
        raise UserError(f"{where} ({source.name}): holds no document; take it out of the recipe or add text to it")


def extent(source: Source, where: str) -> tuple[int, str]:
    """How much there is to read, and in which unit: for the progress bar."""
    if source.reader == "sandbox":
        return source.documents or SANDBOX_DOCUMENTS, "documents"
    return sum(path.stat().st_size for path in files(source, where)), "bytes"


def input_files(corpus: Corpus) -> list[Path]:
    """Every file that the corpus stage reads, sorted; a change of one makes the stage stale.

    Raises:
        UserError: a path or pattern that matches nothing.
    """
    found: set[Path] = set()
    for kind, sources in (("sources", corpus.sources), ("validation", corpus.validation)):
        for index, source in enumerate(sources):
            found.update(files(source, f"corpus.{kind}[{index}]"))
    return sorted(found)


def files(source: Source, where: str) -> list[Path]:
    """The files of a source in reading order: paths in the order given, the files of a folder or pattern sorted.

    Raises:
        UserError: no paths given, or one that matches no file.
    """
    if source.reader == "sandbox":
        return []
    if source.reader == "stdlib":
        return _stdlib_files()
    if not source.paths:
        raise UserError(f"{where}.paths ({source.name}): is empty; name files, folders or glob patterns")
    found: dict[Path, None] = {}
    for number, pattern in enumerate(source.paths):
        found.update(
            dict.fromkeys(_expand(pattern, SUFFIXES[source.reader], f"{where}.paths[{number}] ({source.name})"))
        )
    return list(found)


def _expand(pattern: str, suffixes: tuple[str, ...], key: str) -> list[Path]:
    path = Path(pattern)
    names = " or ".join(suffixes)
    try:
        if path.is_file():
            return [path]
        if path.is_dir():
            found = _in_folder(path, suffixes)
            if not found:
                raise UserError(f"{key}: the folder {pattern} holds no {names} file; name others by a glob pattern")
            return found
        if not glob.has_magic(pattern):
            raise UserError(f"{key}: {pattern} does not exist; paths start from corpus.root")
        matches = sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207 - Path.glob takes no absolute pattern
        found = [file for match in matches for file in ([match] if match.is_file() else _in_folder(match, suffixes))]
    except OSError as error:
        raise UserError(f"{key}: {error.filename or pattern} cannot be read ({error.strerror})") from None
    if not found:
        raise UserError(f"{key}: the pattern {pattern} matches no file; paths start from corpus.root")
    return found


def _in_folder(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    hidden = (path for path in folder.rglob("*") if path.name.endswith(suffixes) and path.is_file())
    return sorted(path for path in hidden if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _at_most(documents: Iterator[Document], limit: int) -> Iterator[Document]:
    for number, document in enumerate(documents, start=1):
        yield document
        if number == limit:
            return


# ── JSON lines ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _jsonl(source: Source, where: str, seed: int, dirt: float, advance: Advance) -> Iterator[Document]:
    fields = source.text_field.split(".")
    for path in files(source, where):
        with _opened(path) as raw:
            stream = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
            consumed = 0
            for number, line in enumerate(_lines(stream, path), start=1):
                at = f"{path}:{number}"
                if number % 256 == 0:
                    advance(raw.tell() - consumed)
                    consumed = raw.tell()
                if not line.strip():
                    continue
                if len(line) > MAX_DOCUMENT_BYTES:
                    raise UserError(f"{at}: a line of more than {_LARGEST}; split the document")
                try:
                    record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{at}: invalid UTF-8 at byte {error.start} of the line; re-save as UTF-8"
                    ) from None
                except json.JSONDecodeError as error:
                    raise UserError(
                        f"{at}: not JSON ({error.msg}, column {error.colno}); every line must be one JSON object"
                    ) from None
                text = _field(record, fields, at, source.text_field, where)
                name = record.get("id")
                yield (str(name) if isinstance(name, str | int) else f"{path.name}:{number}"), text, None
            advance(raw.tell() - consumed)


def _lines(stream: Any, path: Path) -> Iterator[bytes]:
    number = 0
    try:
        for line in stream:
            number += 1
            yield line
    except EOFError:
        raise UserError(f"{path}: truncated gzip, the end is missing after line {number}; copy it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged gzip after line {number} ({error}); copy it again") from None


def _field(record: Any, fields: list[str], at: str, name: str, where: str) -> str:
    value = record
    for field in fields:
        if not isinstance(value, dict) or field not in value:
            has = ", ".join(map(str, list(record)[:8])) if isinstance(record, dict) else f"a {type(record).__name__}"
            raise UserError(
                f"{at}: no field {name!r} (the line has: {has}); set {where}.text_field to the text's field"
            )
        value = value[field]
    if not isinstance(value, str):
        raise UserError(f"{at}: the field {name!r} must be a string, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{at}: invalid Unicode in {name!r} (half a surrogate pair, \\u{ord(value[error.start]):04x}, "
            f"at character {error.start}); re-save as UTF-8"
        ) from None
    return value


# ── Text files ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _text(source: Source, where: str, seed: int, dirt: float, advance: Advance) -> Iterator[Document]:
    for path in files(source, where):
        yield str(path), read_text(path), None
        advance(path.stat().st_size)


def read_text(path: Path) -> str:
    r"""A text file as it is, but for a byte order mark and `\r\n`.

    Raises:
        UserError: unreadable, not UTF-8, or too large for one document.
    """
    if path.stat().st_size > MAX_DOCUMENT_BYTES:
        raise UserError(f"{path}: larger than {_LARGEST}; a text file is one document: split it, or use JSON lines")
    with _opened(path) as stream:
        data = stream.read()
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: invalid UTF-8 at byte {error.start}; re-save as UTF-8") from None


def _opened(path: Path) -> Any:
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


# ── The running interpreter's standard library ───────────────────────────────────────────────────────────────────────


def _stdlib_files() -> list[Path]:
    found: list[Path] = []
    for folder, folders, names in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = [name for name in folders if name not in STDLIB_SKIPPED and not name.startswith("config-")]
        found += [Path(folder, name) for name in names if name.endswith(".py") and not name.startswith("_sysconfig")]
    return sorted(found)


def _stdlib(source: Source, where: str, seed: int, dirt: float, advance: Advance) -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in _stdlib_files():
        for number, part in enumerate(split_code(read_text(path), STDLIB_BYTES)):
            yield f"{path.relative_to(root).as_posix()}#{number}", part, None
        advance(path.stat().st_size)


# Where Python code may be cut, best first: before a definition of the module, of a class, at any empty line.
_CUTS = (
    re.compile(r"(?<=\n\n)(?=[@#]|def |class |async def |if __name__)"),
    re.compile(r"(?<=\n\n)(?=    (?:[@#]|def |class |async def ))"),
    re.compile(r"(?<=\n\n)(?=[^\n])"),
)


def split_code(text: str, limit: int, cuts: tuple[re.Pattern[str], ...] = _CUTS) -> list[str]:
    """Cut Python code into pieces of at most `limit` characters where it has a good place to be cut."""
    if len(text) <= limit or not cuts:
        return [text.strip("\n") + "\n"] if text.strip() else []
    pieces: list[str] = []
    for block in cuts[0].split(text):
        if pieces and len(pieces[-1]) + len(block) <= limit:
            pieces[-1] += block
        else:
            pieces.append(block)
    return [part for piece in pieces for part in split_code(piece, limit, cuts[1:])]


# ── The sandbox ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _sandbox(source: Source, where: str, seed: int, dirt: float, advance: Advance) -> Iterator[Document]:
    from xmodel.corpus import sandbox

    wrong = [part for part in source.paths if part not in sandbox.PARTS]
    if wrong or not source.paths:
        named = f"{wrong[0]!r} is no part of the sandbox" if wrong else "is empty"
        raise UserError(f"{where}.paths ({source.name}): {named}; name some of {', '.join(sandbox.PARTS)}")
    count = source.documents or SANDBOX_DOCUMENTS
    for number, part in enumerate(source.paths):
        share = count * (number + 1) // len(source.paths) - count * number // len(source.paths)
        for made in sandbox.documents(part, share, seed, dirt):
            yield made.id, made.text, None if made.label == "clean" else made.label
            advance(1)


_READERS: dict[str, Callable[[Source, str, int, float, Advance], Iterator[Document]]] = {
    "jsonl": _jsonl,
    "text": _text,
    "stdlib": _stdlib,
    "sandbox": _sandbox,
}
