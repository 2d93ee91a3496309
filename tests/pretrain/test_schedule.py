from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmodel.pretrain.schedule import learning_rate
from xmodel.recipe.settings import Pretrain


def test_published_schedule() -> None:
    reference = Pretrain()  # the defaults are the published hyper-parameters
    assert learning_rate(1, reference) == pytest.approx(3e-7)
    assert learning_rate(1_000, reference) == pytest.approx(3e-4)
    assert learning_rate(2_000, reference) == pytest.approx(6e-4)
    assert learning_rate(301_000, reference) == pytest.approx((6e-4 + 6e-5) / 2)  # halfway down the cosine
    assert learning_rate(600_000, reference) == pytest.approx(6e-5)


@given(
    steps=st.integers(1, 500),
    warmup=st.integers(0, 500),
    peak=st.floats(1e-6, 1),
    schedule=st.sampled_from(["cosine", "constant"]),
)
def test_shape(steps: int, warmup: int, peak: float, schedule: str) -> None:
    settings = Pretrain(
        steps=steps,
        warmup_steps=min(warmup, steps),
        peak_lr=peak,
        final_lr=peak / 10,
        schedule=schedule,  # type: ignore[arg-type]
    )
    rates = [learning_rate(step, settings) for step in range(1, steps + 1)]
    rise, fall = rates[: settings.warmup_steps], rates[settings.warmup_steps :]
    assert all(0 < rate <= peak * (1 + 1e-12) and math.isfinite(rate) for rate in rates)
    assert rise == sorted(rise)
    assert fall == sorted(fall, reverse=True)
    if schedule == "constant":
        assert set(fall) <= {peak}
    elif fall:
        assert fall[-1] == pytest.approx(peak / 10)
