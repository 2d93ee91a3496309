"""Choosing tokens, against transformers' processors and the plain definitions."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodel.inference.sampler import Sampler, pick
from xmodel.inference.sampling import Sampling, SettingError


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 3, 400]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
)
def test_what_may_be_drawn_is_what_transformers_leaves(seed, temperature, top_k, top_p, min_p) -> None:
    warpers = pytest.importorskip("transformers").generation.logits_process
    size = 300
    logits_V = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 2
    scores_BV = warpers.TemperatureLogitsWarper(temperature)(None, logits_V[None].clone())
    if top_k:
        scores_BV = warpers.TopKLogitsWarper(top_k)(None, scores_BV)
    if top_p < 1:
        scores_BV = warpers.TopPLogitsWarper(top_p)(None, scores_BV)
    if min_p:
        scores_BV = warpers.MinPLogitsWarper(min_p)(None, scores_BV)
    chances_V = scores_BV[0].double().softmax(0)
    sampler = Sampler(Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed))
    counts_V = torch.zeros(size)
    draws = 200
    for _ in range(draws):
        token = sampler.choose(logits_V).token
        assert chances_V[token] > 0
        counts_V[token] += 1
    likely = int(chances_V.argmax())
    chance = float(chances_V[likely])
    assert abs(float(counts_V[likely]) / draws - chance) <= 5 * math.sqrt(chance * (1 - chance) / draws) + 1e-9


def test_penalties_are_the_fields() -> None:
    processors = pytest.importorskip("transformers").generation.logits_process
    logits_V = torch.tensor([2.0, -1.0, 0.5, 1.9, 3.0])
    sampler = Sampler(Sampling(repetition_penalty=1.3), prompt=[0, 1])
    expected_BV = processors.RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([[0, 1]]), logits_V[None].clone())
    torch.testing.assert_close(sampler._penalise(logits_V), expected_BV[0])
    assert sampler.choose(logits_V).token == 4
    assert sampler.repeated == {0, 1, 4}
    sampler = Sampler(Sampling(frequency_penalty=0.7, presence_penalty=0.45), prompt=[3, 3])
    assert [sampler.choose(logits_V).token for _ in range(8)] == by_hand(logits_V, 0.7, 0.45, 8)
    torch.testing.assert_close(logits_V, torch.tensor([2.0, -1.0, 0.5, 1.9, 3.0]))  # nobody's logits were changed


def by_hand(logits_V: torch.Tensor, frequency: float, presence: float, steps: int) -> list[int]:
    chosen: list[int] = []
    for _ in range(steps):
        scores = [
            float(score) - frequency * chosen.count(token) - presence * (token in chosen)
            for token, score in enumerate(logits_V)
        ]
        chosen.append(max(range(len(scores)), key=scores.__getitem__))
    return chosen


def test_logprobs_are_the_models_own() -> None:
    logits_V = torch.randn(50, generator=torch.Generator().manual_seed(1))
    choice = Sampler(Sampling(temperature=5.0, repetition_penalty=2.0, seed=2, logprobs=3), [4]).choose(logits_V)
    logs_V = logits_V.double().log_softmax(0)
    assert choice.logprob == pytest.approx(float(logs_V[choice.token]), abs=1e-5)
    assert [token for token, _ in choice.top] == logs_V.topk(3).indices.tolist()
    assert [value for _, value in choice.top] == pytest.approx(logs_V.topk(3).values.tolist(), abs=1e-5)


def test_rows_do_not_know_each_other() -> None:
    logits_RV = torch.randn(3, 40, generator=torch.Generator().manual_seed(3))
    asked = [Sampling(), Sampling(temperature=1.0, seed=4), Sampling(temperature=1.0, top_p=0.9, seed=5)]
    together = pick(logits_RV, [Sampler(one) for one in asked])
    assert together == [pick(logits_RV[i : i + 1], [Sampler(one)])[0] for i, one in enumerate(asked)]
    broken = Sampler(asked[1])
    broken.generator = "none"  # type: ignore[assignment]
    found = pick(logits_RV, [Sampler(asked[0]), broken, Sampler(asked[2])])
    assert isinstance(found[1], Exception)
    assert (found[0], found[2]) == (together[0], together[2])
    assert len({Sampler(Sampling(temperature=1.0)).choose(torch.zeros(1000)).token for _ in range(5)}) > 1


def test_a_nucleus_of_many_tokens_is_whole() -> None:
    """More tokens than are looked at first (`NUCLEUS`): nine tenths of 2,000 equal ones, and nothing beyond."""
    sampler = Sampler(Sampling(temperature=1.0, top_p=0.9, seed=0))
    logits_V = torch.zeros(2000)
    logits_V[1000:] = -1e-3 * torch.arange(1000)  # so that there is an order
    expected_V = torch.zeros(2000, dtype=torch.bool)
    chances_V, order_V = logits_V.double().softmax(0).sort(descending=True, stable=True)
    expected_V[order_V[chances_V.cumsum(0) - chances_V < 0.9]] = True
    drawn = {sampler.choose(logits_V).token for _ in range(4000)}
    assert expected_V[sorted(drawn)].all()
    assert len(drawn) > 0.8 * int(expected_V.sum())


def test_a_greedy_row_with_logprobs_gets_them() -> None:
    logits_RV = torch.randn(2, 20, generator=torch.Generator().manual_seed(0))
    for choice, logits_V in zip(pick(logits_RV, [Sampler(Sampling(logprobs=0))] * 2), logits_RV, strict=True):
        assert isinstance(choice, tuple)
        assert choice.logprob == pytest.approx(float(logits_V.log_softmax(0).max()))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", None),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "1"),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("repetition_penalty", 0),
        ("frequency_penalty", 2.1),
        ("presence_penalty", -2.1),
        ("seed", True),
        ("seed", 2**64),
        ("stop", ("",)),
        ("stop", "x"),
        ("logprobs", 21),
    ],
)
def test_every_error_names_its_field(field: str, value) -> None:
    with pytest.raises(SettingError, match=f"{field} is .*it has to be") as caught:
        Sampling(**{field: value}).check()
    assert caught.value.field == field


def test_settings_are_checked_without_torch() -> None:
    """A command refuses a wrong setting before it loads what takes seconds."""
    program = "import sys, xmodel.inference.sampling as s; s.Sampling().check(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
