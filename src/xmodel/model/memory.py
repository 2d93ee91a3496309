"""What a training step keeps in memory for its backward pass. Arithmetic, no torch; tests count the same by autograd.

Legend: D hidden, K width of keys (kv_heads · head size), F width of the SwiGLU, H query heads, V vocabulary; e bytes of
an activation (2 in bfloat16, 4 in float32). The residual stream, weights, gradients and moments are float32.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from xmodel.recipe.settings import Model

Checkpointing = Literal["none", "selective", "full"]
ITEM = {"fp32": 4, "bf16": 2, "fp8": 2}  # bytes of an activation, by precision


class How(NamedTuple):
    """How a step is carried out, as far as its memory depends on it."""

    precision: str = "bf16"  # of the matrix products; fp8: activations stay in bf16
    compiled: bool = True
    checkpointing: Checkpointing = "none"
    parallel: str = "ddp"  # ddp, zero2 or fsdp, as in `pretrain.parallel`
    gpus: int = 1


def saved_per_token(model: Model, how: How, fused_attention: bool = True) -> int:
    """Bytes that one block keeps for its backward pass, for each token.

    `fused_attention`: the log-sum-exps are kept (flash attention; not by our own kernel for bfloat16 on a CPU).
    """
    d, k, f, e = model.hidden, model.kv_heads * model.hidden // model.heads, model.ffn, ITEM[how.precision]
    products = e * (d + 2 * k) + e * d + e * 2 * f  # outputs: queries, keys and values; attention; gate and up
    if how.checkpointing == "full":
        return 4 * d  # the block's input
    products += 4 * model.heads if fused_attention else 0
    if how.checkpointing == "selective":
        # and the outputs of attention's projection and, unless compiled, of the last product; the rest is made anew
        return 4 * d + products + e * d * (1 if how.compiled else 2)
    kept = products + e * (d + k) + 2 * e * d + e * f + 8  # and rotated q, k; both norms' outputs; SwiGLU's product
    if how.compiled:
        return kept + 4 * d + e * d  # the block's input; its middle as the output of attention's projection
    return kept + 4 * 4 * d + e * f  # inputs of both norms, and normed before the gain; silu(gate)


def saved_at_the_end(model: Model, how: How) -> tuple[int, int]:
    """Bytes kept by the last norm and the loss: (for each token, for each pass)."""
    return 8 * model.hidden + 4 + ITEM[how.precision] * model.hidden, 4 * model.vocab_size * model.hidden


def weight_copies(model: Model, how: How) -> int:
    """Bytes of one block's weights as the matrix products take them.

    In bfloat16 all are cast; in float32 only those that are joined are copied. Without checkpointing every block keeps
    its own from forward to backward.
    """
    d, k, f = model.hidden, model.kv_heads * model.hidden // model.heads, model.ffn
    joined = d * (d + 2 * k) + 2 * d * f
    return 4 * joined if how.precision == "fp32" else 2 * (joined + d * d + d * f)
