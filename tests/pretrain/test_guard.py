"""Steps that must not be applied: against the plain definition, in Python floats."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodel.errors import MachineError
from xmodel.pretrain.guard import Rewind, judge, new_guard, progressed
from xmodel.recipe.settings import Pretrain

CPU = torch.device("cpu")
NUMBERS = st.one_of(st.floats(0.5, 4.0, width=32), st.sampled_from([math.nan, math.inf, 50.0, 1e6]))


def verdicts(
    values: list[tuple[float, float]], sigma: float, window: int
) -> tuple[list[bool], dict[str, torch.Tensor]]:
    guard = new_guard(window, CPU)
    return [bool(judge(guard, torch.tensor(a), torch.tensor(b), sigma)) for a, b in values], guard


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=30), st.integers(2, 7), st.sampled_from([0.0, 3.0, 6.0]))
def test_it_is_the_plain_definition(values: list[tuple[float, float]], window: int, sigma: float) -> None:
    found, guard = verdicts(values, sigma, window)
    latest: list[tuple[float, float]] = []
    expected = []
    for pair in values:
        fine = all(map(math.isfinite, pair))
        kept = list(pair)
        if sigma and fine and len(latest) >= math.ceil(window / 2):
            for i, (number, before) in enumerate(zip(pair, zip(*latest[-window:], strict=True), strict=True)):
                limit = statistics.fmean(before) + sigma * statistics.pstdev(before)
                if number == pytest.approx(limit, rel=1e-5):
                    return  # too close to call in float32
                fine = fine and number <= limit
                kept[i] = min(number, limit)
        expected.append(fine)
        if all(map(math.isfinite, pair)):
            latest.append((kept[0], kept[1]))
    assert found == expected
    assert guard["skipped"].item() == expected.count(False)
    assert guard["in_a_row"].item() == len(expected) - 1 - max((i for i, ok in enumerate(expected) if ok), default=-1)


def test_several_spikes_in_a_row_are_told_and_a_shifted_level_is_accepted_in_time() -> None:
    quiet = [(2.0 + 0.1 * math.sin(i), 1.0) for i in range(200)]
    found, _ = verdicts(quiet + [(200.0, 1.0)] * 300, 6.0, 128)
    assert all(found[:200])
    assert not any(found[200:220])
    assert all(found[400:])


def test_it_goes_on_exactly_from_its_saved_state() -> None:
    values = [(2.0 + (i * 7 % 5) / 10 + (9 if i % 11 == 10 else 0), 1.0 + (i * 3 % 4) / 9) for i in range(40)]
    whole, end = verdicts(values, 3.0, 8)
    first, guard = verdicts(values[:17], 3.0, 8)
    copy = {name: tensor.clone() for name, tensor in guard.items()}
    rest = [bool(judge(copy, torch.tensor(a), torch.tensor(b), 3.0)) for a, b in values[17:]]
    assert first + rest == whole
    assert not all(whole)
    assert all(tensor.equal(end[name]) for name, tensor in copy.items())


def test_when_it_goes_back_and_when_it_gives_up() -> None:
    guard = new_guard(4, CPU)
    guard["in_a_row"] += 12
    plain, rewinding = Pretrain(), Pretrain(spike_sigma=6, spike_rewind=5)
    with pytest.raises(MachineError, match="step 30: the last 12 steps were skipped"):
        progressed(guard, 0.0, plain, 30, lambda: 20, [])
    with pytest.raises(MachineError, match=r"spikes; lower pretrain\.peak_lr"):  # nothing to go back to
        progressed(guard, 0.0, rewinding, 30, lambda: None, [])
    with pytest.raises(Rewind) as raised:
        progressed(guard, 0.0, rewinding, 30, lambda: 20, [[4, 2]])
    assert raised.value.spans(20) == [[4, 2], [20, 10]]
    with pytest.raises(MachineError, match="going back to step 20 3 times"):
        Rewind(30, [[20, 10]] * 3).spans(20)
    guard["in_a_row"].zero_()
    assert progressed(guard, 3.0, rewinding, 30, lambda: 20, [])
    assert not progressed(guard, 0.0, plain, 30, lambda: 20, [])
