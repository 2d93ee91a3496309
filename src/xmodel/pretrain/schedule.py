"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

from xmodel.recipe.settings import Pretrain

# What is left of the way from peak_lr to final_lr when a share of the decay is done. sqrt is the best of those that
# Hägele et al. compared (arXiv 2405.18392, section 3.1); MiniCPM (arXiv 2404.06395) introduced the schedule.
DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "sqrt": lambda done: 1 - math.sqrt(done),
}


def learning_rate(step: int, settings: Pretrain) -> float:
    """Learning rate of optimizer step `step` (the first is 1): linear warm-up, then the chosen shape.

    The cosine reaches `final_lr` at the last step (SGDR without restarts, arXiv 1608.03983, eq. 5). Warmup-stable-decay
    (wsd) keeps `peak_lr` until `stable_end` and then falls to `final_lr`, which it too reaches at the last step.
    """
    if step <= settings.warmup_steps:
        return settings.peak_lr * step / settings.warmup_steps
    begin = stable_end(settings)
    if settings.schedule == "constant" or step <= begin:  # exactly: final_lr + (peak_lr - final_lr) may round above it
        return settings.peak_lr
    shape = settings.decay_shape if settings.schedule == "wsd" else "cosine"
    done = min(1.0, (step - begin) / max(1, settings.steps - begin))
    return settings.final_lr + (settings.peak_lr - settings.final_lr) * DECAYS[shape](done)


def stable_end(settings: Pretrain) -> int:
    """The last step before the learning rate begins to fall; a run can be branched from there to any length."""
    if settings.schedule == "constant":
        return settings.steps
    if settings.schedule == "cosine":
        return settings.warmup_steps
    return max(settings.warmup_steps, settings.steps - (settings.decay_steps or settings.steps // 5))
