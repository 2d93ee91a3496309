"""What a person's own text consists of, measured quickly: size, documents, languages, characters. For `xmodel init`."""

from __future__ import annotations

import glob
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from xmodel.corpus.sources import SUFFIXES
from xmodel.errors import UserError
from xmodel.recipe.settings import Filters

SAMPLE_BYTES = 16_000_000  # read from all sources together; about two seconds
SAMPLE_FILES = 32  # opened of one source
SLICES = 4  # places in a big file that are looked at
LARGEST_TEXT_FILE = 2**30  # what the text reader takes as one document
TEXT_FIELDS = ("text", "content", "raw_content", "body", "document", "article", "paragraph", "data", "markdown", "code")
JSON_LINES = (".jsonl", ".jsonl.gz", ".ndjson", ".json", ".json.gz")
OTHER_FORMATS = (".gz", ".zst", ".xz", ".bz2", ".zip", ".tar", ".parquet", ".arrow", ".csv", ".tsv", ".pdf", ".epub")
OTHER_FORMATS += (".doc", ".docx", ".html", ".xml")
OPENING = re.compile(r"^.*[^\W\d_]{2}.*$", re.MULTILINE)  # a line with letters
HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U000323af]")

Reader = Literal["jsonl", "text"]


@dataclass
class Surveyed:
    """A source as it will stand in the recipe, and what was measured of it (estimates where `sampled`)."""

    name: str
    reader: Reader
    path: str  # absolute file, folder or pattern
    text_field: str = ""  # of JSON lines
    files: int = 0
    text_bytes: float = 0.0  # UTF-8 bytes of the documents
    documents: float = 0.0
    chinese: float = 0.0  # share of the bytes in documents that count as Chinese
    sampled: bool = False
    characters: Counter[str] = field(default_factory=Counter)  # of what was read
    openings: list[str] = field(default_factory=list)  # first lines with words of some documents


