"""Causal attention, and which kernel does it: chosen once before a run, for its device, dtype and head shape."""

from __future__ import annotations

import importlib.util
import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from xmodel.errors import UserError
from xmodel.model.cache import Layout

BLOCK = 64  # queries handled at once by the CPU path: their scores stay in the cache
SDPA_KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "math": SDPBackend.MATH,
}

# Legend: B sequences, T queries, S keys, H query heads, K key/value heads, G = H / K, C head size; R = G·(queries of a
# block), Q queries of a block, n = B·K, e keys that a block sees.


def causal_attention(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, *, kernel: str = "auto") -> Tensor:
    """Grouped-query attention (arXiv 2305.13245) of the last T of S positions, each over itself and what is before it.

    Args:
        kernel: what `choose_attention` returned, for a training step (S = T); "auto": what suits the inputs.

    Returns:
        [B, H, T, C], in the dtype of the inputs, strided so that transposing heads and positions gives a dense tensor.
    """
    new, past = q_BHTC.shape[2], k_BKSC.shape[2] - q_BHTC.shape[2]
    if kernel == "fa3":
        return _flash_attention_3(q_BHTC, k_BKSC, v_BKSC)  # pyright: ignore[reportCallIssue] - torch's decorator
    if kernel in SDPA_KERNELS:
        with sdpa_kernel(SDPA_KERNELS[kernel]):
            return F.scaled_dot_product_attention(
                q_BHTC, k_BKSC, v_BKSC, is_causal=True, enable_gqa=q_BHTC.shape[1] != k_BKSC.shape[1]
            )
    if q_BHTC.device.type == "cpu" and q_BHTC.dtype == torch.bfloat16 and past == 0 and new > 1:
        return torch.ops.xmodel.blocked_attention(q_BHTC, k_BKSC, v_BKSC)
    if past and new > 1:  # is_causal would align the mask to the first key, not to the last
        mask_TS = torch.ones(new, past + new, dtype=torch.bool, device=q_BHTC.device).tril(past)
        return masked_attention(q_BHTC, k_BKSC, v_BKSC, mask_TS)
    grouped = q_BHTC.shape[1] != k_BKSC.shape[1]
    return F.scaled_dot_product_attention(q_BHTC, k_BKSC, v_BKSC, is_causal=past == 0 and new > 1, enable_gqa=grouped)


def masked_attention(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, seen_TS: Tensor) -> Tensor:
    """Grouped-query attention of T queries over those of S keys that a boolean mask lets each one see, [B, H, T, C].

    Args:
        seen_TS: [T, S], or [B, 1, T, S] where rows differ.
    """
    groups = q_BHTC.shape[1] // k_BKSC.shape[1]
    if groups > 1 and q_BHTC.device.type != "cpu":  # the fused kernels that take a mask on a GPU know no groups
        k_BKSC, v_BKSC = (heads.repeat_interleave(groups, dim=1) for heads in (k_BKSC, v_BKSC))
        groups = 1
    return F.scaled_dot_product_attention(q_BHTC, k_BKSC, v_BKSC, attn_mask=seen_TS, enable_gqa=groups > 1)


