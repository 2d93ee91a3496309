"""Simple Chinese-English translation: greedy output against a reference, by chrF (sacrebleu)."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from xmodel.evaluate.questions import QuestionSet
from xmodel.inference.engine import encode_prompt
from xmodel.inference.many import generate_many
from xmodel.model.transformer import Transformer
from xmodel.tokenizer.codec import Tokenizer

SAMPLES = 5  # translations kept in the results, to look at
GROUPS = 20  # of the jackknife


def score_translation(
    model: Transformer, tokenizer: Tokenizer, questions: QuestionSet, shots: int, bos: bool
) -> dict[str, Any]:
    """chrF of greedy translations, which end at a newline.

    Returns:
        results: one row. The value is corpus chrF2, 0 to 100, as sacrebleu has it; `chance` is the chrF of answering
            each item with the next item's reference: fluent and unrelated.
        items: per item its id and the output. samples: a few with source and reference.
        truncated: prompts that lost their beginning, because they did not fit into the model's context.
    """
    started = time.monotonic()
    items = questions.test
    references = [item.reference for item in items]
    longest = max(map(len, tokenizer.encode_batch(references)))
    room = min(longest * 3 // 2 + 8, model.config.context_length // 2)
    fits = model.config.context_length - room
    prompts = [encode_prompt(tokenizer, questions.prompt(item, shots), bos) for item in items]
    # A newline may share a piece with the punctuation before it.
    stop_ids = {tokenizer.eos_id, *(number for number, piece in enumerate(tokenizer.pieces) if b"\n" in piece)}
    answers = generate_many(model, [ids[-fits:] for ids in prompts], max_new_tokens=room, stop_ids=stop_ids)
    outputs = [tokenizer.decode(ids).split("\n")[0].strip() for ids in answers]

    value, stderr = chrf(outputs, references)
    row = {
        "set": questions.name,
        "language": questions.language,
        "shots": shots,
        "metric": "chrf",
        "value": value,
        "stderr": stderr,
        "chance": chrf(references[1:] + references[:1], references)[0],
        "items": len(items),
        "seconds": round(time.monotonic() - started, 2),
    }
    records = [{"id": item.id, "shots": shots, "output": output} for item, output in zip(items, outputs, strict=True)]
    samples = [
        {"source": item.source, "reference": item.reference, "output": output, "set": questions.name, "shots": shots}
        for item, output in zip(items[:SAMPLES], outputs, strict=False)
    ]
    return {
        "results": [row],
        "items": records,
        "samples": samples,
        "truncated": sum(len(ids) > fits for ids in prompts),
    }


def chrf(outputs: Sequence[str], references: Sequence[str]) -> tuple[float, float | None]:
    """Corpus chrF2 (sacrebleu's defaults: 6 characters, no words), 0 to 100, and its standard error.

    The error is the grouped jackknife's: the score without each of `GROUPS` parts of the items in turn.
    (sacrebleu's own bootstrap fails when a resample scores zero.) Of a single item no error is known.
    """
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()

    def score(places: Sequence[int]) -> float:
        return float(metric.corpus_score([outputs[i] for i in places], [[references[i] for i in places]]).score)

    n = len(outputs)
    groups = min(GROUPS, n)
    value = score(range(n))
    if groups < 2:
        return value, None
    without = [score([i for i in range(n) if i % groups != group]) for group in range(groups)]
    mean = sum(without) / groups
    return value, math.sqrt((groups - 1) / groups * sum((part - mean) ** 2 for part in without))
