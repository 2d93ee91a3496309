"""The bytes of a file, plain, gzip or zstd, in blocks that end with a line, in bounded memory."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from xmodel.corpus.batches import MAX_DOCUMENT_BYTES
from xmodel.errors import UserError

BLOCK = 8 << 20  # bytes of a block, but for a line that is longer
READ = 1 << 20
COMPRESSED = (".gz", ".zst")


class Block(NamedTuple):
    """Whole lines, or what is wrong: `cut` the compressed file ends here, `long` a line is beyond the bound."""

    data: bytes
    offset: int  # where it begins in the (unpacked) file
    wrong: str = ""  # "", "cut" or "long"
    detail: str = ""


class Damaged(Exception):
    """A compressed file that ends too early or cannot be unpacked."""


def opened(path: Path) -> Any:
    """The file, opened for reading bytes.

    Raises:
        UserError: it cannot be.
    """
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def blocks(path: Path, start: int, stop: int) -> Iterator[Block]:
    """The lines of a file that begin in [start, stop), in blocks.

    Args:
        start, stop: bytes of a plain file; 0, 0: the whole file, the only choice for a compressed one.

    Raises:
        UserError: the file cannot be read.
    """
    with opened(path) as file:
        if path.suffix in COMPRESSED:
            pieces = _gunzip(file) if path.suffix == ".gz" else _unzstd(file)
            yield from _whole_lines(pieces, 0)
        else:
            first = _line_start(file, start)
            last = _line_start(file, stop) if stop else None
            file.seek(first)
            yield from _whole_lines(_plain(file, last), first)


def _line_start(file: Any, position: int) -> int:
    """Where the first line begins that begins at `position` or after it."""
    if position == 0:
        return 0
    file.seek(position - 1)
    while piece := file.readline(READ):
        if piece.endswith(b"\n"):
            break
    return file.tell()


def _plain(file: Any, stop: int | None) -> Iterator[bytes]:
    left = -1 if stop is None else stop - file.tell()
    while piece := file.read(READ if left < 0 else min(READ, left)):
        left -= len(piece) if left > 0 else 0
        yield piece
        if left == 0:
            return


def _gunzip(file: Any) -> Iterator[bytes]:
    """Unpack the members of a gzip file (RFC 1952); zeros after a member are padding."""
    engine, inside = zlib.decompressobj(31), False  # gzip headers only
    while data := file.read(READ // 4):
        while data:
            if not inside:
                engine, inside = zlib.decompressobj(31), True
            try:
                piece = engine.decompress(data, READ)
            except zlib.error as error:
                raise Damaged(f"damaged gzip ({error})") from None
            if piece:
                yield piece
            data = engine.unconsumed_tail
            if engine.eof:
                data, inside = engine.unused_data.lstrip(b"\0"), False
    if inside:
        raise Damaged("truncated gzip, the end is missing")


def _unzstd(file: Any) -> Iterator[bytes]:
    stream = pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")
    while True:
        try:
            piece = stream.read(READ // 16)  # what a failing call has unpacked is lost
        except OSError as error:
            if "Truncated" in str(error):
                raise Damaged("truncated zstd, the end is missing") from None
            raise Damaged(f"damaged zstd ({' '.join(str(error).split())})") from None
        if not piece:
            return
        yield piece


def _whole_lines(pieces: Iterator[bytes], offset: int) -> Iterator[Block]:
    held: list[bytes] = []  # a list, so that a long line costs no repeated copying
    size = 0
    skipping = False  # inside a line that is beyond the bound
    try:
        for piece in pieces:
            if skipping:
                end = piece.find(b"\n") + 1
                offset += end or len(piece)
                if not end:
                    continue
                piece, skipping = piece[end:], False
            held.append(piece)
            size += len(piece)
            if size < BLOCK:
                continue
            end = piece.rfind(b"\n") + 1
            if end:
                data = b"".join((*held[:-1], piece[:end]))
                yield Block(data, offset)
                offset += len(data)
                held, size = [piece[end:]], len(piece) - end
            elif size > MAX_DOCUMENT_BYTES + BLOCK:
                data = b"".join(held)
                end = data.rfind(b"\n") + 1
                if end:
                    yield Block(data[:end], offset)
                offset += end
                yield Block(data[end : end + READ], offset, "long")
                offset += size - end
                held, size, skipping = [], 0, True
    except Damaged as error:
        data = b"".join(held)
        end = data.rfind(b"\n") + 1
        if end:
            yield Block(data[:end], offset)
        yield Block(data[end:], offset + end, "cut", str(error))
        return
    if size:
        yield Block(b"".join(held), offset)