def cascade_attention(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, layer: int, layout: Layout) -> Tensor:
    """Attention where texts share a beginning, which is read once for all of them (CPU only), [B, H, T, C].

    What queries find in the shared keys and what they find in their own are two softmaxes. Their log-sum-exps say what
    part of the joint one each is (cascade attention, arXiv 2501.01005, section 3.1.2).

    Args:
        k_BKSC: own keys: of the tokens of a packed row (`layout.spans`), or of all that a mask lets a query see.
    """
    batch, heads, new, size = q_BHTC.shape
    kv_heads = k_BKSC.shape[1]
    if layout.seen_B1TS is None:  # one row; the heads that share a key stand where the kernel has its batch
        out_BTHC, lse_BTH = q_BHTC.new_empty(batch, new, heads, size), q_BHTC.new_empty(batch, new, heads).float()
        out_BHTC, lse_BHT = out_BTHC.transpose(1, 2), lse_BTH.transpose(1, 2)
        groups = heads // kv_heads
        for first, last, bias_TT in layout.spans:
            q_GKTC = q_BHTC[0, :, first:last].unflatten(0, (kv_heads, groups)).transpose(0, 1)
            k_GKTC, v_GKTC = (x[:, :, first:last].expand(groups, -1, -1, -1) for x in (k_BKSC, v_BKSC))
            out_GKTC, lse_GKT = _flash(q_GKTC, k_GKTC, v_GKTC, bias_TT)
            out_BHTC[0, :, first:last] = out_GKTC.transpose(0, 1).flatten(0, 1)
            lse_BHT[0, :, first:last] = lse_GKT.transpose(0, 1).flatten(0, 1)
    else:  # a step of decoding: one query a row, and those of the heads that share a key stand together
        assert new == 1
        bias_B1TS = torch.zeros_like(layout.seen_B1TS, dtype=q_BHTC.dtype).masked_fill_(~layout.seen_B1TS, -math.inf)
        out_BKGC, lse_BKG = _flash(q_BHTC.view(batch, kv_heads, -1, size), k_BKSC, v_BKSC, bias_B1TS)
        out_BHTC, lse_BHT = out_BKGC.reshape(q_BHTC.shape), lse_BKG.reshape(batch, heads, 1)
    for cache, length, rows_N in layout.shared:
        keys_1KSC, values_1KSC = (x[layer, :1, :, :length] for x in (cache.keys_LBKSC, cache.values_LBKSC))
        q_NHTC = q_BHTC if rows_N is None else q_BHTC[rows_N]
        queries_1KQC = q_NHTC.unflatten(1, (kv_heads, -1)).permute(1, 0, 2, 3, 4).flatten(1, 3)[None]
        shape = kv_heads, len(q_NHTC), -1, new
        found_1KQC, weight_1KQ = _flash(queries_1KQC, keys_1KSC, values_1KSC, None, causal=False)
        found_NHTC = found_1KQC.reshape(*shape, size).transpose(0, 1).flatten(1, 2)
        lse_NHT = weight_1KQ.reshape(shape).transpose(0, 1).flatten(1, 2)
        rows_N = slice(None) if rows_N is None else rows_N
        part_NHTC = torch.sigmoid(lse_NHT - lse_BHT[rows_N]).unsqueeze(-1).to(q_BHTC.dtype)
        out_BHTC[rows_N] = out_BHTC[rows_N].lerp(found_NHTC, part_NHTC)
    return out_BHTC


def _flash(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool = True) -> tuple[Tensor, Tensor]:
    """Attention and the log-sum-exps of its scores, by the kernel that SDPA uses on a CPU, which keeps these to itself.

    Without a bias it is causal where that is asked for; then there are as many keys as queries.
    """
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(q, k, v, 0.0, causal and bias is None, attn_mask=bias)


def choose_attention(
    wanted: str, heads: int, kv_heads: int, head_size: int, dtype: torch.dtype, device: torch.device
) -> str:
    """The kernel for the training steps of a run: one of SDPA_KERNELS, "blocked" or "fa3".

    `auto` takes the first that can do these heads in this dtype, forward and backward: on a CPU "blocked" (ours) in
    bfloat16; on CUDA cuDNN's from Hopper on, where it is the fastest that PyTorch brings, and flash before. The order
    is fixed, and not timed, so that a run that goes on uses the same kernel again.

    Raises:
        UserError: the kernel that is asked for is not installed, or cannot do this.
    """
    if wanted == "auto" and device.type == "cpu":
        candidates = ["blocked"] if dtype == torch.bfloat16 else ["flash", "math"]
    elif wanted == "auto":
        new = torch.cuda.get_device_capability(device) >= (9, 0)
        candidates = ["cudnn", "flash", "math"] if new else ["flash", "cudnn", "math"]
    else:
        candidates = [wanted]
    if wanted == "fa3" and importlib.util.find_spec("flash_attn_interface") is None:
        raise UserError(
            "pretrain.attention: fa3 needs FlashAttention 3 (the module flash_attn_interface, built from the folder "
            "hopper of github.com/Dao-AILab/flash-attention); auto does without"
        )
    faults = {}
    for kernel in candidates:
        faults[kernel] = _fault(kernel, heads, kv_heads, head_size, dtype, device)
        if faults[kernel] is None:
            return kernel
    what = f"{heads}/{kv_heads} heads of {head_size} in {str(dtype).removeprefix('torch.')} on {device.type}"
    reasons = "; ".join(f"{kernel}: {fault}" for kernel, fault in faults.items())
    raise UserError(f"pretrain.attention: {wanted} cannot do {what} ({reasons}); use auto")


