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
        4,
        "sequences in one forward pass on one device; must divide global_batch / devices; 0: the most that fit",
        least=0,
        identity=False,
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
    precision: Literal["bf16", "fp32", "fp8"] = setting(
        "bf16",
        "arithmetic of the matrix products; weights and optimizer stay in float32. fp8: those of the blocks while "
        "training, from Ada and Hopper on; the rest, and evaluation, in bf16",
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
    # How a step is carried out: rounding may differ in the last bits, what the run is does not.
    attention: Literal["auto", "cudnn", "flash", "math", "fa3"] = setting(
        "auto",
        "attention kernel of the training steps; auto: the best that can do the model's heads here; fa3: "
        "FlashAttention 3, where it is installed",
        identity=False,
    )
    activation_checkpointing: Literal["none", "selective", "full"] = setting(
        "none",
        "what to make again in the backward pass to save memory; selective: all but matrix products and attention; "
        "full: everything in a block",
        identity=False,
    )
