"""Multiple choice: what is scored, what is picked, and the figures made of it."""

from __future__ import annotations

import math

import pytest
from tiny import slow_logprobs

from xmodel.evaluate.choices import choice_requests, mean_and_error, mean_rows, score_choices
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
    acc, norm = result["results"]
    n = len(items)
    right = sum(record["picked"] == record["answer"] for record in result["items"])
    assert (acc["metric"], acc["value"], acc["items"]) == ("acc", right / n, n)
    assert acc["stderr"] == pytest.approx(math.sqrt(right / n * (1 - right / n) / (n - 1)))
    assert acc["chance"] == pytest.approx(sum(1 / len(item.choices) for item in items) / n)
    assert norm["metric"] == "acc_norm"
    assert norm["value"] == sum(record["picked_norm"] == record["answer"] for record in result["items"]) / n
    assert result["truncated"] == 0


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
