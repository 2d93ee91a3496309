"""Settings of the training loop: `pretrain:` in a recipe."""

# ruff: noqa: RUF009 - `setting` makes a field; it is not a default shared by instances
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xmodel.recipe.setting import setting


@dataclass
class Phase:
    """A stretch of the run with other weights, as in a decay on the best text: up to the next one, or to the end."""

    from_step: int = setting(0, "the first step of the phase", least=2)
    weights: dict[str, float] = setting(
        dict,
        "share of the samples by source, as in {wiki: 0.6, books: 0.4}; they sum to 1, and who is not named gives none",
        least=0,
        most=1,
    )


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
    schedule: Literal["cosine", "constant", "wsd"] = setting(
        "cosine", "shape of the learning rate after the warm-up; wsd: constant, then a decay over the last steps"
    )
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
    # ---- options that the successors proved, each off by default (docs/pretrain-options.md) ----
    optimizer: Literal["adamw", "muon"] = setting(
        "adamw", "muon: the blocks' matrices by Muon; embeddings, head and norms stay with AdamW"
    )
    muon_momentum: float = setting(0.95, "Muon's (Nesterov) momentum", least=0, most=1)
    decay_steps: int = setting(0, "last steps, in which wsd decays to final_lr; 0: a fifth of the steps", least=0)
    decay_shape: Literal["linear", "cosine", "sqrt"] = setting(
        "sqrt", "how wsd decays; sqrt: 1 - sqrt(share of the decay that is done)"
    )
    branch_from: str = setting(
        "", "a checkpoint of another run, from which this one goes on: the same recipe up to that step. Empty: none"
    )
    init_from: str = setting(
        "",
        "weights that the first step begins with, with a new optimizer: a model folder of the recipe's shape, such as "
        "checkpoints/step-NUMBER of a run, or of what `xmodel import` wrote. Empty: drawn from the seed",
    )
    batch_warmup: list[int] = setting(
        [],
        "smaller global batches to begin with, each for batch_warmup_steps steps; [210, 420] say. Empty: none",
        least=1,
    )
    batch_warmup_steps: int = setting(0, "steps of each stage of batch_warmup", least=0)
    z_loss: float = setting(0.0, "weight of log(Z)^2 in the gradient, which keeps logits small; 1e-4 say", least=0)
    average: Literal["none", "ema"] = setting(
        "none", "evaluate and export an average of the weights; ema: exponential moving average over the steps"
    )
    average_decay: float = setting(0.99, "what the average keeps of itself at each step", least=0, most=1)
    # packing: how documents lie in windows, and a mixture that changes
    packing: Literal["concatenate", "best_fit"] = setting(
        "concatenate",
        "concatenate: windows of one long array of documents; best_fit: documents that fit into a window are never cut",
    )
    document_mask: bool = setting(
        False, "tokens attend within their own document only, and its end has no target; needs tokens.bos"
    )
    phases: list[Phase] = setting(
        [], "from a step on the sources have other weights than in corpus.sources; each goes on where it stood"
    )
    # ---- observation
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = setting(
        ["tensorboard"],
        "where the figures of metrics.jsonl are shown as well; tensorboard is passed over where it is not installed",
        identity=False,
    )
    norms_every: int = setting(
        0, "steps between norms of weights, gradients and updates by layer; 0: never", least=0, identity=False
    )
    # ---- several devices, checkpoints and faults
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
        "after so many skipped steps in a row (looked at with each log line), go back to the last checkpoint and leave "
        "out the data since; 0: never",
        least=0,
    )
    # ---- speed: how a step is carried out: rounding may differ in the last bits, what the run is does not.
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
