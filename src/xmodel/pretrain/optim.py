"""AdamW as the paper uses it, and norms and clipping that never make the host wait for the device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from xmodel.recipe.settings import Pretrain


def make_optimizer(model: nn.Module, settings: Pretrain) -> torch.optim.AdamW:
    """AdamW with decoupled weight decay on the matrices (2-D and more, both embeddings included), none on the norms.

    The fused kernel is used on CPU and CUDA alike: one pass over weights, gradients and moments. The learning rate is
    `peak_lr` until the caller sets `group["lr"]`.
    """
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in matrices)
    return torch.optim.AdamW(
        groups, lr=settings.peak_lr, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=fused
    )


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
