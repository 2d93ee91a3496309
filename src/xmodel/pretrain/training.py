"""What a run trains: the model, what updates it, its data, and the counts that a checkpoint holds besides."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xmodel.console import log
from xmodel.errors import UserError
from xmodel.files import read_json
from xmodel.model.attention import choose_attention
from xmodel.model.fp8 import check_fp8
from xmodel.model.transformer import Transformer
from xmodel.pretrain.average import Average, start_average
from xmodel.pretrain.branch import branch_point, initial_weights
from xmodel.pretrain.checkpoint import load_checkpoint, load_weights
from xmodel.pretrain.checkpoint_files import newest_checkpoint
from xmodel.pretrain.data import TrainingData
from xmodel.pretrain.guard import Guard, Spans, new_guard
from xmodel.pretrain.optim import make_optimizer
from xmodel.pretrain.parallel import Place, distributed
from xmodel.recipe.batches import samples_through
from xmodel.recipe.settings import Model, Pretrain, Recipe
from xmodel.tokens.shards import end_id

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp8": torch.bfloat16}  # of activations, by precision


@dataclass
class Training:
    """Everything that a step reads or changes.

    Attributes:
        model: the parameters and how they compute.
        trained: the model as a step calls it; of several ranks the wrapper that joins their gradients.
        average: averaged weights by name; empty without `pretrain.average`.
        guard: what tells spikes and counts skipped steps, on the device.
        interval: float64 [2] on the device, loss and number of the steps applied since the last log line.
        document_end: the token that ends documents where attention stays within them; None elsewhere.
        micro: sequences in a forward pass.
        first: the last step that is done.
        left_out: steps whose data was left out after spikes, see guard.Rewind.
        tokenizer: fingerprint of the tokens' tokenizer.
    """

    settings: Pretrain
    place: Place
    model: Transformer
    trained: nn.Module
    optimizer: torch.optim.AdamW
    average: Average
    guard: Guard
    interval: Tensor
    data: TrainingData
    document_end: int | None
    tokenizer: str | None
    micro: int
    first: int = 0
    left_out: Spans = field(default_factory=list)

    @property
    def samples_left_out(self) -> int:
        """Samples that no step reads: those of the steps in `left_out`."""
        return sum(
            samples_through(first + steps, self.settings) - samples_through(first, self.settings)
            for first, steps in self.left_out
        )

    @property
    def extra(self) -> dict[str, Tensor]:
        """What a checkpoint holds besides weights, their average and the optimizer's state."""
        return {f"guard.{name}": tensor for name, tensor in self.guard.items()}

    def state(self) -> dict[str, Any]:
        """What `state.json` of a checkpoint says besides the step; the host waits for the device."""
        return {"interval": self.interval.tolist(), "left_out": self.left_out, "tokenizer": self.tokenizer}


def new_model(shape: Model, settings: Pretrain, seed: int, device: torch.device) -> Transformer:
    """Initial weights on the device, and how a step computes with them.

    Raises:
        UserError: a kernel or number format that this device does not have.
    """
    model = Transformer(shape)
    model.init_weights(seed)
    model.to(device)
    model.compute_dtype, model.fp8 = DTYPES[settings.precision], settings.precision == "fp8"
    model.z_loss, model.checkpointing = settings.z_loss, settings.activation_checkpointing
    if model.fp8:
        check_fp8(shape, shape.context_length, device)
    heads = shape.heads, shape.kv_heads, shape.hidden // shape.heads
    model.attention = choose_attention(settings.attention, *heads, model.compute_dtype, device)
    return model


def new_training(recipe: Recipe, tokens_folder: Path, data: TrainingData, place: Place) -> Training:
    """The state before step 1.

    Raises:
        UserError: a kernel or number format that this device does not have.
    """
    settings, device = recipe.pretrain, place.device
    model = new_model(recipe.model, settings, recipe.seed, device)
    trained = distributed(model, place, settings)  # before the optimizer: FSDP2 replaces the parameters
    return Training(
        settings=settings,
        place=place,
        model=model,
        trained=trained,
        optimizer=make_optimizer(model, settings),
        average=start_average(model, settings),
        guard=new_guard(settings.spike_window, device),
        interval=torch.zeros(2, dtype=torch.float64, device=device),
        data=data,
        document_end=end_id(tokens_folder) if settings.document_mask else None,
        tokenizer=read_json(tokens_folder / "manifest.json").get("tokenizer"),
        micro=settings.micro_batch,
    )


def go_on(training: Training, recipe: Recipe, tokens_folder: Path, folder: Path) -> Path | None:
    """Load the newest whole checkpoint in `folder`, or the one to branch from; None where there is neither.

    Then step 1 begins with the weights that `pretrain.init_from` names, if any, and a new optimizer.

    Raises:
        UserError: the recipe forbids it, or the checkpoint belongs to another model, tokenizer or version.
    """
    found = newest_checkpoint(folder, training.place)
    if found is not None and training.settings.resume == "never":
        raise UserError(f"pretrain.resume: never, but {found} exists; use resume=auto or another run directory")
    found = found or branch_point(recipe, tokens_folder)
    if found is None:
        if (given := initial_weights(recipe, training.tokenizer)) is not None:
            load_weights(given, training.model, training.average)
            log(f"pretrain: begins with the weights of {given}, and a new optimizer")
        return None
    parts = training.model, training.optimizer, training.extra, training.average
    state = load_checkpoint(found, *parts, tokenizer=training.tokenizer)
    training.first, training.left_out = state["step"], state["left_out"]
    training.interval.copy_(torch.tensor(state["interval"], dtype=torch.float64))
    log(f"pretrain: goes on from {found.name if found.parent == folder else found}")
    return found
