"""What must not reach the weights: losses and gradients that are not finite, and spikes far above the latest steps.

All of it is decided on the device, from numbers that all ranks share, so that the host never waits and the ranks always
agree. The state is a few tensors that change in place; they are saved in the checkpoint, so that resume is exact.

Spikes are told as OLMo 2 does (arXiv 2501.00656, section 3.1; SkipStepOptimizer of OLMo-core): a loss or gradient norm
more than so many standard deviations above the mean of a window of the latest steps. Every finite step enters the
window, skipped or not: a level that has shifted for good is accepted after a while.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from xmodel.errors import MachineError

MOST_REWINDS = 3  # to the same checkpoint

Guard = dict[str, Tensor]


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
        usual = (now_2 <= mean_2 + sigma * deviation_2).all()
        apply = finite & (usual | (seen < math.ceil(window / 2)))
        here_W = finite & (place_W == seen % window)
        latest_2W.copy_(torch.where(here_W, now_2[:, None], latest_2W))
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

    def __init__(self, step: int, left_out: list[list[int]]) -> None:
        super().__init__(f"rewind from step {step}")
        self.step, self.left_out = step, left_out

    def spans(self, first: int) -> list[list[int]]:
        """All that is left out now that the run goes on after step `first`: [step, number of steps' batches] each.

        From the step after `step` on, every step reads the batch that lies so many further on.

        Raises:
            MachineError: it went back to this step several times already.
        """
        if [step for step, _ in self.left_out].count(first) >= MOST_REWINDS:
            raise MachineError(
                f"step {self.step}: spikes again, after going back to step {first} {MOST_REWINDS} times; lower "
                "pretrain.peak_lr, or look at the data with `xmodel corpus sample`"
            )
        return [*self.left_out, [first, self.step - first]]


def rewind_if_stuck(
    guard: Guard, after: int, step: int, saved: Callable[[], int | None], left_out: list[list[int]]
) -> None:
    """Go back if the last `after` steps or more were skipped (0: never) and there is a checkpoint to go back to.

    Args:
        saved: waits for the checkpoint in flight; the step of the last that stands, or None.

    Raises:
        Rewind: on all ranks at once, since they share the counts.
    """
    if after and guard["in_a_row"].item() >= after and (saved() or step) < step:
        raise Rewind(step, left_out)
