"""Drop documents that hold a question which the model will be asked.

Rule: a document is contaminated when its folded text contains the whole folded prompt of a "test" question. A short
prompt ("3 + 4 =") stands in innocent text too, so a prompt of fewer than `SHORT` folded bytes counts only together with
its right answer. A match neither begins nor ends inside an English word or a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from xmodel.corpus.batches import mark
from xmodel.corpus.folding import fold_texts
from xmodel.corpus.search import find, index_phrases

SHORT = 40  # bytes: about seven English words or thirteen Han characters


def held_out_phrases(questions: Iterable[dict[str, Any]]) -> list[bytes]:
    """The folded phrases that no training document may contain: one per distinct test question."""
    tests = [question for question in questions if question["split"] == "test"]
    prompts = fold_texts([question["prompt"] for question in tests])
    solved = fold_texts([question["prompt"] + question["choices"][question["answer"]] for question in tests])
    phrases = (prompt if len(prompt) >= SHORT else whole for prompt, whole in zip(prompts, solved, strict=True))
    return sorted({phrase for phrase in phrases if phrase})


def decontamination(questions: Iterable[dict[str, Any]]) -> Callable[[pa.RecordBatch], pa.RecordBatch]:
    """The stage that marks documents with a held-out question as "contaminated"; needs the column `folded`."""
    phrases = held_out_phrases(questions)
    if not phrases:
        return lambda batch: batch
    index = index_phrases(phrases)

    def stage(batch: pa.RecordBatch) -> pa.RecordBatch:
        covered_D, _ = find(batch["folded"], index)
        return mark(batch, ["contaminated"], np.where(covered_D > 0, 0, -1))

    return stage
