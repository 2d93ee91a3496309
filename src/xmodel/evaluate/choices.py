"""Multiple choice by likelihood: the model picks the choice whose text it finds likeliest behind the prompt."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xmodel.evaluate.questions import QuestionSet, chance
from xmodel.evaluate.scorer import Request, loglikelihood, truncated
from xmodel.model.transformer import Transformer
from xmodel.tokenizer.codec import Tokenizer


def score_choices(
    model: Transformer,
    tokenizer: Tokenizer,
    questions: QuestionSet,
    shots: int,
    start: int,
    done: Callable[[int], object] = lambda count: None,
) -> dict[str, Any]:
    """Accuracy on the test items of one set.

    Args:
        shots: solved examples before each question.
        start: the id that stood before every document in training.
        done: called with the number of choices scored since the last call.

    Returns:
        results: three rows. `acc`: the choice of highest log-likelihood is picked; `acc_norm`: of highest
            log-likelihood per UTF-8 byte. `stderr` is that of the mean over items. Of equal scores the first is picked.
            `gold_bpb`: bits of the right choices over their UTF-8 bytes; it has no chance level.
        items: per item its id, the log-likelihood of each choice (nats), both picks, the answer, and bits per byte
            of the right choice.
        truncated: choices that did not fit into the model's context with their prompt.
    """
    started = time.monotonic()
    requests = [
        request
        for item in questions.test
        for request in choice_requests(tokenizer, start, questions.prompt(item, shots), item.choices)
    ]
    scores = iter(loglikelihood(model, requests, done=done))
    items, gold = [], []
    for item in questions.test:
        logprobs = [next(scores).logprob for _ in item.choices]
        per_byte = [value / len(text.encode()) for value, text in zip(logprobs, item.choices, strict=True)]
        items.append(
            {
                "id": item.id,
                "shots": shots,
                "logprobs": [round(value, 4) for value in logprobs],
                "picked": int(np.argmax(logprobs)),
                "picked_norm": int(np.argmax(per_byte)),
                "answer": item.answer,
                "gold_bpb": round(gold_bits_per_byte(logprobs[item.answer], item.choices[item.answer]), 4),
            }
        )
        gold.append((-logprobs[item.answer] / math.log(2), len(item.choices[item.answer].encode())))
    seconds = time.monotonic() - started
    rows = [
        choice_row(questions, shots, metric, [record[picked] == record["answer"] for record in items], seconds)
        for metric, picked in (("acc", "picked"), ("acc_norm", "picked_norm"))
    ]
    value, stderr = ratio_and_error(*zip(*gold, strict=True))
    rows.append(rows[0] | {"metric": "gold_bpb", "value": value, "stderr": stderr, "chance": None})
    return {"results": rows, "items": items, "truncated": truncated(model, requests)}


def choice_requests(tokenizer: Tokenizer, start: int, prompt: str, choices: Sequence[str]) -> list[Request]:
    """The requests of one item: a common context and what follows it in each choice.

    Prompt and choice are encoded as one text, as in training. A token may then reach over the border between them, in
    some choices and not in others; so the context is what all encodings begin with alike, and every choice is scored
    from the same character on.
    """
    encoded = tokenizer.encode_batch([prompt, *(prompt + choice for choice in choices)])
    shared = min(map(len, encoded))
    for ids in encoded[1:]:
        differ = np.flatnonzero(ids[:shared] != encoded[0][:shared])
        shared = int(differ[0]) if len(differ) else shared
    context = [start, *encoded[0][:shared].tolist()]
    return [(context, ids[shared:].tolist()) for ids in encoded[1:]]


def choice_row(
    questions: QuestionSet, shots: int, metric: str, right: Sequence[bool], seconds: float
) -> dict[str, Any]:
    """A result row: the share of right answers and its standard error, beside the chance level of the same items."""
    value, stderr = mean_and_error(right)
    return {
        "set": questions.name,
        "language": questions.language,
        "shots": shots,
        "metric": metric,
        "value": value,
        "stderr": stderr,
        "chance": chance(questions.test),
        "items": len(right),
        "seconds": round(seconds, 2),
    }


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error, s / √n with n − 1 degrees of freedom; of a single value no error is known."""
    mean = float(np.mean(values))
    return mean, float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None


def gold_bits_per_byte(logprob: float, text: str) -> float:
    """Bits that the model needs for a right answer, for each UTF-8 byte of it: less is better, 0 is certainty.

    It moves smoothly while accuracy goes in jumps of an item, and depends neither on the wrong choices nor on the
    tokenizer.

    Args:
        logprob: log P(text | prompt), nats.
        text: the answer as it was scored, the space before it included.
    """
    return -logprob / math.log(2) / len(text.encode())


def ratio_and_error(
    above: Sequence[float] | np.ndarray, below: Sequence[float] | np.ndarray
) -> tuple[float, float | None]:
    """Σ above / Σ below over n items, and its standard error by the delta method.

    For items drawn independently that is √(n / (n − 1) · Σ (above − ratio · below)²) / Σ below.
    """
    above_N, below_N = np.asarray(above, np.float64), np.asarray(below, np.float64)
    ratio, n = float(above_N.sum() / below_N.sum()), len(above_N)
    if n < 2:
        return ratio, None
    residuals_N = above_N - ratio * below_N
    return ratio, math.sqrt(n / (n - 1) * float(residuals_N @ residuals_N)) / float(below_N.sum())


def mean_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each language, number of shots and metric the plain mean over its sets, as a row `mean_<language>`.

    The sets are independent samples, so the error of their mean is √(Σ stderr²) / number of sets.
    """
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["language"], row["shots"], row["metric"]), []).append(row)
    means = []
    for (language, shots, metric), group in groups.items():
        errors = [row["stderr"] for row in group]
        chances = [row["chance"] for row in group]
        means.append(
            {
                "set": f"mean_{language}",
                "language": language,
                "shots": shots,
                "metric": metric,
                "value": sum(row["value"] for row in group) / len(group),
                "stderr": None if None in errors else math.hypot(*errors) / len(group),
                "chance": None if None in chances else sum(chances) / len(group),
                "items": sum(row["items"] for row in group),
                "seconds": round(sum(row["seconds"] for row in group), 2),
            }
        )
    return means
