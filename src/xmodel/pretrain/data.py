"""What the loop reads: training batches by step number, and the held-out windows of each language."""

from __future__ import annotations

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


@contextmanager
def prefetched(
    data: TrainingData, settings: Pretrain, place: Place, first: int, left_out: int = 0
) -> Iterator[Iterator[Tensor]]:
    """This rank's batches of steps `first` + 1, ...: int64 [B, T + 1] on the device, read ahead in a thread.

    Step n reads batch n + `left_out`: the data of so many steps was left out after spikes.
    """

    def read(step: int) -> Tensor:
        rows_BT = torch.from_numpy(data.batch(step - 1 + left_out, settings.global_batch, place.rank, place.world))
        return rows_BT.pin_memory() if place.device.type == "cuda" else rows_BT

    def batches() -> Iterator[Tensor]:
        ahead: Future[Tensor] = reader.submit(read, first + 1)
        for step in range(first + 1, settings.steps + 1):
            rows_BT = ahead.result()
            if step < settings.steps:
                ahead = reader.submit(read, step + 1)
            yield rows_BT.to(place.device, non_blocking=True)

    with ThreadPoolExecutor(1) as reader:
        yield batches()
