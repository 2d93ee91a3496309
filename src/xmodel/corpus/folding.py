"""The form in which texts are compared: two texts that a reader would call the same fold to the same bytes.

Folding is Unicode's compatibility decomposition (NFKD, UAX #15) and full case folding, applied to each code point by
itself; white space of any kind and length becomes one space; control and invisible format characters vanish; a
traditional Chinese character becomes the simplified one (traditional.txt). It serves hashing and searching only, the
text itself is never changed.

Traditional to simplified is many to one almost everywhere, so a table of characters is enough for two copies to meet:
where a converter decides by the phrase (乾坤 but 干燥, 著名 but 走着), all the forms it chooses among fold to one.
What stays apart is what converters word anew (軟體, 软件).

Working code point by code point makes it a table look-up; the one difference from NFKD of the whole string is the
order of several combining marks on one letter. Code points beyond the first 65,536 stay as they are.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from importlib.resources import files

import numba
import numpy as np
import pyarrow as pa

from xmodel.corpus.batches import with_column
from xmodel.corpus.utf8 import code_point, utf8_buffers

SPACE = 32


def fold_character(character: str) -> str:
    """What one character folds to; white space folds to one space."""
    if character.isspace():
        return " "
    if unicodedata.category(character) in ("Cc", "Cf", "Cs"):
        return ""
    return unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold()).translate(simplified())


@cache
def simplified() -> dict[int, str]:
    """The simplified character for each traditional one, as `str.translate` wants it."""
    rows = files("xmodel.corpus").joinpath("traditional.txt").read_text(encoding="utf-8").splitlines()
    return {ord(form): row[0] for row in rows if not row.startswith("#") for form in row[1:]}


@cache
def fold_table() -> tuple[np.ndarray, np.ndarray]:
    """The folded UTF-8 of each of the first 65,536 code points: starts int32 [65537], bytes uint8."""
    pieces = [fold_character(chr(point)).encode() for point in range(0x10000)]
    starts = np.zeros(len(pieces) + 1, np.int32)
    np.cumsum([len(piece) for piece in pieces], out=starts[1:])
    return starts, np.frombuffer(b"".join(pieces), np.uint8)


@numba.njit(cache=True, nogil=True)
def _fold(offsets_D1, data_X, starts, pieces):
    documents = len(offsets_D1) - 1
    ascii_table = np.zeros(128, np.uint8)  # 0: vanishes
    for point in range(128):
        if starts[point] < starts[point + 1]:
            ascii_table[point] = pieces[starts[point]]
    folded = np.empty(offsets_D1[-1] - offsets_D1[0] + 64, np.uint8)
    ends = np.zeros(documents + 1, np.int32)
    size = 0
    for document in range(documents):
        position = offsets_D1[document]
        end = offsets_D1[document + 1]
        begin = size
        space = True  # leading white space is left out
        while position < end:
            lead = np.int64(data_X[position])
            if lead < 0x80:
                byte = ascii_table[lead]
                position += 1
                folded[size] = byte
                size += (byte != 0) & ((byte != SPACE) | ~space)
                space = (byte == SPACE) | (space & (byte == 0))
                continue
            point, width = code_point(data_X, position)
            position += width
            if point >= 0x10000:
                for source in range(position - 4, position):
                    folded[size] = data_X[source]
                    size += 1
                space = False
                continue
            # Only here can the folded text outgrow the text: by a piece of 33 bytes at most.
            if size + (end - position) + 64 + (offsets_D1[-1] - end) > len(folded):
                larger = np.empty(len(folded) * 5 // 4 + 64, np.uint8)
                for source in range(size):
                    larger[source] = folded[source]
                folded = larger
            for source in range(starts[point], starts[point + 1]):
                byte = pieces[source]
                if byte != SPACE or not space:
                    folded[size] = byte
                    size += 1
                space = byte == SPACE
        if size > begin and folded[size - 1] == SPACE:  # and so is trailing white space
            size -= 1
        ends[document + 1] = size
    return ends, folded[:size]


def fold(column: pa.Array) -> pa.Array:
    """Fold a string column of D documents to a binary column of D documents."""
    if len(column) == 0:
        return pa.array([], pa.binary())
    ends, folded = _fold(*utf8_buffers(column), *fold_table())
    return pa.BinaryArray.from_buffers(pa.binary(), len(column), [None, pa.py_buffer(ends), pa.py_buffer(folded)])


def fold_texts(texts: list[str]) -> list[bytes]:
    """Fold a few texts that are at hand as strings."""
    return fold(pa.array(texts, pa.string())).to_pylist()


def folding(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The stage: adds the column `folded`."""
    return with_column(batch, "folded", fold(batch["text"]))
