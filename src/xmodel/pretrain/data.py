"""What the loop reads: training batches by step number, and the held-out windows of each language."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from xmodel.model.documents import model_inputs
from xmodel.pretrain.parallel import Place
from xmodel.recipe.batches import batch_size, samples_before
from xmodel.recipe.settings import Pretrain
from xmodel.tokens.order import DataOrder, epochs
from xmodel.tokens.packing import open_packed
from xmodel.tokens.shards import Windows, open_sources, read_batch, validation_batches


class TrainingData:
    """The training tokens in the run's order. No state: a batch follows from its step number."""

    def __init__(
        self,
        folder: Path,
        mixture: Sequence[tuple[int, Mapping[str, float]]],
        seed: int,
        sequence_length: int,
        packing: str = "concatenate",
    ) -> None:
        """Map the shards of every source that has a weight at any time.

        Args:
            mixture: (first sample, weights of the sources) of each stretch of the run; the first begins with sample 0.
            packing: "concatenate" or "best_fit", as `pretrain.packing`.

        Raises:
            UserError: a source is shorter than one sequence.
            MachineError: a shard is missing or has another size than the manifest says.
        """
        self.sequence_length = sequence_length
        used = {name for _, weights in mixture for name, weight in weights.items() if weight}
        opened: Mapping[str, Windows]
        opened = open_packed(folder, sequence_length, used) if packing == "best_fit" else open_sources(folder)
        self.sources = {name: source for name, source in opened.items() if name in used}
        self.windows = {name: source.n_windows(sequence_length) for name, source in self.sources.items()}
        (_, first), *phases = [
            (start, {name: weight for name, weight in weights.items() if name in used}) for start, weights in mixture
        ]
        self.order = DataOrder(self.windows, first, seed, phases)

    def epochs(self, samples: int) -> dict[str, float]:
        """How often a run of so many samples goes through each source."""
        return epochs(self.order, self.windows, samples)

    def batch(self, step: int, settings: Pretrain, rank: int, world: int, left_out: int = 0) -> np.ndarray:
        """int64 [batch_size / world, sequence_length + 1]: this rank's rows of step `step` (from 1 on).

        Args:
            left_out: samples before these that no step has read.
        """
        first = samples_before(step, settings) + left_out
        samples = self.order.samples(first, batch_size(step, settings), rank, world)
        return read_batch(self.sources, samples, self.sequence_length)


class ValidationData:
    """The held-out windows, the same at every evaluation, held in memory."""

    def __init__(
        self, folder: Path, sequence_length: int, most_tokens: int, batch: int, document_end: int | None = None
    ) -> None:
        """Read the windows of every language; `document_end` as for `model_inputs`: validated as trained."""
        self.document_end = document_end
        self.windows: dict[str, list[np.ndarray]] = {}
        self.tokens: dict[str, int] = {}  # targets scored, by language
        self.bytes: dict[str, int] = {}  # UTF-8 bytes of text that these targets stand for
        for language in sorted(open_sources(folder, "validation")):
            found = list(validation_batches(folder, language, sequence_length, most_tokens, batch))
            self.windows[language] = [tokens for tokens, _ in found]
            self.tokens[language] = sum(
                int((inputs["targets_BT"] >= 0).sum()) for inputs in self.batches(language, rank=0, world=1)
            )
            self.bytes[language] = sum(size for _, size in found)

    def batches(self, language: str, rank: int, world: int) -> Iterator[dict[str, Tensor]]:
        """The model's inputs for this rank's share of the windows."""
        for tokens in self.windows[language][rank::world]:
            yield model_inputs(torch.from_numpy(tokens), self.document_end)


def valid_targets(rows_BT1: Tensor, settings: Pretrain, document_end: int | None, place: Place) -> int | Tensor:
    """How many targets of the global batch give loss, the same on all ranks; never read by the host.

    Args:
        rows_BT1: this rank's rows of the batch; each rank has as many.
    """
    if settings.packing == "concatenate" and document_end is None:
        return rows_BT1[:, 1:].numel() * place.world
    return place.sum((model_inputs(rows_BT1, document_end)["targets_BT"] >= 0).sum())


class Batches:
    """This rank's batches of steps `first` + 1, ...: int64 [B, T + 1] on the device, read ahead in a thread.

    On CUDA the thread also copies, from one of two page-locked buffers and on a stream of its own, so that the batch of
    a step is on the device before the step before it ends. Tokens travel as int32.
    """

    def __init__(
        self,
        data: TrainingData,
        settings: Pretrain,
        place: Place,
        first: int,
        left_out: int,
        reader: ThreadPoolExecutor,
    ) -> None:
        self._data, self._settings, self._place, self._reader = data, settings, place, reader
        self._step, self._left_out = first, left_out
        self._buffers: dict[int, tuple[Tensor, torch.cuda.Event]] = {}  # page-locked, and when its copy is done
        self._stream = torch.cuda.Stream(place.device) if place.device.type == "cuda" else None
        self._ahead = self._read_ahead()

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        if self._ahead is None:
            raise StopIteration
        rows_BT = self._ahead.result()
        if self._stream is not None:  # the device waits for the copy, the host does not
            step_stream = torch.cuda.current_stream(self._place.device)
            step_stream.wait_stream(self._stream)
            rows_BT.record_stream(step_stream)
        self._ahead = self._read_ahead()
        return rows_BT

    def _read_ahead(self) -> Future[Tensor] | None:
        if self._step == self._settings.steps:
            return None
        self._step += 1
        return self._reader.submit(self._read, self._step)

    def _read(self, step: int) -> Tensor:
        place = self._place
        rows = self._data.batch(step, self._settings, place.rank, place.world, self._left_out)
        if self._stream is None:
            return torch.from_numpy(rows)
        with torch.cuda.device(place.device), torch.cuda.stream(self._stream):
            if step % 2 not in self._buffers or self._buffers[step % 2][0].shape != rows.shape:
                locked = torch.empty(rows.shape, dtype=torch.int32, pin_memory=True)
                self._buffers[step % 2] = locked, torch.cuda.Event()
            buffer, copied = self._buffers[step % 2]
            copied.synchronize()  # of the batch two steps before; this thread alone waits
            np.copyto(buffer.numpy(), rows, casting="same_kind")
            rows_BT = buffer.to(place.device, non_blocking=True)
            copied.record()
            return rows_BT.to(torch.int64)


@contextmanager
def prefetched(
    data: TrainingData, settings: Pretrain, place: Place, first: int, left_out: int = 0
) -> Iterator[Batches]:
    """The batches of steps `first` + 1 to the last, and the thread that reads them.

    Args:
        left_out: samples that were left out after spikes; every step reads what lies so many further on.
    """
    with ThreadPoolExecutor(1) as reader:
        yield Batches(data, settings, place, first, left_out, reader)
