"""Parameters and floating-point operations of a Llama shape. Arithmetic, no torch."""

from __future__ import annotations

from xmodel.recipe.settings import Model


def parameters(model: Model) -> dict[str, int]:
    """Parameter counts of a resolved shape.

    Returns:
        total: every parameter, a tied head counted once.
        embedding: input embedding and, unless it is tied, output embedding.
        non_embedding: the rest, norms included.
        matmul: parameters that multiply every token: the blocks' matrices and the head once, tied or not. It is the N
            of the FLOP formulas below.
    """
    kv = model.kv_heads * (model.hidden // model.heads)
    attention = 2 * model.hidden * model.hidden + 2 * model.hidden * kv  # q, o; k, v
    matrices = model.layers * (attention + 3 * model.hidden * model.ffn)
    norms = (2 * model.layers + 1) * model.hidden
    norms += 2 * model.layers * (model.hidden // model.heads) if model.qk_norm else 0
    table = model.vocab_size * model.hidden
    embedding = table if model.tied_embeddings else 2 * table
    return {
        "total": matrices + norms + embedding,
        "embedding": embedding,
        "non_embedding": matrices + norms,
        "matmul": matrices + table,
    }


def flops_per_token(model: Model, sequence_length: int) -> tuple[int, int]:
    """Floating-point operations to train on one token, forward and backward, in the two conventions in use.

    Returns:
        palm: 6·N + 12·L·d·S (PaLM, arXiv 2204.02311, appendix B): attention counted as if it were not causal.
        causal: 6·N + 6·L·d·S: only the half of the attention matrix that is computed.
    """
    n = parameters(model)["matmul"]
    attention = 12 * model.layers * model.hidden * sequence_length
    return 6 * n + attention, 6 * n + attention // 2
