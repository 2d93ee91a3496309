"""How many samples a step takes, as pure functions of the step: batch-size warm-up in closed form. No torch."""

from __future__ import annotations

from xmodel.recipe.pretrain_settings import Pretrain


def batch_size(step: int, train: Pretrain) -> int:
    """Sequences in optimizer step `step` (the first is 1), over all devices."""
    stage = (step - 1) // train.batch_warmup_steps if train.batch_warmup else 0
    return train.batch_warmup[stage] if stage < len(train.batch_warmup) else train.global_batch


def samples_before(step: int, train: Pretrain) -> int:
    """Sequences of all steps before `step`: the number of its first sample, from 0 on."""
    done = step - 1
    if not train.batch_warmup:
        return done * train.global_batch
    stages, length = train.batch_warmup, train.batch_warmup_steps
    whole, rest = divmod(done, length)
    if whole >= len(stages):
        return length * sum(stages) + (done - length * len(stages)) * train.global_batch
    return length * sum(stages[:whole]) + rest * stages[whole]


def samples_through(step: int, train: Pretrain) -> int:
    """Sequences of steps 1 to `step`; of the whole run: `samples_through(train.steps, train)`."""
    return samples_before(step + 1, train)


def batch_sizes(train: Pretrain) -> list[int]:
    """Every batch size of the run, in order."""
    return list(dict.fromkeys([*train.batch_warmup, train.global_batch]))
