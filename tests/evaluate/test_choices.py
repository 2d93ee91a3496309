"""Multiple choice: what is scored, what is picked, and the figures made of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tiny import slow_logprobs

from xmodel.evaluate.choices import (
    choice_requests,
    gold_bits_per_byte,
    mean_and_error,
    mean_rows,
    ratio_and_error,
    score_choices,
)
from xmodel.evaluate.questions import Item, QuestionSet

PROMPTS = ("Mira went to", "小林带着", "The road was long, ", "值")
CHOICES = (" Paris with apples.", " the old harbour.", " 苹果", "3个红苹果", "s")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_requests_are_the_whole_text_as_in_training(tokenizer, prompt: str) -> None:
    requests = choice_requests(tokenizer, 1, prompt, CHOICES)
    assert len({tuple(context) for context, _ in requests}) == 1
    for (context, continuation), choice in zip(requests, CHOICES, strict=True):
        assert continuation
        assert list(context) + list(continuation) == [1, *tokenizer.encode(prompt + choice)]
        assert prompt.startswith(tokenizer.decode(context[1:]))


def test_scores_picks_and_norm(model, tokenizer) -> None:
    items = [
        Item(id=f"{n}", prompt=prompt, choices=CHOICES[: 2 + n % 3], answer=n % 2)
        for n, prompt in enumerate(PROMPTS * 3)
    ]
    questions = QuestionSet("facts_en", "en", items, [])
    result = score_choices(model, tokenizer, questions, 0, tokenizer.bos_id)
    for item, record in zip(items, result["items"], strict=True):
        for choice, logprob in zip(item.choices, record["logprobs"], strict=True):
            context, continuation = choice_requests(tokenizer, 1, item.prompt, item.choices)[item.choices.index(choice)]
            slow = slow_logprobs(model, [*context, *continuation])[-len(continuation) :].sum()
            assert logprob == pytest.approx(float(slow), abs=1e-3)
        assert record["picked"] == max(range(len(item.choices)), key=lambda k: record["logprobs"][k])
        assert record["picked_norm"] == max(
            range(len(item.choices)), key=lambda k: record["logprobs"][k] / len(item.choices[k].encode())
        )
    acc, norm, gold = result["results"]
    n = len(items)
    right = sum(record["picked"] == record["answer"] for record in result["items"])
    assert (acc["metric"], acc["value"], acc["items"]) == ("acc", right / n, n)
    assert acc["stderr"] == pytest.approx(math.sqrt(right / n * (1 - right / n) / (n - 1)))
    assert acc["chance"] == pytest.approx(sum(1 / len(item.choices) for item in items) / n)
    assert norm["metric"] == "acc_norm"
    assert norm["value"] == sum(record["picked_norm"] == record["answer"] for record in result["items"]) / n
    assert result["truncated"] == 0

    bits, sizes = [], []
    for item, record in zip(items, result["items"], strict=True):
        text = item.choices[item.answer]
        bits.append(-record["logprobs"][item.answer] / math.log(2))
        sizes.append(len(text.encode()))
        assert record["gold_bpb"] == pytest.approx(bits[-1] / sizes[-1], abs=1e-3)
    assert (gold["metric"], gold["items"], gold["chance"]) == ("gold_bpb", n, None)
    assert gold["value"] == pytest.approx(sum(bits) / sum(sizes), rel=1e-4)
    assert gold["stderr"] == pytest.approx(ratio_and_error(bits, sizes)[1], rel=1e-3)


def test_bits_per_byte_of_an_answer() -> None:
    assert gold_bits_per_byte(math.log(1 / 256), "a") == pytest.approx(8)  # a byte guessed among 256
    assert gold_bits_per_byte(-3.0, "苹果") == pytest.approx(3 / math.log(2) / 6)
    assert gold_bits_per_byte(0.0, " certain") == 0


def test_error_of_a_ratio_is_that_of_the_bootstrap() -> None:
    rng = np.random.default_rng(0)
    sizes_N = rng.integers(2, 30, 400).astype(float)
    bits_N = sizes_N * rng.gamma(4.0, 0.4, 400) + rng.normal(0, 2, 400)
    ratio, error = ratio_and_error(bits_N.tolist(), sizes_N.tolist())
    draws = rng.integers(0, 400, (4000, 400))
    assert ratio == pytest.approx(bits_N.sum() / sizes_N.sum())
    assert error == pytest.approx(float((bits_N[draws].sum(1) / sizes_N[draws].sum(1)).std()), rel=0.05)
    assert ratio_and_error([3.0], [2.0]) == (1.5, None)
    assert ratio_and_error([2.0, 4.0, 9.0], [1.0, 1.0, 1.0])[1] == pytest.approx(mean_and_error([2.0, 4.0, 9.0])[1])


def test_long_prompts_are_truncated_and_counted(model, tokenizer) -> None:
    items = [Item("0", "Mira went to Paris. " * 40, (" a", " b"), 0), Item("1", "Tom", (" a", " b"), 0)]
    result = score_choices(model, tokenizer, QuestionSet("facts_en", "en", items, []), 0, tokenizer.bos_id)
    assert result["truncated"] == 2


def test_means() -> None:
    def row(name: str, language: str, value: float, stderr: float | None, chance: float) -> dict:
        return {
            "set": name, "language": language, "shots": 0, "metric": "acc", "value": value, "stderr": stderr,
            "chance": chance, "items": 10, "seconds": 1.0,
        }  # fmt: skip

    english, chinese = mean_rows(
        [row("a_en", "en", 0.5, 0.03, 0.25), row("b_en", "en", 0.7, 0.04, 0.5), row("a_zh", "zh", 0.4, None, 0.25)]
    )
    assert (english["set"], english["items"]) == ("mean_en", 20)
    assert english["value"] == pytest.approx(0.6)
    assert english["stderr"] == pytest.approx(0.025)
    assert english["chance"] == pytest.approx(0.375)
    assert (chinese["set"], chinese["stderr"]) == ("mean_zh", None)
    assert mean_and_error([True]) == (1.0, None)
    assert mean_and_error([0.0, 1.0]) == (0.5, pytest.approx(0.5))
