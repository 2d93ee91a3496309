"""The scorer against the plain definition, whatever the batches."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import count_tokens, make_model, slow_logprobs

from xmodel.errors import UserError
from xmodel.evaluate import scorer
from xmodel.evaluate.scorer import Request, Score, loglikelihood, truncated
from xmodel.inference import prefixes
from xmodel.model.transformer import Transformer

MODEL = make_model(vocab_size=40, context=24)
IDS = st.integers(0, 39)


def plain(model: Transformer, request: Request) -> Score:
    context, continuation = map(list, request)
    ids = (context + continuation)[-(model.config.context_length + 1) :]
    greedy = True
    for place in range(len(ids) - len(continuation), len(ids)):
        with torch.no_grad():
            greedy &= int(model(torch.tensor([ids[:place]]))[0, -1].argmax()) == ids[place]
    return Score(float(slow_logprobs(model, ids)[-len(continuation) :].sum()), greedy)


@settings(max_examples=40, deadline=None)
@given(
    groups=st.lists(
        st.tuples(
            st.lists(IDS, min_size=1, max_size=40),
            st.lists(st.lists(IDS, min_size=1, max_size=9), min_size=1, max_size=5),
        ),
        min_size=1,
        max_size=6,
    ),
    budget=st.integers(1, 300),
    seed=st.integers(0, 99),
)
def test_equals_the_definition_whatever_the_order_and_the_batches(groups, budget, seed) -> None:
    requests = [(context, continuation) for context, continuations in groups for continuation in continuations]
    random.Random(seed).shuffle(requests)
    scores = loglikelihood(MODEL, requests, budget=budget)
    for request, score in zip(requests, scores, strict=True):
        expected = plain(MODEL, request)
        assert score.logprob == pytest.approx(expected.logprob, abs=1e-4)
        assert score.greedy == expected.greedy


@settings(max_examples=30, deadline=None)
@given(data=st.data(), budget=st.integers(1, 120), seed=st.integers(0, 9))
def test_nested_prefixes_duplicates_and_texts_that_go_on_from_others(data, budget, seed) -> None:
    """Requests that grow out of one another, under costs at which every way to share pays: cached, in a row, or none."""
    texts = [[1]]
    for _ in range(data.draw(st.integers(1, 9))):
        parent = data.draw(st.sampled_from(texts))
        texts.append(parent + data.draw(st.lists(IDS, min_size=1, max_size=6)))
    grown = [text for text in texts if len(text) > 1]
    requests = []
    for text in data.draw(st.lists(st.sampled_from(grown), min_size=1, max_size=12)):
        cut = data.draw(st.integers(1, len(text) - 1))
        cut = max(cut, len(text) - 24)
        requests.append((text[:cut], text[cut:]))
    random.Random(seed).shuffle(requests)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefixes, "MIN_PREFIX", data.draw(st.sampled_from([1, 3, 16])))
        worth, tree = data.draw(st.sampled_from([1, 8, 100])), data.draw(st.sampled_from([-1, 0, 4, 100]))
        cells, cascade = data.draw(st.sampled_from([1, 1000])), data.draw(st.booleans())
        patch.setitem(scorer.COSTS, "cpu", scorer.Costs(budget, tree, worth, cells, cascade))
        scores = loglikelihood(MODEL, requests)
    for request, score in zip(requests, scores, strict=True):
        expected = plain(MODEL, request)
        assert score.logprob == pytest.approx(expected.logprob, abs=1e-4)
        assert score.greedy == expected.greedy


@pytest.mark.parametrize("cascade", [False, True])
def test_a_common_beginning_of_many_is_cached_and_nests(monkeypatch: pytest.MonkeyPatch, cascade: bool) -> None:
    monkeypatch.setitem(scorer.COSTS, "cpu", scorer.Costs(64, 4, 4, 1000, cascade))
    monkeypatch.setattr(prefixes, "MIN_PREFIX", 2)
    seen = count_tokens(monkeypatch)
    shots, subjects = [7, 8, 9, 10], ([11, 12, 13, 14], [15, 16, 17, 18])
    requests = [([*shots, *subject, 20 + i, 3], [j]) for subject in subjects for i in range(9) for j in range(4)]
    scores = loglikelihood(MODEL, requests)
    assert sum(seen) == 4 + 2 * 4 + 2 * 9 * 2  # of the four answers, one position
    for request, score in zip(requests[::7], scores[::7], strict=True):
        assert score.logprob == pytest.approx(plain(MODEL, request).logprob, abs=1e-4)


def test_bfloat16_is_within_its_rounding_whatever_the_budget() -> None:
    model = make_model(vocab_size=40, context=24)
    requests = [([1, *range(k, k + 9)], [k, 5, c]) for k in range(6) for c in (3, 4)]
    exact = [score.logprob for score in loglikelihood(model, requests)]
    model.compute_dtype = torch.bfloat16
    for budget in (1, 40, 400):
        rough = [score.logprob for score in loglikelihood(model, requests, budget=budget)]
        assert rough == pytest.approx(exact, rel=0.03, abs=0.15)


def test_the_softmax_is_in_float32_whatever_the_model_computes_in() -> None:
    model = make_model(vocab_size=40, context=24)
    model.compute_dtype = torch.bfloat16
    with torch.no_grad():
        hidden_ND = model.hidden(torch.arange(1, 13)[None])[0]
        targets_N = torch.arange(12)
        found_N, _ = scorer.target_logprobs(model, hidden_ND, targets_N)
        exact_NV = model.head(hidden_ND).double().log_softmax(1)
    torch.testing.assert_close(found_N.double(), exact_NV[torch.arange(12), targets_N], atol=1e-5, rtol=0)


def test_greedy_continuations_are_recognised() -> None:
    ids = [1, 5]
    for _ in range(6):
        with torch.no_grad():
            ids.append(int(MODEL(torch.tensor([ids]))[0, -1].argmax()))
    wrong = [*ids[:-1], (ids[-1] + 1) % 40]
    right, other = loglikelihood(MODEL, [(ids[:2], ids[2:]), (wrong[:2], wrong[2:])])
    assert right.greedy
    assert not other.greedy
    assert right.logprob > other.logprob


def test_a_shared_context_goes_through_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = count_tokens(monkeypatch)
    loglikelihood(MODEL, [(list(range(20)), [choice, 3]) for choice in range(4)])
    assert sum(seen) == 20 + 4  # the context once, and of each choice all but its last token


def test_truncation_is_counted_and_reports_progress() -> None:
    requests = [([1] * 23, [2, 3]), ([1] * 22, [2, 3]), ([1] * 24, [2]), ([1] * 25, [2])]
    assert truncated(MODEL, requests) == 1  # 24 tokens fit before the last one, which is predicted and never read
    done = []
    others = [([3, *context], continuation) for context, continuation in requests]
    loglikelihood(MODEL, requests + others, budget=30, done=done.append)
    assert sum(done) == 8
    assert len(done) > 1
    assert loglikelihood(MODEL, []) == []


@pytest.mark.parametrize(
    ("request_", "message"),
    [(([], [1]), "at least one token"), (([1], []), "at least one token"), (([1], [2] * 25), "25 tokens is longer")],
)
def test_what_cannot_be_scored_is_refused(request_: Request, message: str) -> None:
    with pytest.raises(UserError, match=message):
        loglikelihood(MODEL, [request_])


def test_a_diverged_model_does_not_get_a_score() -> None:
    broken = make_model(vocab_size=40, context=24)
    with torch.no_grad():
        broken.model.norm.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="not finite"):
        loglikelihood(broken, [([1], [2])])
