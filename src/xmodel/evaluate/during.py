"""Scores while a model trains: question sets on fixed subsets, and nothing of the training disturbed."""

from __future__ import annotations

import difflib
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xmodel.errors import UserError
from xmodel.evaluate.choices import score_choices
from xmodel.evaluate.questions import TRANSLATION, QuestionSet, load_questions
from xmodel.model.transformer import Transformer
from xmodel.recipe.settings import Evaluate
from xmodel.tokenizer.codec import Tokenizer

QUESTIONS = ("sandbox", "translation")  # the suites of the run's own question sets

Row = dict[str, Any]


def score_during(
    tokenizer: Tokenizer, questions_folder: Path, settings: Evaluate, bos: bool
) -> Callable[[Transformer], list[Row]]:
    """The function that scores a model in training on `settings.during`, `settings.limit_during` items of each set.

    Names are looked up and items are read and drawn here, once: a mistake is told before the first step.

    Args:
        questions_folder: the run's question sets.
        bos: whether documents begin with <s> in training.

    Returns:
        a function of the model. Its rows are for metrics.jsonl: `accuracy` (share 0 to 1) with `stderr`, `chance` and
        `items`, `accuracy_norm` (by likelihood per byte), `gold_bpb` (bits per byte of the right choices) with
        `gold_bpb_stderr`, and `suite`, `set`, `language` and `shots`.

    Raises:
        UserError: a name that nothing has, or question files that are missing or damaged.
    """
    if not settings.limit_during or not settings.during:
        return lambda model: []
    sets = choose(settings.during, load_questions(questions_folder))
    for questions in sets:
        places = fixed_subset([item.id for item in questions.test], settings.limit_during)
        questions.test = [questions.test[place] for place in places]
    start = tokenizer.bos_id if bos else tokenizer.eos_id

    def score(model: Transformer) -> list[Row]:
        with undisturbed(model):
            return [_row(questions, score_choices(model, tokenizer, questions, 0, start)) for questions in sets]

    return score


def choose(names: Sequence[str], sets: Sequence[QuestionSet]) -> list[QuestionSet]:
    """The sets that `names` (of sets and suites) ask for, each once, in their order."""
    known = {one.name: one for one in sets}
    wanted: dict[str, None] = {}
    for name in names:
        found = [one.name for one in sets if name in (one.name, suite_of(one.name))]
        if not found:
            every = [*QUESTIONS, *known]
            near = difflib.get_close_matches(name, every, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(every)}"
            raise UserError(f"evaluate.during: no suite and no set is called {name!r}; {hint}")
        wanted |= dict.fromkeys(found)
    return [known[name] for name in sorted(wanted)]


def suite_of(set_name: str) -> str:
    """The suite that a question set of the run belongs to."""
    return "translation" if set_name.startswith(TRANSLATION) else "sandbox"


def fixed_subset(names: Sequence[str], limit: int) -> list[int]:
    """The places of `limit` items, in order: those whose names have the smallest hashes.

    So the draw is spread over the whole set, does not depend on the order of the items, and a smaller limit takes a
    part of what a larger one takes.
    """
    hashes = [hashlib.blake2b(name.encode(), digest_size=16).digest() for name in names]
    return sorted(sorted(range(len(names)), key=hashes.__getitem__)[:limit])


@contextmanager
def undisturbed(model: Transformer) -> Iterator[None]:
    """Evaluation mode without gradients, after which training goes on as if nothing had been.

    Random states of Python, NumPy and torch (the model's device too), each module's mode and the default dtype are put
    back, and memory of the device that evaluation alone has used is given back. What is compiled for training runs as
    it is written: requests come in too many shapes to compile.
    """
    device = model.rotary.device
    python, numpy, dtype = random.getstate(), np.random.get_state(), torch.get_default_dtype()
    modes = [(module, module.training) for module in model.modules()]
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            torch.set_default_dtype(dtype)
            np.random.set_state(numpy)
            random.setstate(python)
            if cuda:
                torch.cuda.empty_cache()


def _row(questions: QuestionSet, scored: dict[str, Any]) -> Row:
    rows = {row["metric"]: row for row in scored["results"]}
    about = {key: rows["acc"][key] for key in ("set", "language", "shots", "stderr", "chance", "items")}
    return {
        "suite": suite_of(questions.name),
        **about,
        "accuracy": rows["acc"]["value"],
        "accuracy_norm": rows["acc_norm"]["value"],
        "gold_bpb": rows["gold_bpb"]["value"],
        "gold_bpb_stderr": rows["gold_bpb"]["stderr"],
    }
