from __future__ import annotations

import torch

from xmodel.pretrain.flops import DENSE_BF16_PEAKS, measured_peak, peak_flops


def test_a_cpu_is_measured_and_says_so() -> None:
    peak, source = peak_flops(torch.device("cpu"), torch.float32)
    assert 1e9 < peak < 1e14
    assert source == "measured matrix product, float32"


def test_measured_peak_scales_with_a_real_product() -> None:
    assert measured_peak(torch.device("cpu"), torch.float32) > 1e9


def test_specific_names_come_before_general_ones() -> None:
    names = [name for name, _ in DENSE_BF16_PEAKS]
    for index, name in enumerate(names):
        assert not any(earlier in name for earlier in names[:index]), name
