"""Output head and cross-entropy in one, without ever holding the logits of a whole batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IGNORED = -100  # target of a position that carries no loss

# Legend: N tokens, R rows of one chunk, D hidden, V vocabulary.


def linear_cross_entropy(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, z_loss: float = 0.0) -> Tensor:
    """Sum over the N tokens of -log softmax(x · weightᵀ)[target], in nats.

    With a `z_loss` the gradient is that of the sum plus z_loss · Σ log²Z, Z being the softmax's normaliser (PaLM, arXiv
    2204.02311, section 5), which keeps logits from growing. The value stays the cross-entropy alone, so that losses of
    runs with and without it compare.

    Args:
        x_ND: hidden states; their dtype is that of the matrix products.
        weight_VD: the head, of any floating dtype (float32 master weights stay float32).
        targets_N: int64 token ids; -100 carries no loss.
        z_loss: weight of log²Z in the gradient.

    Returns:
        float32 scalar; zero when every target is -100.
    """
    wanted = torch.is_grad_enabled() and (x_ND.requires_grad or weight_VD.requires_grad)  # off inside apply
    return _LinearCrossEntropy.apply(x_ND, weight_VD, targets_N, z_loss, wanted)


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradients are made in the forward pass, while a chunk's logits are still in the cache: the loss is the end of
    the graph, so the backward pass only has to scale them. Memory is R·V in place of N·V."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, z_loss: float, wanted: bool) -> Tensor:
        (n, _), vocab, device = x_ND.shape, weight_VD.shape[0], x_ND.device
        head_VD = weight_VD.to(x_ND.dtype)
        rows = min(n, _rows_per_chunk(vocab, device))
        logits_buffer = torch.empty(rows, vocab, dtype=x_ND.dtype, device=device)
        p_buffer = torch.empty(rows, vocab, dtype=torch.float32, device=device)
        total = torch.zeros((), dtype=torch.float32, device=device)
        grad_x_ND = torch.empty_like(x_ND if wanted else x_ND[:0])
        grad_weight_VD = torch.zeros_like(weight_VD if wanted else weight_VD[:0], dtype=torch.float32)
        for start in range(0, n, rows):
            x_RD, targets_R = x_ND[start : start + rows], targets_N[start : start + rows]
            logits_RV, p_RV = logits_buffer[: len(x_RD)], p_buffer[: len(x_RD)]
            valid_R1 = (targets_R != IGNORED).unsqueeze(1)
            index_R1 = targets_R.clamp(min=0).unsqueeze(1)
            torch.mm(x_RD, head_VD.T, out=logits_RV)
            torch.softmax(logits_RV, dim=1, dtype=torch.float32, out=p_RV)
            # log-sum-exp without a second pass of exponentials: the largest probability is exp(largest logit - lse),
            # and it is at least 1 / V, so its logarithm is exact enough (which that of the target's need not be).
            lse_R1 = logits_RV.amax(1, keepdim=True).float() - p_RV.amax(1, keepdim=True).log()
            total += ((lse_R1 - logits_RV.gather(1, index_R1)) * valid_R1).sum()
            if wanted:
                if z_loss:
                    p_RV *= 1 + 2 * z_loss * lse_R1  # the derivative of log²Z is 2 · logZ · softmax
                p_RV.scatter_add_(1, index_R1, torch.full_like(index_R1, -1, dtype=torch.float32))
                grad_RV = logits_RV.copy_(p_RV)  # softmax minus one-hot, in the dtype of the products
                grad_x_ND[start : start + rows] = (grad_RV @ head_VD).mul_(valid_R1)
                grad_weight_VD += grad_RV.T @ (x_RD * valid_R1)
        if wanted:
            ctx.save_for_backward(grad_x_ND, grad_weight_VD)
            ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (scale,) = grad_outputs
        grad_x_ND, grad_weight_VD = ctx.saved_tensors
        return grad_x_ND * scale, (grad_weight_VD * scale).to(ctx.weight_dtype), None, None, None


def _rows_per_chunk(vocab: int, device: torch.device) -> int:
    """Rows whose float32 logits fill 16 MB on a CPU (its cache) or 512 MB elsewhere (few, large kernels)."""
    budget = 16 << 20 if device.type == "cpu" else 512 << 20
    return max(64, budget // (4 * vocab) // 64 * 64)
