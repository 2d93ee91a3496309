"""Token shards written by hand: known documents, no tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmodel.files import checksum, write_json
from xmodel.tokens.shards import END, PIECE_BYTES, TOKEN

VOCABULARY = 903


def write_shards(
    folder: Path, train: Mapping[str, Sequence[Sequence[int]]], validation: Mapping[str, Sequence[Sequence[int]]]
) -> dict[str, list[list[int]]]:
    """A tokens folder as the tokens stage leaves it: for each source the document lengths, shard by shard.

    Returns:
        The documents of each training source, `1 ... 2` with ids from 3 to 902 in between.
    """
    documents: dict[str, list[list[int]]] = {}
    manifest: dict[str, dict[str, Any]] = {"train": {}, "validation": {}}
    number = 3
    for split, sources in (("train", train), ("validation", validation)):
        for name, lengths in sources.items():
            shards, found = [], []
            for index, sizes in enumerate(lengths):
                rows = []
                for size in sizes:
                    rows.append([1, *((number + i * i) % 900 + 3 for i in range(size - 2)), 2])
                    number += 7
                stem = folder / f"{split}/{name}-{index:05d}"
                stem.parent.mkdir(parents=True, exist_ok=True)
                tokens, ends = stem.with_suffix(".bin"), stem.with_suffix(".ends")
                np.concatenate(rows).astype(TOKEN).tofile(tokens)
                np.cumsum(sizes).astype(END).tofile(ends)
                entry = {"file": f"{split}/{tokens.name}", "tokens": sum(sizes), "documents": len(sizes)}
                shards.append(entry | {"checksum": checksum(tokens), "ends_checksum": checksum(ends)})
                found += rows
            manifest[split][name] = {"shards": shards, "documents": len(found), "tokens": sum(map(len, found))}
            if split == "train":
                documents[name] = found
    np.array([2 * (i > 2) for i in range(VOCABULARY)], TOKEN).tofile(folder / PIECE_BYTES)
    pieces = {"file": PIECE_BYTES, "checksum": checksum(folder / PIECE_BYTES)}
    write_json(folder / "manifest.json", manifest | {"vocab_size": VOCABULARY, "piece_bytes": pieces})
    return documents
