"""Settings of the training loop: `pretrain:` in a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xmodel.recipe.setting import setting


@dataclass
class Pretrain:
    """The training loop."""

    steps: int = setting(600_000, "optimizer steps", least=1)
    global_batch: int = setting(840, "sequences in a step, over all devices", least=1)
    micro_batch: int = setting(
        4, "sequences in one forward pass on one device; must divide global_batch / devices", least=1, identity=False
    )
    peak_lr: float = setting(6e-4, "highest learning rate", least=0)
    final_lr: float = setting(6e-5, "learning rate at the last step", least=0)
    warmup_steps: int = setting(2_000, "steps of linear warm-up", least=0)
    schedule: Literal["cosine", "constant"] = setting("cosine", "shape of the learning rate after the warm-up")
    beta1: float = setting(0.9, "AdamW's first decay", least=0, most=1)
    beta2: float = setting(0.95, "AdamW's second decay", least=0, most=1)
    eps: float = setting(1e-8, "AdamW's epsilon", least=0)
    weight_decay: float = setting(0.1, "decoupled weight decay of the matrices", least=0)
    clip: float = setting(1.0, "largest global gradient norm; 0: no clipping", least=0)
    precision: Literal["bf16", "fp32"] = setting(
        "bf16", "arithmetic of the matrix products; weights and optimizer stay in float32"
    )
    compile: Literal["auto", "on", "off"] = setting(
        "auto", "torch.compile; auto: on when the run is long enough to pay for it", identity=False
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto: cuda when there is one", identity=False)
    eval_every: int = setting(2_000, "steps between evaluations; 0: only at the end", least=0, identity=False)
    eval_tokens: int = setting(2_000_000, "validation tokens per language in an evaluation", least=1, identity=False)
    save_every: int = setting(1_000, "steps between checkpoints", least=1, identity=False)
    keep: int = setting(3, "newest checkpoints that are kept", least=1, identity=False)
    log_every: int = setting(10, "steps between log lines", least=1, identity=False)
    resume: Literal["auto", "never"] = setting(
        "auto", "auto: go on from the newest whole checkpoint; never: refuse if there is one", identity=False
    )
    tensorboard: bool = setting(True, "write TensorBoard events where tensorboard is installed", identity=False)
    # Parallelism, checkpoints and faults
    parallel: Literal["ddp", "zero2", "fsdp"] = setting(
        "ddp",
        "what several devices share out; ddp: the batch alone; zero2: optimizer and weights, gathered once a step; "
        "fsdp: all, a block at a time",
        identity=False,
    )
    timeout_minutes: float = setting(
        30.0, "how long to wait for another process before giving up", least=0.05, identity=False
    )
    max_restarts: int = setting(
        0, "restarts from the newest checkpoint when a training process dies (--processes)", least=0, identity=False
    )
    keep_every: int = setting(
        0, "checkpoints of steps that this divides are kept for good; 0: none", least=0, identity=False
    )
    verify_tokens: Literal["auto", "always", "never"] = setting(
        "auto", "compare the checksums of the token shards at the start; auto: of up to 4 GB", identity=False
    )
    spike_sigma: float = setting(
        0.0,
        "skip a step whose loss or gradient norm is this many standard deviations above the mean; 0: never",
        least=0,
    )
    spike_window: int = setting(128, "latest steps that mean and deviation are taken of", least=2)
    spike_rewind: int = setting(
        0,
        "after so many skipped steps in a row, go back to the last checkpoint and leave out the data since; 0: never",
        least=0,
    )
