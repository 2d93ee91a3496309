"""ARPA files, the exchange format of n-gram models, plain or gzipped: numbers are log10, parted from words by a tab."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numba
import numpy as np

from xmodel.corpus.kneser_ney.estimate import NGrams
from xmodel.corpus.kneser_ney.units import END, Vocabulary, add_word, find_word, hash_word, make_room, new_vocabulary
from xmodel.errors import UserError
from xmodel.files import atomic_write

BLOCK_BYTES = 8 << 20
LINE_BYTES = 64  # room for what is not a word in a line
DECIMALS = 7

FINE, BAD_NUMBER, BAD_WORD, BAD_FIELDS = 0, 1, 2, 3
COMPLAINTS = {
    BAD_NUMBER: "does not begin with a number",
    BAD_WORD: "has a word that is not among the 1-grams, or twice among them",
    BAD_FIELDS: "has too few or too many fields",
}


@dataclass
class Arpa:
    """A model as an ARPA file has it, in memory."""

    vocabulary: Vocabulary
    counts: list[int]
    blocks: list[NGrams]  # of each order

    def ngrams(self, order: int) -> Iterator[NGrams]:
        """The n-grams of one order."""
        yield self.blocks[order - 1]


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@numba.njit(cache=True, nogil=True)
def _write_number(text_X, at, number):
    """Write a number with seven decimals; returns where it ends."""
    scaled = np.int64(np.round(abs(np.float64(number)) * 10**DECIMALS))
    if number < 0 and scaled > 0:
        text_X[at] = 45
        at += 1
    whole, part = scaled // 10**DECIMALS, scaled % 10**DECIMALS
    digits = 1
    while 10**digits <= whole:
        digits += 1
    for place in range(digits - 1, -1, -1):
        text_X[at] = 48 + whole // 10**place % 10
        at += 1
    if part > 0:
        text_X[at] = 46
        at += 1
        while part > 0:
            part *= 10
            text_X[at] = 48 + part // 10**DECIMALS
            part %= 10**DECIMALS
            at += 1
    return at


@numba.njit(cache=True, nogil=True)
def _format(words_Gn, logs_G2, words_X, ends_V, with_backoff):
    room = 0
    for row in range(len(words_Gn)):
        for word in words_Gn[row]:
            room += ends_V[word] - (ends_V[word - 1] if word > 0 else 0) + 1
    text_X = np.empty(room + LINE_BYTES * len(words_Gn), np.uint8)
    at = 0
    for row in range(len(words_Gn)):
        at = _write_number(text_X, at, logs_G2[row, 0])
        for column in range(words_Gn.shape[1]):
            text_X[at] = 32 if column else 9
            at += 1
            word = words_Gn[row, column]
            for source in range(ends_V[word - 1] if word > 0 else 0, ends_V[word]):
                text_X[at] = words_X[source]
                at += 1
        if with_backoff:
            text_X[at] = 9
            at = _write_number(text_X, at + 1, logs_G2[row, 1])
        text_X[at] = 10
        at += 1
    return text_X[:at]


def write_arpa(
    path: Path, vocabulary: Vocabulary, counts: list[int], ngrams: Callable[[int], Iterable[NGrams]]
) -> None:
    """Write a model as an ARPA file, atomically; gzipped when its name ends in .gz.

    Args:
        path: the file.
        vocabulary: the words.
        counts: n-grams of each order.
        ngrams: order -> its n-grams in blocks, as `Estimate.ngrams` gives them.
    """
    with atomic_write(path) as raw:
        # No time stamp: the same model gives the same bytes.
        stream = gzip.GzipFile("", "wb", 6, raw, mtime=0) if path.suffix == ".gz" else raw
        stream.write(b"\\data\\\n")
        stream.writelines(b"ngram %d=%d\n" % (order, count) for order, count in enumerate(counts, start=1))
        for order in range(1, len(counts) + 1):
            stream.write(b"\n\\%d-grams:\n" % order)
            for block in ngrams(order):
                with_backoff = order < len(counts)
                text_X = _format(block.words_Gn, block.logs_G2, vocabulary.words_X, vocabulary.ends_V, with_backoff)
                stream.write(text_X.tobytes())
        stream.write(b"\n\\end\\\n")
        if stream is not raw:
            stream.close()


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@numba.njit(cache=True, nogil=True)
def _read_number(data_X, at, end):
    """A decimal number that begins at `at`, and where it ends; the end is `at` where there is none."""
    first = at
    negative = at < end and data_X[at] == 45
    if at < end and (data_X[at] == 45 or data_X[at] == 43):
        at += 1
    value = np.float64(0)
    digits = 0
    scale = 0
    point = False
    while at < end and (48 <= data_X[at] <= 57 or (data_X[at] == 46 and not point)):
        if data_X[at] == 46:
            point = True
        else:
            value = value * 10 + (data_X[at] - 48)
            digits += 1
            scale += point
        at += 1
    if digits == 0:
        return value, first
    if at < end and (data_X[at] == 101 or data_X[at] == 69):  # e, E
        at += 1
        sign = -1 if at < end and data_X[at] == 45 else 1
        if at < end and (data_X[at] == 45 or data_X[at] == 43):
            at += 1
        exponent = 0
        while at < end and 48 <= data_X[at] <= 57:
            exponent = exponent * 10 + (data_X[at] - 48)
            at += 1
        scale -= sign * exponent
    value = value / 10.0**scale if scale > 0 else value * 10.0 ** (-scale)
    return -value if negative else value, at


@numba.njit(cache=True, nogil=True)
def _is_blank(byte):
    return byte == 32 or byte == 9 or byte == 13


@numba.njit(cache=True, nogil=True)
def _parse(data_X, wanted, words_Gn, logs_G2, slots_S2, words_X, ends_V, size):
    """Parse whole lines of a section until an empty one, at most `wanted` of them.

    Returns:
        Lines parsed, where the next one begins, the complaint about it, and the size of the vocabulary.
    """
    order = words_Gn.shape[1]
    rows = at = 0
    complaint = FINE
    while at < len(data_X) and rows < wanted:
        end = at
        while end < len(data_X) and data_X[end] != 10:
            end += 1
        begin = at
        while begin < end and _is_blank(data_X[begin]):
            begin += 1
        if begin == end or data_X[begin] == 92:  # an empty line, or a backslash: the section ends
            break
        log, begin = _read_number(data_X, at, end)
        if begin == at:
            complaint = BAD_NUMBER
            break
        logs_G2[rows, 0] = log
        logs_G2[rows, 1] = 0
        for column in range(order):
            while begin < end and _is_blank(data_X[begin]):
                begin += 1
            last = begin
            while last < end and not _is_blank(data_X[last]):
                last += 1
            if last == begin:
                complaint = BAD_FIELDS
                break
            word_X = data_X[begin:last]
            value = hash_word(word_X)
            slot = find_word(slots_S2, value)
            number = np.int64(slots_S2[slot, 1])
            known = slots_S2[slot, 0] != 0
            if known if order == 1 and number > END else not known and order > 1:
                complaint = BAD_WORD
                break
            if not known:
                add_word(slots_S2, words_X, ends_V, size, word_X, value)
                number = size
                size += 1
            words_Gn[rows, column] = number
            begin = last
        if complaint != FINE:
            break
        while begin < end and _is_blank(data_X[begin]):
            begin += 1
        if begin < end:
            backoff, behind = _read_number(data_X, begin, end)
            while behind < end and _is_blank(data_X[behind]):
                behind += 1
            if behind != end:
                complaint = BAD_FIELDS
                break
            logs_G2[rows, 1] = backoff
        rows += 1
        at = end + 1
    return rows, min(at, len(data_X)), complaint, size


class _Lines:
    """The bytes of a file in blocks of whole lines."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, path: Path) -> None:
        self.stream, self.path = stream, path
        self.data = b""
        self.at = 0
        self.number = 1  # of the next line

    def block(self) -> bytes:
        """What has been read but not used, at least one whole line; empty at the end of the file."""
        if self.at == len(self.data):
            try:
                self.data = self.stream.read(BLOCK_BYTES)
                self.data += self.stream.readline()
            except (OSError, EOFError, zlib.error) as error:
                raise UserError(f"{self.path}: cannot be read as an ARPA file ({error})") from None
            self.at = 0
        return self.data[self.at :]

    def use(self, size: int, lines: int) -> None:
        self.at += size
        self.number += lines

    def line(self) -> str | None:
        """The next line, without blanks around; None at the end of the file."""
        data = self.block()
        if not data:
            return None
        end = data.find(b"\n")
        end = len(data) if end < 0 else end + 1
        self.use(end, 1)
        return data[:end].decode("utf-8", "replace").strip()

    def wrong(self, what: str, *, read: bool = True) -> UserError:
        """The error to raise about the line that was just read, or about the next one."""
        return UserError(f"{self.path}, line {self.number - read}: {what}")


