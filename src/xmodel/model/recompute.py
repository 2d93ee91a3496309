"""Activation checkpointing: trade time for memory by making a block's activations again in the backward pass."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

# What is dear to make again, by the names of its operators: matrix products (`mm` is what a linear layer becomes) and
# every kernel of attention. The rest (norms, rotary positions, SwiGLU, casts) costs memory traffic only.
KEPT = {
    "aten::mm",
    "aten::linear",
    "aten::_scaled_mm",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "xmodel::blocked_attention",
}


def run_block(checkpointing: str, block: nn.Module, *inputs: Any) -> Tensor:
    """`block(*inputs)`, keeping for the backward pass what `checkpointing` says (arXiv 1604.06174).

    Args:
        checkpointing: "none": whatever autograd keeps; "selective": outputs of matrix products and attention;
            "full": the inputs alone. The result and the gradients are the same.
    """
    if checkpointing == "none":
        return block(*inputs)
    # Nothing in a block is random, so no state of a random generator has to be restored.
    kept: dict[str, Any] = {"context_fn": _keeping_products} if checkpointing == "selective" else {}
    return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False, **kept)


def _policy(context: Any, operator: torch._ops.OpOverload, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = operator.name().split(".")[0] in KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


_keeping_products = functools.partial(create_selective_checkpoint_contexts, _policy)
