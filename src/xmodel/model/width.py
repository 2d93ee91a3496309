"""Width transfer (muP) without multipliers: what is tuned at one hidden size stays right at another.

Greg Yang et al., Tensor Programs V (arXiv 2203.03466), table 3: the form in which only initial standard deviations and
learning rates depend on the width, so that the forward pass, and with it the checkpoint, remains a plain Llama's. The
head size does not change with the width, so neither does the scale of attention.

For Muon, whose update is orthogonal before it is scaled by √max(rows, columns), the same demand (a spectral norm of the
update that does not grow with the width: Yang, Simon and Bernstein, arXiv 2310.17813) gives a factor of 1/√width.
"""

from __future__ import annotations

import math

from xmodel.recipe.settings import Model


def initial_std(name: str, model: Model) -> float:
    """Standard deviation of the initial values of a matrix, by its name in the state dict.

    With m = hidden / width_base: embedding init_std; matrices of the blocks init_std / √m (variance 1 / fan-in); output
    head init_std / m.
    """
    m = _times_wider(model)
    return model.init_std / {"embedding": 1.0, "hidden": math.sqrt(m), "head": m, "vector": 1.0}[kind(name)]


def rate_factor(name: str, model: Model, muon: bool = False) -> float:
    """What a parameter's learning rate is multiplied by.

    With m = hidden / width_base: 1 / m for the blocks' matrices and the head under Adam, 1 / √m for the blocks'
    matrices under Muon, 1 for the embedding and the norms.
    """
    m = _times_wider(model)
    return 1 / {"embedding": 1.0, "hidden": math.sqrt(m) if muon else m, "head": m, "vector": 1.0}[kind(name)]


def kind(name: str) -> str:
    """embedding, head, vector (norms) or hidden (a matrix of a block), by a parameter's name in the state dict."""
    if name.endswith("norm.weight"):
        return "vector"
    if name.endswith("embed_tokens.weight"):
        return "embedding"
    return "head" if name.endswith("lm_head.weight") else "hidden"


def _times_wider(model: Model) -> float:
    return model.hidden / model.width_base if model.width_base else 1.0
