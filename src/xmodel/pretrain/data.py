"""What the loop reads: training batches by step number, and the held-out windows of each language."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from xmodel.pretrain.parallel import Place
from xmodel.recipe.settings import Pretrain
from xmodel.tokens.order import DataOrder
from xmodel.tokens.shards import open_sources, read_batch, validation_batches


class TrainingData:
    """The training tokens in the run's order. No state: a batch follows from its step number."""

    def __init__(self, folder: Path, weights: Mapping[str, float], seed: int, sequence_length: int) -> None:
        """Map the shards of every source that has a weight.

        Raises:
            UserError: a source is shorter than one sequence.
            MachineError: a shard is missing or has another size than the manifest says.
        """
        self.sequence_length = sequence_length
        self.sources = {name: source for name, source in open_sources(folder).items() if weights.get(name)}
        windows = {name: source.n_windows(sequence_length) for name, source in self.sources.items()}
        self.order = DataOrder(windows, {name: weights[name] for name in windows}, seed)

    def batch(self, step: int, global_batch: int, rank: int, world: int) -> np.ndarray:
        """int64 [global_batch / world, sequence_length + 1]: this rank's rows of step `step` (from 0 on)."""
        return read_batch(self.sources, self.order.batch(step, global_batch, rank, world), self.sequence_length)


class ValidationData:
    """The held-out windows, the same at every evaluation, held in memory."""

    def __init__(self, folder: Path, sequence_length: int, most_tokens: int, batch: int) -> None:
        self.windows: dict[str, list[np.ndarray]] = {}
        self.tokens: dict[str, int] = {}  # targets scored, by language
        self.bytes: dict[str, int] = {}  # UTF-8 bytes of text that these targets stand for
        for language in sorted(open_sources(folder, "validation")):
            found = list(validation_batches(folder, language, sequence_length, most_tokens, batch))
            self.windows[language] = [tokens for tokens, _ in found]
            self.tokens[language] = sum(tokens[:, 1:].size for tokens in self.windows[language])
            self.bytes[language] = sum(size for _, size in found)

    def batches(self, language: str, rank: int, world: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs, targets), int64 [B, T] each: this rank's share of the windows."""
        for tokens in self.windows[language][rank::world]:
            rows = torch.from_numpy(tokens)
            yield rows[:, :-1], rows[:, 1:]


class Batches:
    """This rank's batches of steps `first` + 1, ...: int64 [B, T + 1] on the device, read ahead in a thread.

    On CUDA the thread also copies, from one of two page-locked buffers and on a stream of its own, so that the batch of
    a step is on the device before the step before it ends. Tokens travel as int32.

    Attributes:
        waited: seconds for which `next` has waited for data so far.
    """

    def __init__(
        self, data: TrainingData, settings: Pretrain, place: Place, first: int, reader: ThreadPoolExecutor
    ) -> None:
        self.waited = 0.0
        self._data, self._settings, self._place, self._reader = data, settings, place, reader
        self._step = first
        self._buffers: dict[int, tuple[Tensor, torch.cuda.Event]] = {}  # page-locked, and when its copy is done
        self._stream = torch.cuda.Stream(place.device) if place.device.type == "cuda" else None
        self._ahead = self._read_ahead()

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        if self._ahead is None:
            raise StopIteration
        started = time.perf_counter()
        rows_BT = self._ahead.result()
        self.waited += time.perf_counter() - started
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
        rows = self._data.batch(step - 1, self._settings.global_batch, place.rank, place.world)
        if self._stream is None:
            return torch.from_numpy(rows)
        with torch.cuda.device(place.device), torch.cuda.stream(self._stream):
            if step % 2 not in self._buffers:
                locked = torch.empty(rows.shape, dtype=torch.int32, pin_memory=True)
                self._buffers[step % 2] = locked, torch.cuda.Event()
            buffer, copied = self._buffers[step % 2]
            copied.synchronize()  # of the batch two steps before; this thread alone waits
            np.copyto(buffer.numpy(), rows, casting="same_kind")
            rows_BT = buffer.to(place.device, non_blocking=True)
            copied.record()
            return rows_BT.to(torch.int64)


@contextmanager
def prefetched(data: TrainingData, settings: Pretrain, place: Place, first: int) -> Iterator[Batches]:
    """The batches of steps `first` + 1 to the last, and the thread that reads them."""
    with ThreadPoolExecutor(1) as reader:
        yield Batches(data, settings, place, first, reader)
