"""The suites: what is scored under which name, and the tables of their results."""

from __future__ import annotations

import difflib
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from xmodel.console import log, progress, table
from xmodel.errors import UserError
from xmodel.evaluate import paper
from xmodel.evaluate.choices import mean_rows, score_choices
from xmodel.evaluate.met import Known, clean_scores
from xmodel.evaluate.perplexity import perplexity
from xmodel.evaluate.questions import TRANSLATION, QuestionSet, load_questions
from xmodel.evaluate.results import questions_of, read_results, standing, write_tables, write_task
from xmodel.evaluate.scorer import TooLong
from xmodel.evaluate.tasks import Prepared, definition_digest, open_task, prepare, rows_digest
from xmodel.evaluate.translation import score_translation
from xmodel.files import atomic_write
from xmodel.inference.subjects import Subject
from xmodel.model.transformer import Transformer
from xmodel.recipe.settings import Evaluate
from xmodel.tokenizer.codec import Tokenizer

SUITES = ("perplexity", "sandbox", "translation")
PERPLEXITY_TOKENS = 100_000  # held-out tokens per language

Result = dict[str, Any]  # "results": rows, "items": records of single items, and what else a suite has to tell


def run_suites(
    model: Transformer,
    tokenizer: Tokenizer,
    corpus_folder: Path,
    settings: Evaluate,
    bos: bool,
    perplexity_tokens: int = PERPLEXITY_TOKENS,
    document_mask: bool = False,
    subject: Subject | None = None,
    folder: Path | None = None,
    devices: Sequence[str] = (),
    look_up: Callable[[Sequence[Prepared]], Known] = lambda ready: {},
) -> dict[str, Result]:
    """Carry out `settings.suites` on the corpus's held-out text and question sets; the results by suite.

    Args:
        corpus_folder: holds validation/*.parquet and questions/*.jsonl.
        bos: whether documents began with <s> in training.
        perplexity_tokens: score so much of the held-out text in each language.
        document_mask: documents did not see each other in training.
        subject: the same model, with what is known about it; the paper's suites write that beside their figures.
        folder: where the paper's suites leave their tasks' files and take up what stands; None: nowhere.
        devices: where copies of the model share the paper's suites; none: the model's own alone.
        look_up: which questions of tasks stand in the training text (`met.met_questions`).

    Raises:
        UserError: an unknown suite, missing files, a tokenizer of another size than the model's vocabulary.
    """
    names = (*SUITES, *paper.SUITES)
    for suite in settings.suites:
        if suite not in names:
            near = difflib.get_close_matches(suite, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
            raise UserError(f"evaluate.suites: no suite is called {suite!r}; {hint}")
    _check_fit(model, tokenizer)
    published = [suite for suite in settings.suites if suite in paper.SUITES]
    prepared = (
        prepare_suites(published, Path(settings.benchmarks) if settings.benchmarks else None) if published else None
    )
    results: dict[str, Result] = {}
    for suite in settings.suites:
        if suite in published:
            continue
        if suite == "perplexity":
            texts = corpus_folder / "validation"
            results[suite] = perplexity(model, tokenizer, texts, bos, perplexity_tokens, document_mask)
            continue
        sets = load_questions(corpus_folder / "questions", settings.shots, settings.limit)
        chosen = [questions for questions in sets if questions.name.startswith(TRANSLATION) == (suite == "translation")]
        if not chosen:
            raise UserError(f"{corpus_folder / 'questions'}: no question set for the suite {suite}")
        if suite == "sandbox":
            results[suite] = sandbox(model, tokenizer, chosen, settings.shots, bos)
        else:
            results[suite] = translation(model, tokenizer, chosen, settings.shots, bos)
    if prepared is not None:
        scored = subject or Subject(model, tokenizer, bos, "run", None, {})
        with tempfile.TemporaryDirectory() as nowhere:
            known = look_up(prepared[0])
            rows, missing = score_tasks(
                scored, *prepared, folder or Path(nowhere), limit=settings.limit, devices=devices, known=known
            )
        for row in paper.summarise(rows):
            kept = results.setdefault(row["suite"], {"results": [], "missing": missing})
            kept["results"].append(row)
    return results


def prepare_suites(names: Sequence[str], benchmarks: Path | None, **options: Any) -> tuple[list[Prepared], list[str]]:
    """Read and check the rows of the paper's suites, benchmarks and tasks before a model is asked; see `prepare`.

    Raises:
        UserError: a name that nothing has, a row that is not as documented, or no rows at all.
    """
    ready, missing = prepare(paper.select(names), benchmarks, **options)
    for line in missing:
        log(f"not there: {line}")
    if not ready:
        raise UserError(
            f"{benchmarks}: holds none of {', '.join(names)}; `xmodel evaluate layout` says how files are named"
        )
    return ready, missing


def score_tasks(
    subject: Subject,
    ready: Sequence[Prepared],
    missing: Sequence[str],
    folder: Path,
    *,
    limit: int | None = None,
    devices: Sequence[str] = (),
    known: Known | None = None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Score tasks of the harness one by one, each written to `folder` as it ends; what stands there is skipped.

    Args:
        missing: lines about tasks that cannot be scored.
        limit: only the first so many questions of each task.
        devices: where copies of the model share the requests; none: the model's own alone.
        known: which questions stand in the training text; figures without them stand beside the others.

    Returns:
        The rows of all tasks, and the lines about what could not be scored, those of tasks with answers longer than
        the model's context among them.
    """
    from xmodel.evaluate.harness import SubjectLM, most_new_tokens, score_task

    rows, missing, lm = [], list(missing), SubjectLM(subject, devices=devices, fast=True)
    with progress("evaluate", len(ready), "tasks") as shown:
        for prepared in ready:
            fingerprint = fingerprint_of(subject, prepared, limit)
            content = standing(folder, prepared.name, fingerprint)
            if content is not None:
                log(f"{prepared.name}: stands ({folder / prepared.name}.json)")
            else:
                task = open_task(prepared)
                if (room := most_new_tokens(task)) >= lm.max_length:
                    missing.append(
                        f"{prepared.name}: writes up to {room} tokens, and the model's context holds {lm.max_length}"
                    )
                    log(f"cannot be scored: {missing[-1]}")
                    continue
                try:
                    result = score_task(lm, prepared, task, limit)
                except TooLong as error:
                    missing.append(f"{prepared.name}: {error}")
                    log(f"cannot be scored: {missing[-1]}")
                    continue
                if result["truncated"]:
                    log(f"{prepared.name}: {result['truncated']} requests longer than the context lost their beginning")
                for note in prepared.notes:
                    log(f"{prepared.name}: {note}")
                content = {
                    "suite": prepared.benchmark.suite,
                    "task": prepared.name,
                    "about": subject.about,
                    "settings": {"shots": prepared.shots, "limit": limit, "notes": list(prepared.notes)},
                    "fingerprint": fingerprint,
                    "truncated": result["truncated"],
                    "results": _marked(result["results"], prepared, limit),
                }
                write_task(folder, prepared.name, content, result["items"])
            if not content["results"]:
                missing.append(f"{prepared.name}: its answers are kept, and not run, so it has no score (--run-code)")
                log(missing[-1])
            rows += content["results"]
            shown.advance(1, prepared.name)
    contents = read_results(folder)
    clean = clean_scores(folder, contents, known or {})
    write_tables(folder, contents, subject.name, clean)
    return [row | clean.get((row["set"], row["metric"]), {}) for row in rows], missing


def _marked(rows: Sequence[dict[str, Any]], prepared: Prepared, limit: int | None) -> list[dict[str, Any]]:
    """Rows that say of how many questions the benchmark is, and whether they are of the whole of it."""
    whole = prepared.questions
    more: dict[str, Any] = {} if whole is None else {"benchmark_items": whole}
    more |= {"note": "; ".join(prepared.notes)} if prepared.notes else {}
    return [
        row | more | ({"partial": True} if limit or prepared.notes or row["items"] != (whole or row["items"]) else {})
        for row in rows
    ]


def fingerprint_of(subject: Subject, prepared: Prepared, limit: int | None) -> dict[str, Any]:
    """All that a task's figures follow from."""
    pieces = hashlib.sha256(b"\0".join(subject.tokenizer.pieces))
    return {
        "weights": subject.about.get("sha256"),
        "dtype": subject.about.get("dtype"),
        "tokenizer": f"{pieces.hexdigest()}{'+bos' if subject.bos else ''}",
        "definition": definition_digest(prepared),
        "rows": rows_digest(prepared),
        "shots": prepared.shots,
        "limit": limit,
        "run_code": prepared.run_code,
        "lm_eval": metadata.version("lm_eval"),
    }


def sandbox(
    model: Transformer, tokenizer: Tokenizer, sets: Sequence[QuestionSet], shots: Sequence[int], bos: bool
) -> Result:
    """Multiple choice on every set with every number of shots, and the means over the sets of each language."""
    parts = _choices(model, tokenizer, sets, shots, bos, "sandbox")
    return parts | {"results": parts["results"] + mean_rows(parts["results"])}


def translation(
    model: Transformer, tokenizer: Tokenizer, sets: Sequence[QuestionSet], shots: Sequence[int], bos: bool
) -> Result:
    """Ranking of translations as multiple choice, and greedy translations with chrF."""
    ranking = _choices(model, tokenizer, sets, shots, bos, "translation")
    ranking["results"] = [row for row in ranking["results"] if row["metric"] == "acc"]
    with progress("evaluate translation, greedy", len(sets) * len(shots), "sets") as shown:
        generated = []
        for count in shots:
            for questions in sets:
                generated.append(score_translation(model, tokenizer, questions, count, bos))
                shown.advance(1)
    merged = _merge(generated)
    outputs, samples = merged["items"], [sample for part in generated for sample in part["samples"]]
    return _merge([ranking, merged | {"items": []}]) | {"outputs": outputs, "samples": samples}


def _choices(
    model: Transformer, tokenizer: Tokenizer, sets: Sequence[QuestionSet], shots: Sequence[int], bos: bool, label: str
) -> Result:
    start = tokenizer.bos_id if bos else tokenizer.eos_id
    total = len(shots) * sum(len(item.choices) for questions in sets for item in questions.test)
    with progress(f"evaluate {label}, multiple choice", total, "choices") as shown:
        return _merge(
            score_choices(model, tokenizer, questions, count, start, shown.advance)
            for count in shots
            for questions in sets
        )


def _merge(parts: Iterable[Result]) -> Result:
    parts = list(parts)
    return {
        "results": [row for part in parts for row in part["results"]],
        "items": [record for part in parts for record in part["items"]],
        "truncated": sum(part["truncated"] for part in parts),
    }


def _check_fit(model: Transformer, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} pieces, the model only {model.config.vocab_size}: "
            "they do not belong together"
        )


def write_result(path: Path, suite: str, step: int, result: Result) -> None:
    """Write eval/<suite>.json atomically: JSON with one row, item or sample a line."""
    with atomic_write(path, "w") as stream:
        stream.write(f'{{\n"suite": {json.dumps(suite)},\n"step": {step}')
        for key, value in result.items():
            stream.write(f",\n{json.dumps(key)}: ")
            if isinstance(value, list):
                lines = (json.dumps(row, ensure_ascii=False) for row in value)
                stream.write("[\n" + ",\n".join(lines) + "\n]")
            else:
                stream.write(json.dumps(value, ensure_ascii=False))
        stream.write("\n}\n")


def results_table(rows: Iterable[dict[str, Any]]) -> str:
    """Result rows for people: accuracies in percent with their standard error, chance beside them."""
    lines, found = [], []
    for row in rows:
        share = row["metric"].startswith(("acc", "exact_match", "mean", "f1", "mcc", "pass@"))
        scale, digits = (100, 1) if share else (1, 1 if row["metric"] == "chrf" else 3)
        error = row.get("stderr")
        chance = row.get("chance")
        lines.append(
            [
                row.get("suite", ""),
                row["set"] if row["set"] != "validation" else f"validation_{row['language']}",
                "" if row.get("shots") is None else row["shots"],
                row["metric"] + (" %" if share else ""),
                f"{scale * row['value']:.{digits}f}",
                "" if error is None else f"± {scale * error:.{digits}f}",
                "" if chance is None else f"{scale * chance:.{digits}f}",
                questions_of(row) if row.get("items") else row.get("documents", ""),
            ]
        )
        clean = row.get("clean")
        found.append(
            ["", ""]
            if clean is None
            else [f"{row['contaminated']:,}", "–" if clean["value"] is None else f"{scale * clean['value']:.{digits}f}"]
        )
    heads = ["suite", "set", "shots", "metric", "value", "stderr", "chance", "items"]
    if not any(line[0] for line in lines):  # all of one suite, whose name the reader knows
        heads, lines = heads[1:], [line[1:] for line in lines]
    if any(map(any, found)):  # where a run's corpus was searched for the questions
        return table([*heads, "contaminated", "clean"], [line + more for line, more in zip(lines, found, strict=True)])
    return table(heads, lines)
