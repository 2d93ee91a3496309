from __future__ import annotations

import torch

from xmodel.pretrain.flops import measured_peak, peak_flops


def test_a_cpu_is_measured_and_says_so() -> None:
    peak, source = peak_flops(torch.device("cpu"), torch.float32)
    assert 1e9 < peak < 1e14
    assert source == "measured matrix product, float32"


def test_measured_peak_scales_with_a_real_product() -> None:
    assert measured_peak(torch.device("cpu"), torch.float32) > 1e9
