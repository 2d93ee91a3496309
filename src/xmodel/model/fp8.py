"""Matrix products in float8 for training: one scale per tensor, taken from the tensor itself (arXiv 2209.05433).

Activations and weights are rounded to e4m3 (three bits of mantissa), gradients to e5m2 (two, and a wider range); sums
are in float32. The products of the forward and both of the backward pass run at the float8 rate; nothing else does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xmodel.errors import UserError
from xmodel.recipe.settings import Model

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
scaled_mm = torch.ops.aten._scaled_mm
MULTIPLE = 16  # the hardware's tiles: every side of a product is a multiple of it

# Legend: N tokens, I inputs, O outputs.


def fp8_linear(x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """x · weightᵀ, [N, O], in the dtype of x; gradients of x in its dtype and of the weight in the weight's.

    The relative error of a product of Gaussian matrices is about 3.6 % (root mean square) and 5 % in the backward
    pass: that of rounding each factor, since rounding errors and terms grow alike with the length of a sum.
    """
    return _Linear.apply(x_NI, weight_OI)


def check_fp8(model: Model, micro_tokens: int, device: torch.device) -> None:
    """Refuse float8 where it cannot run.

    Args:
        micro_tokens: tokens in one forward pass.

    Raises:
        UserError: the device has no float8 units, or a side of the products is not a multiple of 16.
    """
    where = "pretrain.precision: fp8"
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
        raise UserError(f"{where} needs a GPU of compute capability 8.9 (Ada, Hopper) or more, not {name}; use bf16")
    sides = {
        "model.hidden": model.hidden,
        "model.ffn": model.ffn,
        "model.kv_heads x head size": model.kv_heads * (model.hidden // model.heads),
        "tokens in a micro-batch": micro_tokens,
    }
    for name, size in sides.items():
        if size % MULTIPLE:
            raise UserError(f"{where} needs multiples of {MULTIPLE}, but {name} is {size}; use bf16")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor) -> Tensor:
        x8_NI, x_scale = quantize(x_NI, E4M3)
        w8_OI, w_scale = quantize(weight_OI, E4M3)
        ctx.save_for_backward(x8_NI, x_scale, w8_OI, w_scale)
        ctx.weight_dtype = weight_OI.dtype
        # Sums of the forward pass may be kept in the tensor cores' own, shorter accumulators; gradients' may not.
        return scaled_mm(x8_NI, w8_OI.t(), scale_a=x_scale, scale_b=w_scale, out_dtype=x_NI.dtype, use_fast_accum=True)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        (grad_NO,) = grad_outputs
        x8_NI, x_scale, w8_OI, w_scale = ctx.saved_tensors
        g8_NO, g_scale = quantize(grad_NO, E5M2)
        # The kernels want the left factor in rows and the right one in columns: three copies of one byte per element.
        w8_columns = w8_OI.t().contiguous().t()
        x8_columns = x8_NI.t().contiguous().t()
        grad_x_NI = scaled_mm(g8_NO, w8_columns, scale_a=g_scale, scale_b=w_scale, out_dtype=grad_NO.dtype)
        grad_weight_OI = scaled_mm(
            g8_NO.t().contiguous(), x8_columns, scale_a=g_scale, scale_b=x_scale, out_dtype=torch.float32
        )
        return grad_x_NI, grad_weight_OI.to(ctx.weight_dtype)


def quantize(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x in a float8 `dtype`, and the float32 scalar by which it has to be multiplied to be x again.

    The largest magnitude becomes the format's largest number. Nothing is read by the host. A tensor that holds NaN or
    infinity gives a NaN scale, so that a fault is not hidden by the rounding.
    """
    largest = torch.finfo(dtype).max
    amax = x.abs().amax().float()
    scale = amax.clamp(min=1e-12) / largest
    scale = torch.where(torch.isfinite(amax), scale, torch.nan)
    return (x.float() / scale).clamp(-largest, largest).to(dtype), scale