def _fault(
    kernel: str, heads: int, kv_heads: int, head_size: int, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Why a kernel cannot do a small forward and backward pass of these heads; None when it can."""
    q, k, v = (
        torch.zeros(1, 128, n, head_size, dtype=dtype, device=device).transpose(1, 2).requires_grad_()
        for n in (heads, kv_heads, kv_heads)
    )
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns of every kernel that it passes over
            causal_attention(q, k, v, kernel=kernel).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except (RuntimeError, ImportError) as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return None


@torch.compiler.disable  # a third-party module: torch.compile goes around it, in whatever version it is
def _flash_attention_3(q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor) -> Tensor:
    from flash_attn_interface import flash_attn_func  # type: ignore[import-not-found]

    out = flash_attn_func(*(x.transpose(1, 2) for x in (q_BHTC, k_BKTC, v_BKTC)), causal=True)
    return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)  # older releases add the log-sum-exp


# PyTorch's flash kernel for CPUs multiplies blocks too small for the bfloat16 units: 185 ms forward and backward where
# the same in float32 takes 130 and this 75 (B 8, H 8, K 2, T 512, C 32, one Zen 4 core; benchmarks/train_step.py has
# the effect on a step). Here a block's queries of all heads that share a key are the rows of one product, the scores of
# a block live only until the next, and the backward pass makes them again, so memory grows with T, not with T².
# A custom operator, so that torch.compile takes it as it is.
#
# starts_BT, when given, is the first position of each position's document (documents.py): a query sees nothing before
# it, and a block begins with the earliest key that any of its queries sees.


@torch.library.custom_op("xmodel::blocked_attention", mutates_args=())
def blocked_attention(q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, starts_BT: Tensor | None = None) -> Tensor:
    q_nGTC, k_nTC, v_nTC = _grouped(q_BHTC, k_BKTC, v_BKTC)
    groups = q_nGTC.shape[1]
    batch, heads, length, size = q_BHTC.shape
    out_BTHC = q_BHTC.new_empty(batch, length, heads, size)
    out_nGTC = out_BTHC.view(batch, length, -1, groups, size).permute(0, 2, 3, 1, 4)
    for start in range(0, length, BLOCK):
        end, first = min(start + BLOCK, length), _first_key(starts_BT, start)
        p_nRe = _probabilities(q_nGTC, k_nTC, first, start, end, starts_BT)
        out = torch.bmm(p_nRe, v_nTC[:, first:end])
        out_nGTC[:, :, :, start:end] = out.view(batch, -1, groups, end - start, size)
    return out_BTHC.transpose(1, 2)


@torch.library.custom_op("xmodel::blocked_attention_backward", mutates_args=())
def blocked_attention_backward(
    grad_BHTC: Tensor, q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, starts_BT: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    q_nGTC, k_nTC, v_nTC = _grouped(q_BHTC, k_BKTC, v_BKTC)
    n, groups, length, size = q_nGTC.shape
    grad_nGTC = grad_BHTC.reshape(q_nGTC.shape)
    dq_nGTC = q_nGTC.new_empty(q_nGTC.shape)  # dense, whatever the strides of q
    dk_nTC, dv_nTC = (k_nTC.new_zeros(k_nTC.shape, dtype=torch.float32) for _ in range(2))  # sums over the blocks
    for start in range(0, length, BLOCK):
        end, first = min(start + BLOCK, length), _first_key(starts_BT, start)
        p_nRe = _probabilities(q_nGTC, k_nTC, first, start, end, starts_BT)
        grad_nRC, q_nRC = (x[:, :, start:end].reshape(n, -1, size) for x in (grad_nGTC, q_nGTC))
        dp_nRe = torch.bmm(grad_nRC, v_nTC[:, first:end].mT)
        ds_nRe = torch.ops.aten._softmax_backward_data(dp_nRe, p_nRe, -1, p_nRe.dtype)
        dq_nGTC[:, :, start:end] = torch.bmm(ds_nRe, k_nTC[:, first:end]).view(n, groups, end - start, size)
        dk_nTC[:, first:end] += torch.bmm(ds_nRe.mT, q_nRC)
        dv_nTC[:, first:end] += torch.bmm(p_nRe.mT, grad_nRC)
    dq_nGTC *= 1 / math.sqrt(size)
    return (
        dq_nGTC.view(q_BHTC.shape),
        dk_nTC.to(k_BKTC.dtype).view(k_BKTC.shape),
        dv_nTC.to(v_BKTC.dtype).view(v_BKTC.shape),
    )


def _grouped(q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Dense q, scaled by 1/√C, as [n, G, T, C]; dense k and v as [n, T, C]."""
    batch, heads, length, size = q_BHTC.shape
    n, groups = batch * k_BKTC.shape[1], heads // k_BKTC.shape[1]
    q_nGTC = (q_BHTC * (1 / math.sqrt(size))).reshape(n, groups, length, size)
    return q_nGTC, k_BKTC.reshape(n, length, size), v_BKTC.reshape(n, length, size)


def _first_key(starts_BT: Tensor | None, query: int) -> int:
    """The earliest key that a query, or one after it, sees in any sequence: documents begin one after another."""
    return 0 if starts_BT is None else int(starts_BT[:, query].min())


def _probabilities(q_nGTC: Tensor, k_nTC: Tensor, first: int, start: int, end: int, starts_BT: Tensor | None) -> Tensor:
    """Attention weights of queries start..end over keys first..end, [n, R, e]."""
    n, groups, _, size = q_nGTC.shape
    scores_nRe = torch.bmm(q_nGTC[:, :, start:end].reshape(n, -1, size), k_nTC[:, first:end].mT)
    future_QQ = torch.full((end - start, end - start), -math.inf, dtype=q_nGTC.dtype).triu(1)
    scores_nRe.view(n, groups, end - start, end - first)[..., start - first :] += future_QQ
    if starts_BT is not None:
        earlier_BQe = torch.arange(first, end) < starts_BT[:, start:end, None]
        unseen_BQe = torch.zeros(earlier_BQe.shape, dtype=q_nGTC.dtype).masked_fill_(earlier_BQe, -math.inf)
        scores_nRe.view(len(starts_BT), -1, end - start, end - first).add_(unseen_BQe[:, None])
    return torch.softmax(scores_nRe, dim=-1)


@blocked_attention.register_fake
def _(q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, starts_BT: Tensor | None = None) -> Tensor:
    batch, heads, length, size = q_BHTC.shape
    return q_BHTC.new_empty(batch, length, heads, size).transpose(1, 2)


@blocked_attention_backward.register_fake
def _(
    grad_BHTC: Tensor, q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, starts_BT: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(x.new_empty(x.shape) for x in (q_BHTC, k_BKTC, v_BKTC))  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_BHTC: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return *torch.ops.xmodel.blocked_attention_backward(grad_BHTC, *ctx.saved_tensors), None


blocked_attention.register_autograd(_backward, setup_context=_save)
