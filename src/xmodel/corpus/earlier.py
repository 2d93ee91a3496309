"""The index of a finished corpus (`corpus.keep_index`), by which a later one leaves out what the earlier one has
(`corpus.index`), without reading its text again.

    documents.parquet   id, source, signature, kept: the documents of earlier indexes first, then the corpus's own
    near/               what the search for near duplicates knows of the same documents in the same order
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xmodel.corpus.deduplicate import signatures
from xmodel.corpus.ledger import Ledger
from xmodel.corpus.mapping import Job, shard_batches
from xmodel.corpus.shards import in_order
from xmodel.errors import UserError
from xmodel.files import atomic_write

DOCUMENTS = pa.schema(
    [("id", pa.string()), ("source", pa.string()), ("signature", pa.binary(16)), ("kept", pa.bool_())]
)
NEAR_FILES = ("records.npy", "kept.npy", "index.json")


class Earlier:
    """An index, opened to be read.

    Raises:
        UserError: there is none at the path, or it cannot be read.
    """

    def __init__(self, path: Path, near: bool) -> None:
        self.path = path
        file = path / "documents.parquet"
        if not file.is_file():
            raise UserError(
                f"corpus.index: {path} holds no index of a corpus; name the folder corpus/index of a run that was made "
                "with corpus.keep_index=true"
            )
        if near and not (path / "near" / "index.json").is_file():
            raise UserError(
                f"corpus.index: {path} was made without near duplicates; set corpus.near_duplicates.mode=off, or make "
                "it again"
            )
        try:
            with pq.ParquetFile(file) as opened:
                self.documents: int = opened.metadata.num_rows
        except pa.ArrowInvalid as error:
            raise UserError(f"corpus.index: {file}: is no readable Parquet file ({error})") from None

    def __len__(self) -> int:
        return self.documents

    def signatures(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(number of the first, hashes uint64 [D, 2], kept bool [D]) of all documents, batch after batch."""
        first = 0
        with pq.ParquetFile(self.path / "documents.parquet") as file:
            for batch in file.iter_batches(columns=["signature", "kept"]):
                yield first, signatures(batch), batch["kept"].to_numpy(zero_copy_only=False)
                first += len(batch)

    def document(self, number: int) -> dict[str, str]:
        """The "id" and "source" of a document."""
        with pq.ParquetFile(self.path / "documents.parquet") as file:
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if number < rows:
                    found = file.read_row_group(group, columns=["id", "source"]).slice(number, 1).to_pylist()[0]
                    return {"id": found["id"], "source": found["source"]}
                number -= rows
        raise IndexError(f"{self.path}: no document of this number")


def opened(job: Job) -> Earlier | None:
    """The index that the recipe names, if it names one."""
    return Earlier(Path(job.settings.index), job.near) if job.settings.index else None


def write_index(job: Job, ledger: Ledger, folder: Path) -> None:
    """Write the index of a corpus that is decided, its earlier index included."""
    earlier = opened(job)
    with atomic_write(folder / "documents.parquet") as stream, pq.ParquetWriter(stream, DOCUMENTS) as writer:
        if earlier is not None:
            with pq.ParquetFile(earlier.path / "documents.parquet") as file:
                for batch in file.iter_batches():
                    writer.write_batch(batch)
        names = [source.name for _, _, source in in_order(job.settings)]
        for first, shard in zip(ledger.starts_S1.tolist(), ledger.shards, strict=False):
            row = first
            signed = shard_batches(job.path(shard, "signatures.arrow"))
            ids = shard_batches(job.path(shard, "documents.arrow"), ["id"])
            for batch, named in zip(signed, ids, strict=True):
                kept_D = batch["alive"].to_numpy(zero_copy_only=False) & (ledger.reason_N[row : row + len(batch)] == 0)
                source = pa.repeat(names[shard.source], len(batch))
                columns = [named["id"], source, batch["signature"], pa.array(kept_D)]
                writer.write_batch(pa.record_batch(columns, schema=DOCUMENTS))
                row += len(batch)
    if job.near:
        (folder / "near").mkdir(exist_ok=True)
        for name in NEAR_FILES:
            shutil.copyfile(job.work / "near" / name, folder / "near" / name)
