"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from xmodel.recipe.settings import Pretrain


def learning_rate(step: int, settings: Pretrain) -> float:
    """Learning rate of optimizer step `step` (the first is 1): linear warm-up, then the chosen shape.

    The cosine reaches `final_lr` at the last step (SGDR without restarts, arXiv 1608.03983, eq. 5).
    """
    if step <= settings.warmup_steps:
        return settings.peak_lr * step / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.peak_lr
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.final_lr + (settings.peak_lr - settings.final_lr) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
