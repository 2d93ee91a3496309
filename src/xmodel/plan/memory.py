"""Memory of one GPU in training, by part: what a step keeps (model/memory.py), and what stands beside it."""

from __future__ import annotations

from xmodel.model.counts import parameters
from xmodel.model.memory import ITEM, How, saved_at_the_end, saved_per_token, weight_copies
from xmodel.recipe.settings import Model

LOGITS_CHUNK = 512 << 20  # bytes of the float32 logits of one chunk: model/loss.py, which a test compares
CONTEXT = 1.5e9  # CUDA's context and the libraries' work spaces
FRAGMENTATION = 0.05  # of what is allocated and freed in every pass
GB = 1e9


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
