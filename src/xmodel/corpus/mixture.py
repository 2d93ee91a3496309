"""The weighted mixture as text: what the tokenizer is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from xmodel.recipe.settings import Corpus


def sample_texts(folder: Path, settings: Corpus, most_bytes: int) -> Iterator[str]:
    """Documents of the training text in the proportions of the mixture, at most about `most_bytes` of UTF-8.

    Each source may give its weight's share of `most_bytes`. One that has less gives all; one that has more gives
    documents spread evenly over its whole length (an error-diffusion stride: no randomness, no memory).

    Args:
        folder: the corpus folder of a run (train/<source>.parquet).
    """
    for source in settings.sources:
        if source.weight == 0:
            continue
        file = pq.ParquetFile(folder / "train" / f"{source.name}.parquet")
        sizes = [file.metadata.row_group(group).column(_column(file, "text")) for group in range(file.num_row_groups)]
        available = sum(size.total_uncompressed_size for size in sizes)
        share = min(1.0, source.weight * most_bytes / max(available, 1))
        due = 0.0
        for batch in file.iter_batches(batch_size=1024, columns=["text"]):
            for text in batch.column(0).to_pylist():
                due += share
                if due >= 1.0:
                    due -= 1.0
                    yield text


def _column(file: pq.ParquetFile, name: str) -> int:
    return file.schema_arrow.names.index(name)