def survey(arguments: list[str]) -> list[Surveyed]:
    """Measure each file, folder or pattern; a folder with both JSON lines and text files makes two sources.

    Raises:
        UserError: nothing matches, a file is empty, unreadable, given twice or of a format that is not read.
    """
    sources: list[Surveyed] = []
    seen: dict[Path, str] = {}
    todo = [(argument, *match) for argument in arguments for match in _matches(argument).items()]
    for argument, reader, files in todo:
        for file in files:
            if seen.setdefault(file.resolve(), argument) != argument:
                raise UserError(f"{file}: is in both `{seen[file.resolve()]}` and `{argument}`; give it once")
        path = str(Path(argument).expanduser().absolute())
        source = Surveyed(_name(argument, reader, [s.name for s in sources]), reader, path, files=len(files))
        _measure(source, files, SAMPLE_BYTES // len(todo))
        sources.append(source)
    return sources


def _matches(argument: str) -> dict[Reader, list[Path]]:
    """The files that an argument means, by the reader that they need."""
    path = Path(argument).expanduser()
    if path.is_file():
        if path.stat().st_size == 0:
            raise UserError(f"{path}: is empty")
        found = [path]
    elif path.is_dir():
        kinds = (*(name for name in SUFFIXES["jsonl"] if name.endswith(JSON_LINES)), *SUFFIXES["text"])
        found = [file for file in path.rglob("*") if file.name.endswith(kinds) and file.is_file()]
        found = [file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        if not found:
            raise UserError(f"{path}: the folder holds no {', '.join(kinds)} file; name others by a pattern")
    elif glob.has_magic(argument):
        found = [Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file()]  # noqa: PTH207
        if not found:
            raise UserError(f"{argument}: the pattern matches no file")
    else:
        raise UserError(f"{path}: no such file or folder")
    groups: dict[Reader, list[Path]] = {}
    for file in sorted(found):
        if file.stat().st_size:
            groups.setdefault(_reader(file), []).append(file)
    if not groups:
        raise UserError(f"{argument}: every file is empty")
    if len(groups) > 1 and not path.is_dir():
        raise UserError(f"{argument}: matches JSON lines and text files; give a pattern for each")
    return groups


def _reader(file: Path) -> Reader:
    if file.name.endswith(JSON_LINES):
        return "jsonl"
    if file.suffix.lower() in OTHER_FORMATS:
        raise UserError(
            f"{file}: {file.suffix} is not read; convert it to JSON lines (.jsonl, .jsonl.gz) or plain text"
        )
    return "text"


def _name(argument: str, reader: Reader, taken: list[str]) -> str:
    """A source's name from a path: its last part that is not a pattern, in characters that a source may have."""
    parts = [part for part in Path(argument).expanduser().absolute().parts if not glob.has_magic(part)]
    stem = re.sub(r"(\.jsonl|\.json|\.ndjson|\.txt|\.md|\.rst)?(\.gz)?$", "", parts[-1])
    name = re.sub(r"[^\w-]+", "-", stem).strip("-_")[:60] or "text"
    numbered = (f"{name}-{reader}" if number == 1 else f"{name}-{number}" for number in range(1, 10**6))
    return name if name not in taken else next(other for other in numbered if other not in taken)


def _measure(source: Surveyed, files: list[Path], budget: int) -> None:
    """Fill in the figures from a sample of the files, scaled to all of them by their sizes on disk."""
    chosen = files[:: -(-len(files) // SAMPLE_FILES)]
    share = max(budget // len(chosen), 500_000)
    total, read, sampled, documents, chinese = sum(file.stat().st_size for file in files), 0.0, 0, 0.0, 0
    for file in chosen:
        parts = _json_lines(source, file, share) if source.reader == "jsonl" else _text_file(file, share)
        for text, consumed, weight in parts:
            read += consumed
            documents += weight
            size = len(text.encode("utf-8", "replace"))
            sampled += size
            counts = Counter(text)
            letters = sum(count for character, count in counts.items() if character.isalpha())
            han = sum(count for character, count in counts.items() if HAN.match(character))
            if letters and han / letters >= Filters().chinese_share:
                chinese += size
            source.characters += counts
            if len(source.openings) < 3 and (opening := OPENING.search(text[:2000])):
                source.openings.append(opening[0].strip()[:200])
    if not sampled:
        raise UserError(f"{source.path}: no text found")
    scale = max(total / read, 1.0)
    source.sampled = scale > 1.01
    source.text_bytes, source.documents, source.chinese = sampled * scale, documents * scale, chinese / sampled
    if source.reader == "text":
        source.documents = float(len(files))


def _json_lines(source: Surveyed, file: Path, budget: int) -> Iterator[tuple[str, float, float]]:
    """(text, bytes on disk, documents) of lines from the beginning, and of a big plain file from further on."""
    size = file.stat().st_size
    with _opened(file) as raw:
        packed = file.suffix == ".gz"
        stream: Any = gzip.GzipFile(fileobj=_SmallReads(raw)) if packed else raw  # pyright: ignore[reportArgumentType]
        slices = 1 if packed or size <= budget else SLICES
        for index in range(slices):
            if index:
                raw.seek(size * index // slices)
                raw.readline()  # the rest of a line
            left, number, before = budget // slices, 0, 0
            while left > 0 and (line := _line(stream, file)):
                number += 1
                left -= len(line)
                after = raw.tell() if packed else 0
                text = _field(source, line, f"{file}:{number}" if not index else str(file))
                yield text, (after - before) if packed else len(line), 1.0 if line.strip() else 0.0
                before = after


class _SmallReads:
    """A file that is read in small pieces, so that its position says how much of the text has been unpacked."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def read(self, size: int = -1) -> bytes:
        return self.file.read(min(size, 8192) if size >= 0 else 8192)


def _line(stream: IO[bytes], file: Path) -> bytes:
    try:
        return stream.readline()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{file}: damaged gzip ({error}); copy it again") from None


def _field(source: Surveyed, line: bytes, at: str) -> str:
    """The text of a JSON line; the first line decides which field it is in."""
    if not line.strip():
        return ""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError(f"{at}: is not UTF-8; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{at}: not JSON ({error.msg}); every line must be one JSON object") from None
    texts = {key: value for key, value in record.items() if isinstance(value, str)} if isinstance(record, dict) else {}
    if not source.text_field:
        known = [name for name in TEXT_FIELDS if name in texts]
        source.text_field = (known or sorted(texts, key=lambda key: -len(texts[key])) or ["text"])[0]
    if source.text_field not in texts:
        has = ", ".join(map(str, list(record)[:8])) if isinstance(record, dict) else type(record).__name__
        raise UserError(f"{at}: no text in a field {source.text_field!r} (the line has: {has})")
    return texts[source.text_field]


def _text_file(file: Path, budget: int) -> Iterator[tuple[str, float, float]]:
    if file.stat().st_size > LARGEST_TEXT_FILE:
        raise UserError(f"{file}: larger than 1 GiB; a text file is one document: split it, or write JSON lines")
    with _opened(file) as stream:
        data = stream.read(budget)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.end < len(data) or len(data) < budget:  # not merely cut within a character
            raise UserError(f"{file}: invalid UTF-8 at byte {error.start}; save it as UTF-8") from None
        text = data[: error.start].decode("utf-8-sig")
    yield text, len(data), 1.0


def _opened(file: Path) -> Any:
    try:
        return open(file, "rb")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
