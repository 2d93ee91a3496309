"""Nothing half-written is ever read: temporary name, fsync, rename. Shared by every stage that writes."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from xmodel.errors import MachineError, UserError

DRAWINGS = (".svg", ".png", ".pdf")  # what a plot can be written as
PARTIAL = ".partial"  # suffix of everything that is not finished; readers ignore it, writers may delete it


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable (POSIX: the directory itself has to be synced)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_write(path: Path, mode: str = "wb", *, shared: bool = False) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; on success it replaces `path`, on any error it is removed.

    `shared`: another process, on any machine, may write the same path at the same time; each does so under a name of
    its own, and the last one stands.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f".{socket.gethostname()}-{os.getpid()}" if shared else ""
    partial = path.with_name(path.name + own + PARTIAL)
    encoding = None if "b" in mode else "utf-8"
    try:
        with open(partial, mode, encoding=encoding) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes the place of `path`, on any error it is removed.

    An existing `path` is set aside under a partial name before the swap, so at no moment does a reader find a mix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for file in sorted(partial.rglob("*")):
            if file.is_file():
                with open(file, "rb") as stream:
                    os.fsync(stream.fileno())
        sync_folder(partial)
        old = path.with_name(path.name + ".old" + PARTIAL)
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            os.replace(path, old)
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: Any, *, shared: bool = False) -> None:
    """Write `value` as indented UTF-8 JSON, atomically."""
    with atomic_write(path, "w", shared=shared) as stream:
        json.dump(value, stream, ensure_ascii=False, indent=2)
        stream.write("\n")


def read_json(path: Path) -> Any:
    """Read a JSON file that this software wrote.

    Raises:
        MachineError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MachineError(f"{path}: missing") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise MachineError(f"{path}: damaged ({error})") from None


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        MachineError: the file is missing or damaged, or holds something else.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise MachineError(f"{path}: damaged (no object)")
    return found


def nearest_folder(folder: Path) -> str:
    """Ends a message about a folder that does not exist: `; did you mean runs/quickstart?`, or nothing."""
    names = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
    near = difflib.get_close_matches(folder.name, names, 1, 0.5)
    return f"; did you mean {folder.parent / near[0]}?" if near else ""


def checksum(path: Path) -> str:
    """BLAKE2b-128 of a file's bytes, as 32 hex digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def check_drawing(path: Path) -> None:
    """Raises UserError: the name of the file that `--plot` names does not say a format that is drawn."""
    if path.suffix.lower() not in DRAWINGS:
        raise UserError(f"--plot {path}: cannot be drawn in this format; end its name in {', '.join(DRAWINGS)}")
