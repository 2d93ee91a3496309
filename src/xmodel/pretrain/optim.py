"""AdamW as the paper uses it (or Muon), and norms and clipping that never make the host wait for the device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from xmodel.model.transformer import Transformer
from xmodel.model.width import kind, rate_factor
from xmodel.pretrain.muon import Muon
from xmodel.recipe.settings import Pretrain


def make_optimizer(model: Transformer, settings: Pretrain) -> torch.optim.AdamW:
    """AdamW with decoupled weight decay on the matrices (2-D and more, both embeddings included), none on the norms.

    The fused kernel is used on CPU and CUDA alike: one pass over weights, gradients and moments. With `optimizer: muon`
    the matrices of the blocks are Muon's. A group's `rate_factor` is what its learning rate is multiplied by (1 unless
    `model.width_base` is set); what the decay takes from a weight in a step does not depend on it (arXiv 2203.03466,
    appendix B.3).
    """
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        muon = settings.optimizer == "muon" and kind(name) == "hidden"
        factor = rate_factor(name, model.config, muon)
        decay = settings.weight_decay / factor if p.dim() >= 2 else 0.0
        groups.setdefault((decay, factor, muon), []).append(p)
    options = [
        {"params": params, "weight_decay": decay, "rate_factor": factor, "muon": muon}
        | ({"momentum": settings.muon_momentum} if muon else {})
        for (decay, factor, muon), params in groups.items()
    ]
    optimizer = (Muon if settings.optimizer == "muon" else torch.optim.AdamW)(
        options,
        lr=settings.peak_lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=all(p.device.type in ("cpu", "cuda") for p in model.parameters()),
    )
    set_learning_rate(optimizer, settings.peak_lr)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the step's learning rate, times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]


@torch.no_grad()
def global_norm(tensors: Iterable[Tensor]) -> Tensor:
    """L2 norm of all tensors taken as one vector: a float32 scalar on their device.

    Of parameters: `global_norm(model.parameters())`. Of shards (DTensor) it is that of the whole tensors, which takes
    a collective: every rank has to ask for it.
    """
    norm = nn.utils.get_total_norm(tensors)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale the gradients so that their global L2 norm is at most `limit` (0: only measure).

    Returns:
        the norm before clipping, a float32 scalar on the device; it is not finite exactly when a gradient is not.
    """
    parameters = list(parameters)
    norm = global_norm([p.grad for p in parameters if p.grad is not None])
    if limit > 0:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


def guarded_step(optimizer: torch.optim.AdamW, grad_norm: Tensor) -> None:
    """`optimizer.step()`, except that nothing changes, moments and step count included, if `grad_norm` is not finite.

    The fused kernel decides on the device (by the flag that torch's GradScaler uses), so the host does not wait.
    """
    optimizer.found_inf = (~torch.isfinite(grad_norm)).float()  # type: ignore[attr-defined]
    optimizer.step()
