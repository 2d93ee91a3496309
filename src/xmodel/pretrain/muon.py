"""Muon for the matrices of the blocks, AdamW for everything else, as one optimizer.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) replaces a matrix's momentum by the nearest
orthogonal matrix, found by a few Newton-Schulz steps in bfloat16. Its update is scaled by 0.2·√max(rows, columns),
which gives it the size of AdamW's (Moonlight, arXiv 2502.16982, section 2.2), so AdamW's rate, schedule and decay carry
over.

Matrices of one shape are worked on together. Over several ranks each orthogonalises its share of them:

- Replicated weights (DDP): gradients, and so momenta, are the same everywhere. Every rank keeps all momenta (a pass
  over memory) and orthogonalises its share of the matrices (the work); the results are gathered in bfloat16.
- Weights sharded by rows (FSDP2): momenta are sharded like the weights. Rows travel to the owner of their matrix and
  come back orthogonal, two all-to-all exchanges in bfloat16.

Legend: n matrices, R rows, C columns, r rows of one rank.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

# Five steps of an odd quintic a·x + b·x³ + c·x⁵, each the best for the interval that the one before leaves: Polar
# Express (Amsel et al., arXiv 2505.16932), for singular values from 1e-3 on; its safety factor of 1.02 is below.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
SAFETY = 1.02


class Muon(torch.optim.AdamW):
    """Groups with `muon` true are updated by Muon (`momentum`, `lr`, `weight_decay`), the others by fused AdamW.

    State of a matrix: `momentum_buffer`, of its shape and dtype. Like the fused AdamW kernel it honours `found_inf`, a
    scalar on the device: if it is not 0, nothing changes, and the host does not wait.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None, "the step is made of gradients that are there already"
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        super().step()
        self.param_groups = groups
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for group in groups:
            if group["muon"]:
                for matrices in _by_shape(group["params"]):
                    self._update(matrices, group, found_inf)

    def _update(self, matrices: list[nn.Parameter], group: dict[str, Any], found_inf: Tensor | None) -> None:
        for p in matrices:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        weights, momenta = [_local(p) for p in matrices], [_local(self.state[p]["momentum_buffer"]) for p in matrices]
        gradients = [_local(p.grad) for p in matrices if p.grad is not None]
        rate, decay, beta = group["lr"], group["lr"] * group["weight_decay"], group["momentum"]
        keep: Tensor | float = 1 - decay
        bad: Tensor | None = None
        if found_inf is not None:  # on a bad step the momentum is its own gradient, and so stays as it is
            bad = found_inf.to(gradients[0].device) != 0
            gradients = [torch.where(bad, m, g) for m, g in zip(momenta, gradients, strict=True)]
            keep = torch.where(bad, 1.0, keep)
        torch._foreach_lerp_(momenta, gradients, 1 - beta)
        nesterov_nRC = torch.stack([x.bfloat16() for x in torch._foreach_lerp(gradients, momenta, beta)])
        update_nRC = orthogonalized(nesterov_nRC, matrices[0])
        scale = rate * 0.2 * math.sqrt(max(matrices[0].shape))
        if bad is not None:
            update_nRC = torch.where(bad, 0.0, update_nRC)
        torch._foreach_mul_(weights, keep)
        torch._foreach_add_(weights, [x.to(weights[0].dtype) for x in update_nRC.unbind()], alpha=-scale)


def _by_shape(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    found: dict[torch.Size, list[nn.Parameter]] = {}
    for p in parameters:
        if p.grad is not None:
            found.setdefault(p.shape, []).append(p)
    return list(found.values())


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def orthogonalized(x_nrC: Tensor, like: Tensor) -> Tensor:
    """`orthogonalize` of n matrices, the work shared by all ranks.

    Args:
        x_nrC: bfloat16, this rank's part of every matrix: all of it, or its rows if `like` is a DTensor.
        like: one of the parameters that the matrices belong to.

    Returns:
        the same part of the result.
    """
    if isinstance(like, DTensor):
        sharded = [axis for axis, placement in enumerate(like.placements) if isinstance(placement, Shard)]
        assert all(like.placements[axis] == Shard(0) for axis in sharded), "fully_shard shards rows"
        if sharded:
            assert len(sharded) == 1, "rows are sharded over one axis of the mesh"
            return _by_owners_of_rows(x_nrC, like.shape[0], like.device_mesh.get_group(sharded[0]))
        return orthogonalize(x_nrC)
    return _by_owners(x_nrC) if dist.is_initialized() and dist.get_world_size() > 1 else orthogonalize(x_nrC)


def _by_owners(x_nRC: Tensor) -> Tensor:
    """Every rank has all of every matrix: each makes its share, and all get all."""
    world, rank = dist.get_world_size(), dist.get_rank()
    x_mRC = _padded(x_nRC, world)
    each = len(x_mRC) // world
    mine = orthogonalize(x_mRC[rank * each : (rank + 1) * each])
    gathered_mRC = torch.empty_like(x_mRC)
    dist.all_gather_into_tensor(gathered_mRC.view(torch.uint8), mine.contiguous().view(torch.uint8))
    return gathered_mRC[: len(x_nRC)]


def _by_owners_of_rows(x_nrC: Tensor, rows: int, group: dist.ProcessGroup) -> Tensor:
    """Every rank has some rows of every matrix: they go to the matrix's owner, and come back."""
    world = dist.get_world_size(group)
    most = -(-rows // world)  # rows of a rank; the last ranks may have fewer, or none
    n, own, _ = x_nrC.shape
    sent_wkrC = _padded(torch.nn.functional.pad(x_nrC, (0, 0, 0, most - own)), world).unflatten(0, (world, -1))
    whole_kRC = _exchanged(sent_wkrC, group).transpose(0, 1).flatten(1, 2)
    done_wkrC = orthogonalize(whole_kRC).unflatten(1, (world, most)).transpose(0, 1)  # rows of zeros stay so
    return _exchanged(done_wkrC, group).flatten(0, 1)[:n, :own]


def _exchanged(x_wkrC: Tensor, group: dist.ProcessGroup) -> Tensor:
    x_wkrC = x_wkrC.contiguous()
    received_wkrC = torch.empty_like(x_wkrC)
    dist.all_to_all_single(received_wkrC.view(torch.uint8), x_wkrC.view(torch.uint8), group=group)
    return received_wkrC


def _padded(x: Tensor, multiple: int) -> Tensor:
    """`x` with zeros appended along its first axis up to a multiple."""
    missing = -len(x) % multiple
    return torch.cat((x, x.new_zeros(missing, *x.shape[1:]))) if missing else x


def orthogonalize(x_nRC: Tensor, coefficients: Iterable[tuple[float, float, float]] = POLAR_EXPRESS) -> Tensor:
    """The nearest (semi-)orthogonal matrix of each, U·Vᵀ of its U·S·Vᵀ, to about bfloat16's precision.

    Singular values below about 1e-3 of the Frobenius norm come out smaller than 1. A matrix of zeros stays so.

    Returns:
        bfloat16 [n, R, C].
    """
    tall = x_nRC.shape[1] > x_nRC.shape[2]
    x = x_nRC.mT if tall else x_nRC
    norm_n11 = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=torch.float32)
    x = (x / (norm_n11 * SAFETY + 1e-30)).bfloat16()
    for a, b, c in coefficients:
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x
