"""What must not reach the weights: losses and gradients that are not finite, and spikes far above the latest steps.

All of it is decided on the device, from numbers that all ranks share, so that the host never waits and the ranks always
agree. The state is a few tensors that change in place; they are saved in the checkpoint, so that resume is exact.

Spikes are told as OLMo 2 does (arXiv 2501.00656, section 3.1; SkipStepOptimizer of OLMo-core): a loss or gradient norm
more than so many standard deviations above the mean of a window of the latest steps. Unlike there, a spike enters the
window as the largest value that would have passed: several in a row are told too, for it takes tens of them to widen
the window (each by a seventh at 128 steps and 6 deviations), and a level that has shifted for good is accepted in time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from xmodel.errors import MachineError
from xmodel.recipe.settings import Pretrain

MOST_REWINDS = 3  # to the same checkpoint
MOST_IN_A_ROW = 10  # skipped steps

Guard = dict[str, Tensor]
Spans = list[list[int]]  # [step, number of steps]: after this step, so many steps' batches were left out


def new_guard(window: int, device: torch.device) -> Guard:
    """The state before the first step.

    Returns:
        skipped: int64 scalar, steps skipped so far.
        in_a_row: int64 scalar, steps skipped since the last that was applied.
        seen: int64 scalar, finite steps so far.
        latest: float32 [2, window], loss and gradient norm of the latest finite steps, a ring.
    """
    counts = {name: torch.zeros((), dtype=torch.int64, device=device) for name in ("skipped", "in_a_row", "seen")}
    return counts | {"latest": torch.zeros(2, window, device=device)}


@torch.no_grad()
def judge(guard: Guard, loss: Tensor, grad_norm: Tensor, sigma: float) -> Tensor:
    """Whether to apply a step, a bool scalar on the device; `guard` is brought up to date.

    Args:
        loss: scalar, the mean over the global batch, the same on all ranks.
        grad_norm: scalar, of the joined gradients before clipping, the same on all ranks.
        sigma: standard deviations above the mean that make a spike; 0: only what is not finite is refused. Nothing is
            a spike before half a window of steps has been seen.
    """
    now_2 = torch.stack((loss, grad_norm)).float()
    finite = torch.isfinite(now_2).all()
    apply = finite
    if sigma:
        seen, latest_2W = guard["seen"], guard["latest"]
        window = latest_2W.shape[1]
        place_W = torch.arange(window, device=latest_2W.device)
        filled_W = place_W < seen
        count = filled_W.sum().clamp(min=1)
        mean_2 = (latest_2W * filled_W).sum(1) / count
        deviation_2 = (((latest_2W - mean_2[:, None]).square() * filled_W).sum(1) / count).sqrt()
        early = seen < math.ceil(window / 2)
        limit_2 = torch.where(early, torch.inf, mean_2 + sigma * deviation_2)
        apply = finite & (now_2 <= limit_2).all()
        here_W = finite & (place_W == seen % window)
        latest_2W.copy_(torch.where(here_W, now_2.minimum(limit_2)[:, None], latest_2W))
        seen += finite
    guard["skipped"] += ~apply
    guard["in_a_row"].copy_(torch.where(apply, 0, guard["in_a_row"] + 1))
    return apply


class Rewind(Exception):
    """Raised to go back to the newest checkpoint and to leave out the data since.

    Attributes:
        step: the last step that was made.
        left_out: what had been left out before, see `spans`.
    """

    def __init__(self, step: int, left_out: Spans) -> None:
        super().__init__(f"rewind from step {step}")
        self.step, self.left_out = step, left_out

    def spans(self, first: int) -> Spans:
        """All that is left out now that the run goes on after step `first`.

        From the step after that on, every step reads the batch that lies so many further on.

        Raises:
            MachineError: it went back to this step several times already.
        """
        if [step for step, _ in self.left_out].count(first) >= MOST_REWINDS:
            raise MachineError(
                f"step {self.step}: spikes again, after going back to step {first} {MOST_REWINDS} times; lower "
                "pretrain.peak_lr, or look at the data with `xmodel corpus sample`"
            )
        return [*self.left_out, [first, self.step - first]]


def progressed(
    guard: Guard, applied: float, settings: Pretrain, step: int, saved: Callable[[], int | None], left_out: Spans
) -> bool:
    """Whether anything was applied since the last log line; looked at when one is due. The ranks share the counts.

    Args:
        applied: steps that were applied since the last log line.
        saved: waits for the checkpoint in flight; the step of the last that stands, or None.

    Raises:
        Rewind: `pretrain.spike_rewind` steps or more were skipped in a row, and there is a checkpoint to go back to.
        MachineError: so many that going on is of no use.
    """
    in_a_row = int(guard["in_a_row"].item())
    if settings.spike_rewind and in_a_row >= settings.spike_rewind and (saved() or step) < step:
        raise Rewind(step, left_out)
    if in_a_row >= MOST_IN_A_ROW and not applied:
        raise MachineError(
            f"step {step}: the last {in_a_row} steps were skipped, since loss or gradients were not finite"
            f"{' or spikes' if settings.spike_sigma else ''}; lower pretrain.peak_lr"
        )
    return applied > 0
