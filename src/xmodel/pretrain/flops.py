"""Model FLOP utilisation: what share of a stated peak the training reaches."""

from __future__ import annotations

import time

import torch

from xmodel.hardware import of_device


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """The peak that MFU is a share of, in FLOP/s, and where it comes from.

    A known GPU in bfloat16 has its data sheet's dense peak. Anything else (a CPU, float32, an unknown GPU) is measured:
    the best of a few large matrix products in `dtype`.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        gpu = of_device(torch.cuda.get_device_name(device))
        if gpu is not None:
            return gpu.bf16, f"data sheet, {gpu.name}, dense bf16"
    return measured_peak(device, dtype), f"measured matrix product, {str(dtype).removeprefix('torch.')}"


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Best FLOP/s of a square matrix product in a fraction of a second."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, begun = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - begun < 0.3:
        started = time.perf_counter()
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
