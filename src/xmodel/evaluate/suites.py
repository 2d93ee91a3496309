"""The suites: what is scored under which name, and the tables of their results."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from xmodel.console import progress, table
from xmodel.errors import UserError
from xmodel.evaluate.choices import mean_rows, score_choices
from xmodel.evaluate.perplexity import perplexity
from xmodel.evaluate.questions import TRANSLATION, QuestionSet, load_questions
from xmodel.evaluate.translation import score_translation
from xmodel.files import atomic_write
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
) -> dict[str, Result]:
    """Carry out `settings.suites` on the corpus's held-out text and question sets; the results by suite.

    Args:
        corpus_folder: holds validation/*.parquet and questions/*.jsonl.
        bos: whether documents began with <s> in training.
        perplexity_tokens: score so much of the held-out text in each language.
        document_mask: documents did not see each other in training.

    Raises:
        UserError: an unknown suite, missing files, a tokenizer of another size than the model's vocabulary.
    """
    for suite in settings.suites:
        if suite not in SUITES:
            near = difflib.get_close_matches(suite, SUITES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(SUITES)}"
            raise UserError(f"evaluate.suites: no suite is called {suite!r}; {hint}")
    _check_fit(model, tokenizer)
    results: dict[str, Result] = {}
    for suite in settings.suites:
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
    return results


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
    lines = []
    for row in rows:
        share = row["metric"] in ("acc", "acc_norm")
        scale, digits = (100, 1) if share else (1, 1 if row["metric"] == "chrf" else 3)
        error = row.get("stderr")
        chance = row.get("chance")
        lines.append(
            [
                row.get("suite", ""),
                row["set"] if row["set"] != "validation" else f"validation_{row['language']}",
                row.get("shots", ""),
                row["metric"] + (" %" if share else ""),
                f"{scale * row['value']:.{digits}f}",
                "" if error is None else f"± {scale * error:.{digits}f}",
                "" if chance is None else f"{scale * chance:.{digits}f}",
                row.get("items") or row.get("documents", ""),
            ]
        )
    return table(["suite", "set", "shots", "metric", "value", "stderr", "chance", "items"], lines)
