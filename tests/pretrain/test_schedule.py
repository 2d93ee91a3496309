from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmodel.pretrain.schedule import learning_rate, stable_end
from xmodel.recipe.batches import batch_size, batch_sizes, samples_before, samples_through
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
    schedule=st.sampled_from(["cosine", "constant", "wsd"]),
    shape=st.sampled_from(["linear", "cosine", "sqrt"]),
    decay=st.integers(0, 500),
)
def test_shape(steps: int, warmup: int, peak: float, schedule: str, shape: str, decay: int) -> None:
    settings = Pretrain(
        steps=steps,
        warmup_steps=min(warmup, steps),
        peak_lr=peak,
        final_lr=peak / 10,
        schedule=schedule,  # type: ignore[arg-type]
        decay_shape=shape,  # type: ignore[arg-type]
        decay_steps=min(decay, steps - min(warmup, steps)) if schedule == "wsd" else 0,
    )
    rates = [learning_rate(step, settings) for step in range(1, steps + 1)]
    rise, fall = rates[: settings.warmup_steps], rates[settings.warmup_steps :]
    assert all(0 < rate <= peak * (1 + 1e-12) and math.isfinite(rate) for rate in rates)
    assert rise == sorted(rise)
    assert fall == sorted(fall, reverse=True)
    if schedule == "constant":
        assert set(fall) <= {peak}
    elif fall:
        if stable_end(settings) < steps:
            assert fall[-1] == pytest.approx(peak / 10)
        assert set(rates[settings.warmup_steps : stable_end(settings)]) <= {peak}


@pytest.mark.parametrize(
    ("shape", "halfway", "quarter"), [("linear", 0.5, 0.75), ("cosine", 0.5, 0.8536), ("sqrt", 0.2929, 0.5)]
)
def test_wsd_decays_over_its_last_steps(shape: str, halfway: float, quarter: float) -> None:
    settings = Pretrain(steps=1000, warmup_steps=10, schedule="wsd", decay_steps=200, decay_shape=shape, final_lr=0)  # type: ignore[arg-type]
    assert stable_end(settings) == 800
    for step, share in ((11, 1.0), (800, 1.0), (850, quarter), (900, halfway), (1000, 0.0)):
        assert learning_rate(step, settings) == pytest.approx(settings.peak_lr * share, abs=1e-7)
    assert stable_end(Pretrain(steps=1000, warmup_steps=10, schedule="wsd")) == 800  # a fifth, if nothing is said


@given(
    stages=st.lists(st.integers(1, 50), max_size=5),
    length=st.integers(1, 20),
    batch=st.integers(1, 99),
    step=st.integers(1, 200),
)
def test_the_first_sample_is_the_sum_of_the_batches_before(
    stages: list[int], length: int, batch: int, step: int
) -> None:
    train = Pretrain(global_batch=batch, batch_warmup=stages, batch_warmup_steps=length)
    sizes = [batch_size(n, train) for n in range(1, step + 1)]
    assert samples_before(step, train) == sum(sizes[:-1])
    assert samples_through(step, train) == sum(sizes)
    assert sizes == ([size for size in stages for _ in range(length)] + [batch] * step)[:step]
    assert set(sizes) <= set(batch_sizes(train))
