"""Tokenised texts on disk: a suite is encoded once for all checkpoints that share a tokenizer.

A file holds the ids of one list of texts, under a name that is a SHA-256 of the tokenizer and the texts: whatever
changes gives another name, so nothing that is found is ever stale.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from xmodel.files import atomic_write

FOLDER = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xmodel" / "requests"
WORTH = 200_000  # characters: less is encoded faster than it is read
KEPT = 2_000_000_000  # bytes of the cache; the files that were written first make room


def encode_cached(tokenizer: Any, texts: Sequence[str], folder: Path = FOLDER) -> list[np.ndarray]:
    """What `tokenizer.encode_batch(texts)` gives, from disk when the same was asked for before.

    Short lists are encoded at once. A cache that cannot be written or read is done without.

    Raises:
        UserError: a text holds a lone surrogate, which UTF-8 cannot represent.
    """
    if sum(map(len, texts)) < WORTH:
        return tokenizer.encode_batch(texts)
    path = folder / f"{_key(tokenizer, texts)}.npz"
    try:
        with np.load(path) as stored:
            ids_T, ends = stored["ids"], [0, *stored["ends"].tolist()]
        return [ids_T[start:end] for start, end in pairwise(ends)]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        pass  # never asked for, or not whole
    encoded = [np.asarray(ids) for ids in tokenizer.encode_batch(texts)]
    try:
        with atomic_write(path, shared=True) as stream:
            np.savez(stream, ids=np.concatenate(encoded), ends=np.cumsum([len(ids) for ids in encoded]))
        _make_room(folder)
    except OSError:
        pass  # a full disk or a home that is read-only: next time it is encoded again
    return encoded


def _make_room(folder: Path) -> None:
    kept = 0
    for path in sorted(folder.glob("*.npz"), key=lambda path: path.stat().st_mtime, reverse=True):
        kept += path.stat().st_size
        if kept > KEPT:
            path.unlink(missing_ok=True)


def fingerprint(tokenizer: Any) -> str:
    """SHA-256 of what decides a tokenizer's ids: its class and its files, or its pieces where it has none."""
    digest = hashlib.sha256(type(tokenizer).__name__.encode())
    place = Path(getattr(tokenizer, "folder", None) or getattr(tokenizer, "path", ""))
    names = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "merges.txt")
    files = [place] if place.is_file() else [place / name for name in names if (place / name).is_file()]
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    if not files:
        digest.update(b"\0".join(tokenizer.pieces))
    return digest.hexdigest()


def _key(tokenizer: Any, texts: Sequence[str]) -> str:
    digest = hashlib.sha256(fingerprint(tokenizer).encode())
    for text in texts:
        content = text.encode(errors="surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()
