"""Several replicas give what one gives, in the order of the requests."""

from __future__ import annotations

import random

import pytest
from tiny import make_model, texts

from xmodel.errors import UserError
from xmodel.evaluate.replicas import on_replicas, replicas
from xmodel.evaluate.scorer import loglikelihood
from xmodel.inference.many import generate_many
from xmodel.inference.subjects import Subject

MODEL = make_model(vocab_size=40, context=24)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shares_of_common_beginnings(count: int) -> None:
    models = replicas(MODEL, ["cpu"] * count)
    assert models[0] is MODEL
    assert len({id(model) for model in models}) == count
    requests = [([start, 7, 8, 9, i], [i, 3]) for start in range(4) for i in range(5)]
    random.Random(0).shuffle(requests)
    shares = []

    def score(model, places):
        shares.append([requests[place][0][0] for place in places])
        return loglikelihood(model, [requests[place] for place in places])

    found = on_replicas(models, [context for context, _ in requests], score)
    expected = loglikelihood(MODEL, requests)
    assert [score.logprob for score in found] == pytest.approx([score.logprob for score in expected], abs=1e-5)
    assert len(shares) == count
    assert sum(len(set(share)) for share in shares) <= 4 + count - 1  # a beginning is split at borders only

    prompts = [context for context, _ in requests]
    written = on_replicas(
        models, prompts, lambda model, places: generate_many(model, [prompts[i] for i in places], max_new_tokens=4)
    )
    assert written == generate_many(MODEL, prompts, max_new_tokens=4)


def test_fewer_texts_than_replicas_and_a_device_that_is_not_there() -> None:
    models = replicas(MODEL, ["cpu", "cpu"])
    assert on_replicas(models, [], lambda model, places: places) == []
    assert on_replicas(models, [[1, 2]], lambda model, places: places) == [0]
    with pytest.raises(UserError, match="finds 0 GPUs"):
        replicas(MODEL, ["cpu", "cuda:9"]) if not __import__("torch").cuda.is_available() else pytest.skip("a GPU")


def test_a_sampled_answer_does_not_depend_on_the_number_of_devices(tokenizer) -> None:
    pytest.importorskip("lm_eval", reason="the extra `harness`")
    from lm_eval.api.instance import Instance

    from xmodel.evaluate.harness import SubjectLM

    subject = Subject(make_model(tokenizer.vocab_size), tokenizer, True, "tiny", None, {})
    settings = {"until": ["\n"], "max_gen_toks": 12, "do_sample": True}
    requests = [  # greedy ones between them: a seed is of the place among all, not among those of a temperature
        Instance("generate_until", {}, (text, settings | {"temperature": 0.0 if n % 5 == 0 else 0.9}), n, ("t", n, 1))
        for n, text in enumerate(text[:20] for text in texts()[::13])
    ]
    one, two, three = (
        SubjectLM(subject, devices=["cpu"] * count, fast=True).generate_until(requests) for count in (1, 2, 3)
    )
    assert one == two == three
    same = [
        Instance("generate_until", {}, (texts()[0], settings | {"temperature": 2.0}), n, ("t", n, 1)) for n in (0, 1)
    ]
    assert len(set(SubjectLM(subject).generate_until(same))) == 2  # the same prompt twice is sampled twice