def read_arpa(path: Path) -> Arpa:
    """Read an ARPA file, plain or gzipped, into memory.

    Raises:
        UserError: it is not a whole ARPA file; the message says which line is wrong.
    """
    with ExitStack() as files:
        try:
            raw = files.enter_context(open(path, "rb"))
            stream = files.enter_context(gzip.open(raw)) if path.suffix == ".gz" else raw
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        lines = _Lines(stream, path)
        counts = _read_header(lines)
        vocabulary = new_vocabulary()
        blocks = [_read_section(lines, order, count, vocabulary) for order, count in enumerate(counts, start=1)]
        if _next_line(lines) != "\\end\\":
            raise lines.wrong("the file ends without \\end\\, or has more n-grams than it states")
    counts[0] = vocabulary.size
    return Arpa(vocabulary, counts, blocks)


def _next_line(lines: _Lines) -> str | None:
    while (line := lines.line()) == "":
        pass
    return line


def _read_header(lines: _Lines) -> list[int]:
    if _next_line(lines) != "\\data\\":
        raise lines.wrong("is no ARPA file: it does not begin with \\data\\")
    counts: list[int] = []
    while line := lines.line():
        found = re.fullmatch(r"ngram\s+(\d+)\s*=\s*(\d+)", line)
        if not found or int(found[1]) != len(counts) + 1:
            raise lines.wrong(f"expected `ngram {len(counts) + 1}=...`, found `{line[:60]}`")
        counts.append(int(found[2]))
    if not counts:
        raise lines.wrong("\\data\\ states no numbers of n-grams")
    return counts


def _read_section(lines: _Lines, order: int, count: int, vocabulary: Vocabulary) -> NGrams:
    title = _next_line(lines)
    if title != f"\\{order}-grams:":
        raise lines.wrong(f"expected \\{order}-grams:, found `{(title or 'the end of the file')[:60]}`")
    words_Gn = np.empty((count, order), np.int32)
    logs_G2 = np.empty((count, 2), np.float32)
    done = 0
    while done < count:
        data = lines.block()
        if order == 1:
            make_room(vocabulary, data.count(b"\n") + 1, len(data))
        rows, size, complaint, vocabulary.size = _parse(
            np.frombuffer(data, np.uint8).copy(), count - done, words_Gn[done:], logs_G2[done:],
            vocabulary.slots_S2, vocabulary.words_X, vocabulary.ends_V, vocabulary.size,
        )  # fmt: skip
        done += rows
        lines.use(size, rows)
        if complaint != FINE:
            raise lines.wrong(COMPLAINTS[complaint], read=False)
        if done < count and (not data or size < len(data)):
            raise lines.wrong(f"{done} of {count} {order}-grams, then something else", read=False)
    return NGrams(words_Gn, logs_G2)
