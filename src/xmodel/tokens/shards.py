"""Token shards: flat uint16 files with document ends, a manifest with sizes and checksums, and windows read from them.

Every document is `[<s>] text </s>`. A shard is a pair of little-endian files: `<name>-00000.bin`, uint16 token ids, and
`<name>-00000.ends`, int64 offsets in this shard at which its documents end. A document is never split between shards;
readers see the shards of a source as one long array. write.py writes them.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from xmodel.errors import MachineError, UserError
from xmodel.files import checksum, read_json

TOKEN = np.dtype("<u2")
END = np.dtype("<i8")
PIECE_BYTES = "piece-bytes.bin"
PADDING = -100  # stands in a batch where there is no token; a target of -100 gives no loss


def verify(folder: Path, rank: int = 0, world: int = 1) -> None:
    """Read every file that the manifest lists, or this rank's share of them, and compare its checksum.

    Raises:
        MachineError: names the file that is missing or damaged.
    """
    manifest = read_json(folder / "manifest.json")
    expected = {manifest["piece_bytes"]["file"]: manifest["piece_bytes"]["checksum"]}
    for split in ("train", "validation"):
        for entry in manifest[split].values():
            for shard in entry["shards"]:
                expected[shard["file"]] = shard["checksum"]
                expected[str(Path(shard["file"]).with_suffix(".ends"))] = shard["ends_checksum"]

    def check(name: str) -> None:
        path = folder / name
        if not path.is_file():
            raise MachineError(f"{path}: missing; run the tokens stage again")
        if checksum(path) != expected[name]:
            raise MachineError(f"{path}: damaged (its checksum is not the manifest's); run the tokens stage again")

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing does not hold Python's lock
        list(pool.map(check, list(expected)[rank::world]))


class Windows(Protocol):
    """A source as windows: concatenated (TokenSource) or packed (packing.py)."""

    def n_windows(self, sequence_length: int) -> int: ...

    def window(self, i: int, sequence_length: int) -> np.ndarray: ...


class TokenSource:
    """The tokens of one source as one array, memory-mapped over its shards."""

    def __init__(self, name: str, shards: Sequence[np.ndarray]) -> None:
        self.name = name
        self._shards = list(shards)
        self._starts = list(accumulate((len(shard) for shard in shards), initial=0))
        self.tokens = self._starts[-1]

    def read(self, start: int, stop: int) -> np.ndarray:
        """uint16 [stop - start]: the tokens from `start` to before `stop`, across shard boundaries."""
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"{self.name}: tokens {start} to {stop} of {self.tokens}")
        shard = bisect.bisect_right(self._starts, start, hi=len(self._shards)) - 1
        offset = start - self._starts[shard]
        if stop <= self._starts[shard + 1]:
            return self._shards[shard][offset : offset + stop - start]
        parts = [self._shards[shard][offset:]]
        while self._starts[shard + 1] < stop:
            shard += 1
            parts.append(self._shards[shard][: stop - self._starts[shard]])
        return np.concatenate(parts)

    def n_windows(self, sequence_length: int) -> int:
        """How many windows of `sequence_length` inputs, each with its next token as target, follow one another.

        Raises:
            UserError: the source is shorter than one window.
        """
        windows = (self.tokens - 1) // sequence_length
        if windows < 1:
            raise UserError(
                f"source {self.name!r} has {self.tokens:,} tokens, fewer than one sequence of model.context_length = "
                f"{sequence_length:,} and its next token; give it more text or set model.context_length to at most "
                f"{max(self.tokens - 1, 0):,}"
            )
        return windows

    def window(self, i: int, sequence_length: int) -> np.ndarray:
        """uint16 [sequence_length + 1]: window `i`; inputs are `[:-1]`, targets `[1:]`. Windows share no target."""
        return self.read(i * sequence_length, (i + 1) * sequence_length + 1)


def open_sources(folder: Path, split: str = "train") -> dict[str, TokenSource]:
    """Map the shards of a split ("train": by source; "validation": by language); sizes are checked, contents are not.

    Raises:
        MachineError: the manifest or a shard is missing, or a shard has another size than the manifest says.
    """
    manifest = read_json(folder / "manifest.json")
    return {
        name: TokenSource(name, [_map(folder, shard) for shard in entry["shards"]])
        for name, entry in manifest[split].items()
    }


def end_id(folder: Path) -> int:
    """The token that ends every document (`</s>`, in whatever tokenizer), as it stands in the training shards."""
    manifest = read_json(folder / "manifest.json")
    name, entry = next(iter(manifest["train"].items()))
    ends_D = np.fromfile((folder / entry["shards"][0]["file"]).with_suffix(".ends"), END, count=1)
    return int(open_sources(folder)[name].read(int(ends_D[0]) - 1, int(ends_D[0]))[0])


def _map(folder: Path, shard: Mapping[str, Any]) -> np.ndarray:
    path = folder / shard["file"]
    if not path.is_file():
        raise MachineError(f"{path}: missing; run the tokens stage again")
    size, expected = path.stat().st_size, shard["tokens"] * TOKEN.itemsize
    if size != expected:
        raise MachineError(f"{path}: damaged, {size:,} bytes instead of {expected:,}; run the tokens stage again")
    return np.memmap(path, TOKEN, mode="r").view(np.ndarray)


def read_batch(
    sources: Mapping[str, Windows], samples: Sequence[tuple[str, int, int]], sequence_length: int
) -> np.ndarray:
    """int64 [len(samples), sequence_length + 1]: the window of each (source, epoch, window) of order.py."""
    batch = np.empty((len(samples), sequence_length + 1), np.int64)
    for row, (source, _, window) in zip(batch, samples, strict=True):
        row[:] = sources[source].window(window, sequence_length)
    return batch


def validation_batches(
    folder: Path, language: str, sequence_length: int, max_tokens: int, batch: int = 8
) -> Iterator[tuple[np.ndarray, int]]:
    """Windows of the held-out text of a language, and the UTF-8 bytes that their targets stand for.

    The windows do not overlap, are the same at every call, and are spread evenly over the whole held-out text when
    `max_tokens` allows only some of them. The bytes are exact for any choice of windows: the tokenizer is lossless, so
    each id stands for a fixed number of bytes of text (control tokens for none), and these add up to the text's size.
    Bits per byte is the summed loss in nats over all targets / ln 2 / the summed bytes.

    Args:
        folder: the tokens folder.
        language: "en" or "zh".
        sequence_length: inputs in a window; a text shorter than one window gives one shorter window.
        max_tokens: about how many targets to give at most, at least one window.
        batch: windows yielded at a time.

    Yields:
        (int64 [at most batch, sequence_length + 1], bytes of the targets `[:, 1:]`)

    Raises:
        UserError: no held-out text in this language.
        MachineError: a file is missing or damaged.
    """
    source = open_sources(folder, "validation").get(language)
    if source is None or source.tokens < 2:
        raise UserError(
            f"no held-out text in language {language!r}: raise corpus.holdout or add a corpus.validation source"
        )
    length = min(sequence_length, source.tokens - 1)
    windows = (source.tokens - 1) // length
    chosen = min(windows, max(1, max_tokens // length))
    sizes = np.fromfile(folder / PIECE_BYTES, TOKEN)
    for first in range(0, chosen, batch):
        rows = [(language, 0, i * windows // chosen) for i in range(first, min(first + batch, chosen))]
        tokens = read_batch({language: source}, rows, length)
        yield tokens, int(sizes[tokens[:, 1:]].sum(dtype=np.int64))
