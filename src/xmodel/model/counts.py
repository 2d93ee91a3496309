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


def activation_bytes(model: Model, checkpointing: str = "none", element: int = 2, working: bool = True) -> int:
    """Bytes that a training step keeps for each token of a micro-batch, all layers, without the output head.

    An upper bound for a compiled block, which makes some of it again by itself.

    Args:
        checkpointing: none, selective or full, as `run_block` has them.
        element: bytes of a number in the dtype of the matrix products; the residual stream is float32.
        working: with what the backward pass makes again of one block while it is in it.
    """
    hidden, kv = model.hidden, model.kv_heads * (model.hidden // model.heads)
    residual = 4 * hidden
    products = element * (2 * hidden + 2 * kv + hidden + 2 * model.ffn)  # q, k, v; attention's output; gate, up
    rest = 2 * (residual + element * hidden)  # in each norm: x / rms(x), and the result
    rest += residual  # of the stream between attention and SwiGLU
    rest += element * (hidden + kv)  # rotated q, k
    rest += element * 2 * model.ffn  # silu(gate), and its product with up
    block = {
        "none": residual + products + rest,
        "selective": residual + products + element * hidden,  # and the output of the last product
        "full": residual,
    }
    final_norm = 2 * residual + element * hidden
    working_on = block["none"] if working and checkpointing != "none" else 0
    return model.layers * block[checkpointing] + final_norm + working_on
