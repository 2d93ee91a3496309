"""One document a file: text and code; and the modules of the running interpreter's standard library."""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from xmodel.corpus.batches import MAX_DOCUMENT_BYTES
from xmodel.corpus.sources.rows import LARGEST, SHOWN_BYTES, Intake
from xmodel.corpus.sources.streams import opened

Document = tuple[str, str, str | None, str | None]  # id, text, label of dirt, reason to be dropped

STDLIB_BYTES = 8_000  # a file of the standard library is cut into documents of about this size
# Not the library itself: installed packages, tests, bundled applications, generated tables.
STDLIB_SKIPPED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "idle_test", "lib2to3", "turtledemo", "encodings"}
    | {"pydoc_data", "__pycache__", "ensurepip"}
)


def text_file(path: Path, intake: Intake) -> Iterator[Document]:
    r"""A text file as it is, but for a byte order mark and `\r\n`; its id is its path.

    Raises:
        UserError: it cannot be read; it is not UTF-8 or too large for one document, and the source refuses such.
    """
    reason = None
    with opened(path) as stream:
        data = stream.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        message = f"larger than {LARGEST}; a text file is one document: split it, or use JSON lines"
        reason = intake.bad("too_large", str(path), message)
        data = data[:SHOWN_BYTES]
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"invalid UTF-8 at byte {error.start}; re-save as UTF-8"
        reason = reason or intake.bad("not_utf8", str(path), message)
        text = data.decode("utf-8-sig", "replace")
    yield str(path), text.replace("\r\n", "\n"), None, reason


# ── The running interpreter's standard library ───────────────────────────────────────────────────────────────────────


def stdlib_files() -> list[Path]:
    """The modules, sorted."""
    found: list[Path] = []
    for folder, folders, names in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = [name for name in folders if name not in STDLIB_SKIPPED and not name.startswith("config-")]
        found += [Path(folder, name) for name in names if name.endswith(".py") and not name.startswith("_sysconfig")]
    return sorted(found)


def stdlib_file(path: Path) -> Iterator[Document]:
    """A module, cut into documents of about `STDLIB_BYTES`."""
    root = Path(sysconfig.get_path("stdlib"))
    text = path.read_text(encoding="utf-8-sig")
    for number, part in enumerate(split_code(text, STDLIB_BYTES)):
        yield f"{path.relative_to(root).as_posix()}#{number}", part, None, None


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
