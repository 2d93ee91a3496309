"""Scores while a model trains: question sets and the paper's suites on fixed subsets, and training undisturbed."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from xmodel.console import log
from xmodel.errors import UserError
from xmodel.evaluate.choices import score_choices
from xmodel.evaluate.questions import TRANSLATION, QuestionSet, load_questions
from xmodel.inference.subjects import Subject
from xmodel.model.transformer import Transformer
from xmodel.recipe.settings import Evaluate
from xmodel.tokenizer.codec import Tokenizer

if TYPE_CHECKING:
    from xmodel.evaluate.tasks import Prepared

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
        `items`, `accuracy_norm` (by likelihood per byte) and `gold_bpb` (bits per byte of the right choices) with their
        `_stderr` where a task has them, and `suite`, `set`, `language` and `shots`.

    Raises:
        UserError: a name that nothing has, files of questions or benchmarks that are missing or damaged, or names of
            benchmarks while lm-eval is not installed.
        MachineError: the hub's rows cannot be had.
    """
    limit = settings.limit_during
    if not limit or not settings.during:
        return lambda model: []
    sets, others = choose(settings.during, questions_folder)
    for questions in sets:
        places = fixed_subset([item.id for item in questions.test], limit)
        questions.test = [questions.test[place] for place in places]
    start = tokenizer.bos_id if bos else tokenizer.eos_id
    drawn = _draw(others, Path(settings.benchmarks) if settings.benchmarks else None, limit) if others else []

    def score(model: Transformer) -> list[Row]:
        with undisturbed(model):
            rows = [
                _row(score_choices(model, tokenizer, questions, 0, start)["results"], "acc", suite_of(questions.name))
                for questions in sets
            ]
            return rows + (_score_benchmarks(Subject(model, tokenizer, bos, "run", None, {}), drawn) if drawn else [])

    return score


def choose(names: Sequence[str], questions_folder: Path) -> tuple[list[QuestionSet], list[str]]:
    """The question sets that `names` of sets and suites ask for, each once, and the names that are the harness's.

    A run without question sets of its own may name the harness's alone.
    """
    own = any(name in QUESTIONS for name in names) or any(questions_folder.glob("*.jsonl"))
    known = {one.name: one for one in load_questions(questions_folder)} if own else {}
    wanted: set[str] = set()
    others: list[str] = []
    for name in names:
        found = {each for each in known if name in (each, suite_of(each))}
        wanted |= found
        if not found:
            others.append(name)
    if others and importlib.util.find_spec("lm_eval") is None:
        near = difflib.get_close_matches(others[0], [*QUESTIONS, *known], n=1)
        hint = f"did you mean {near[0]}?" if near else "the paper's suites need pip install 'xmodel[harness]'"
        raise UserError(f"evaluate.during: no question set or suite of this run is called {others[0]!r}; {hint}")
    if others:
        from xmodel.evaluate.paper import select, unknown

        for name in others:
            try:
                select([name])
            except UserError:
                raise UserError(f"evaluate.during: {unknown(name, [*QUESTIONS, *known])}") from None
    return [one for name, one in sorted(known.items()) if name in wanted], others


class Drawn(NamedTuple):
    """A task of the harness, opened, and the questions of it that are asked."""

    prepared: Prepared
    task: Any
    places: list[int]


def _draw(names: Sequence[str], folder: Path | None, limit: int) -> list[list[Drawn]]:
    """By benchmark the tasks that names stand for; `limit` questions of each benchmark, over all its tasks together."""
    from xmodel.evaluate.suites import prepare_suites
    from xmodel.evaluate.tasks import open_task

    ready, _ = prepare_suites(names, folder)
    by_benchmark: dict[str, list[tuple[Prepared, Any]]] = {}
    for prepared in ready:
        by_benchmark.setdefault(prepared.benchmark.name, []).append((prepared, open_task(prepared)))
    drawn = []
    for opened in by_benchmark.values():
        questions = [(task, place) for task, (_, one) in enumerate(opened) for place in range(len(one.task_docs))]
        chosen = fixed_subset([f"{opened[task][0].name}/{place}" for task, place in questions], limit)
        parts = [
            Drawn(prepared, task, [place for own, place in map(questions.__getitem__, chosen) if own == number])
            for number, (prepared, task) in enumerate(opened)
        ]
        drawn.append([part for part in parts if part.places])
    return drawn


def _score_benchmarks(subject: Subject, drawn: Sequence[Sequence[Drawn]]) -> list[Row]:
    """A row for each benchmark; one that this model cannot be asked is left out aloud, and training goes on."""
    from xmodel.evaluate.harness import SubjectLM, most_new_tokens, score_task
    from xmodel.evaluate.paper import benchmark_rows

    lm, rows = SubjectLM(subject), []
    for parts in drawn:
        benchmark, results = parts[0].prepared.benchmark, []
        try:
            for prepared, task, places in parts:
                if (room := most_new_tokens(task)) >= lm.max_length:
                    raise UserError(f"it writes up to {room} tokens, and the model's context holds {lm.max_length}")
                results += score_task(lm, prepared, task, places=places)["results"]
        except UserError as error:
            log(f"evaluate.during: {benchmark.name} is left out: {error}")
            continue
        if len(parts) > 1:
            results = benchmark_rows(benchmark, results)
        if any(row["metric"] == benchmark.metric for row in results):
            rows.append(_row(results, benchmark.metric, benchmark.suite))
    return rows


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


def _row(results: Sequence[Row], metric: str, suite: str) -> Row:
    """One row for metrics.jsonl from the result rows of a set; `metric` is the one that its accuracy is."""
    rows = {row["metric"]: row for row in results}
    row = {"suite": suite, "accuracy": rows[metric]["value"]}
    row |= {key: rows[metric][key] for key in ("set", "language", "shots", "stderr", "chance", "items")}
    for other, name in (("acc_norm", "accuracy_norm"), ("gold_bpb", "gold_bpb")):
        if other in rows:
            row |= {name: rows[other]["value"], f"{name}_stderr": rows[other]["stderr"]}
    return row
