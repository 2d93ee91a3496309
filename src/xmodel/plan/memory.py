"""Memory of one GPU in training, by part. A test counts the bytes that autograd keeps, and compares.

Legend: D hidden, K width of keys (kv_heads · head size), F width of the SwiGLU, H query heads, V vocabulary; e bytes of
an activation (2 in bfloat16, 4 in float32). The residual stream, weights, gradients and moments are float32.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from xmodel.model.counts import parameters
from xmodel.recipe.settings import Model

Checkpointing = Literal["none", "selective", "full"]
ITEM = {"fp32": 4, "bf16": 2, "fp8": 2}
LOGITS_CHUNK = 512 << 20  # bytes of the float32 logits of one chunk: model/loss.py, which a test compares
CONTEXT = 1.5e9  # CUDA's context and the libraries' work spaces
FRAGMENTATION = 0.05  # of what is allocated and freed in every pass
GB = 1e9


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
        return 4 * d + products + e * d  # and the output of attention's projection; norms, rotation, SwiGLU anew
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


def by_part(model: Model, micro: int, how: How) -> dict[str, float]:
    """Bytes on one GPU at the highest point of a step with micro-batches of `micro` sequences, by part.

    That is when the last pass's loss is made, or a block's backward pass runs, with the gradients of earlier passes
    there; the copy of the weights by which an update's norm is told comes when the activations are gone.
    """
    counts, tokens, e = parameters(model), micro * model.context_length, ITEM[how.precision]
    whole, share = 4.0 * counts["total"], 4.0 * counts["total"] / how.gpus
    per_token, once = saved_at_the_end(model, how)
    block = saved_per_token(model, how._replace(checkpointing="none")) * tokens
    rows = min(tokens, max(64, LOGITS_CHUNK // (4 * model.vocab_size) // 64 * 64))
    chunk = rows * model.vocab_size * (4 + e) + e * model.vocab_size * model.hidden
    held = {"weights": whole, "gradients": whole, "AdamW moments": 2 * whole}
    if how.gpus > 1 and how.parallel != "ddp":
        blocks = 4.0 * counts["non_embedding"] / model.layers
        around = 4.0 * counts["embedding"]
        gathered = whole if how.parallel == "zero2" else 2 * blocks + around
        reduced = whole if how.parallel == "zero2" else blocks + around
        held = {
            "weights": share,
            "gradients": share,
            "AdamW moments": 2 * share,
            "gathered weights": gathered,
            "gradients to be reduced": reduced,
        }
    passing = {
        "weight copies": float(weight_copies(model, how) * (model.layers if how.checkpointing == "none" else 1)),
        "activations": float(saved_per_token(model, how) * tokens * model.layers + per_token * tokens),
        "head's gradient": float(once),
        "working space": float(max(chunk, block)),
    }
    copy = share if how.gpus > 1 and how.parallel != "ddp" else whole
    if (spare := copy - sum(passing.values())) > 0:  # tiny batches: the step itself is the highest point
        passing["copy of the weights for the update's norm"] = spare
    passing["fragmentation"] = FRAGMENTATION * sum(passing.values())
    return held | passing | {"context and libraries": CONTEXT}


def largest_micro_batch(model: Model, share: int, memory: float, how: How) -> int:
    """The largest divisor of `share` sequences whose step fits into `memory` bytes; 0: not even one sequence does."""
    sizes = (size for size in range(share, 0, -1) if share % size == 0)
    return next((size for size in sizes if sum(by_part(model, size, how).values()) <= memory), 0)
