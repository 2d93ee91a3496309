"""Few-shot curves: accuracy by the number of solved examples before a question, and what the examples change."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmodel.console import progress, table
from xmodel.errors import UserError
from xmodel.evaluate.choices import mean_and_error, mean_rows, score_choices
from xmodel.evaluate.diff import exact_mcnemar
from xmodel.evaluate.perplexity import start_id
from xmodel.evaluate.questions import TRANSLATION, QuestionSet, load_questions
from xmodel.files import atomic_write, check_drawing

EVERYDAY = Path(__file__).with_name("everyday")
EVERYDAY_SETS = ("everyday_en", "everyday_zh")
PICKS = {"acc": "picked", "acc_norm": "picked_norm"}
# Told apart by those who do not see red and green (Okabe and Ito 2008, "Color universal design").
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def everyday_questions(shots: Sequence[int] = (0,), limit: int | None = None) -> list[QuestionSet]:
    """The sets `everyday_en` and `everyday_zh` that come with the software: 60 questions each, and 8 for examples.

    They ask for physical sense, causes and effects, and simple facts, in sentences written for them; nothing of the
    sandbox is in them.
    """
    return load_questions(EVERYDAY, shots, limit)


def choose_sets(sets: Iterable[QuestionSet], names: Sequence[str]) -> list[QuestionSet]:
    """The sets of these names; of no names all.

    Raises:
        UserError: a name that no set has.
    """
    known = {questions.name: questions for questions in sets}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(known))}"
            raise UserError(f"--sets: no question set is called {name!r}; {hint}")
    return [known[name] for name in (dict.fromkeys(names) if names else known)]


def few_shot_curve(
    model: Any, tokenizer: Any, bos: bool, sets: Sequence[QuestionSet], shots: Sequence[int]
) -> dict[str, Any]:
    """Accuracy on every set with every number of shots, and the paired differences against the fewest.

    The examples of k shots are among those of more (`QuestionSet.prompt`), and all numbers of shots ask the same
    questions, so differences are taken item by item.

    Returns:
        results: rows of `score_choices`, and where a language has several sets their means.
        differences: rows with set, language, metric, shots, against, value (accuracy gained, share 0..1), stderr of
            the paired difference, p (exact McNemar test), and the numbers of items that were won and lost.
        items, truncated: as of `score_choices`.
    """
    shots = sorted(set(shots))
    start = start_id(tokenizer, bos)
    total = len(shots) * sum(len(item.choices) for questions in sets for item in questions.test)
    rows, items, differences, truncated = [], [], [], 0
    with progress("evaluate curve", total, "choices") as shown:
        for questions in sets:
            records: dict[int, list[dict[str, Any]]] = {}
            for count in shots:
                part = score_choices(model, tokenizer, questions, count, start, shown.advance)
                rows += part["results"]
                truncated += part["truncated"]
                records[count] = part["items"]
                items += part["items"]
            differences += [
                _difference(questions, metric, count, records[count], shots[0], records[shots[0]])
                for metric in PICKS
                for count in shots[1:]
            ]
    languages = Counter(questions.language for questions in sets)
    several = [row for row in rows if languages[row["language"]] > 1]
    return {"results": rows + mean_rows(several), "differences": differences, "items": items, "truncated": truncated}


def _difference(
    questions: QuestionSet,
    metric: str,
    shots: int,
    records: Sequence[dict[str, Any]],
    against: int,
    others: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    pick = PICKS[metric]
    right = np.array([record[pick] == record["answer"] for record in records], np.int64)
    before = np.array([record[pick] == record["answer"] for record in others], np.int64)
    value, stderr = mean_and_error((right - before).tolist())
    won, lost = int((right > before).sum()), int((right < before).sum())
    return {
        "set": questions.name,
        "language": questions.language,
        "metric": metric,
        "shots": shots,
        "against": against,
        "value": value,
        "stderr": stderr,
        "p": exact_mcnemar(won, lost),
        "won": won,
        "lost": lost,
        "items": len(right),
    }


def of_run(questions_folder: Path, shots: Sequence[int], limit: int | None) -> list[QuestionSet]:
    """The multiple-choice sets among a run's own question sets; its translations are another experiment."""
    sets = load_questions(questions_folder, shots, limit)
    return [questions for questions in sets if not questions.name.startswith(TRANSLATION)]


def curve_table(result: dict[str, Any], metric: str = "acc") -> str:
    """A line a set, a column a number of shots: accuracy ± standard error in percent, then the paired differences."""
    rows = [row for row in result["results"] if row["metric"] == metric]
    shots = sorted({row["shots"] for row in rows})
    changes = {(row["set"], row["shots"]): row for row in result["differences"] if row["metric"] == metric}
    lines = []
    for name in dict.fromkeys(row["set"] for row in rows):
        own = {row["shots"]: row for row in rows if row["set"] == name}
        line = [name, own[shots[0]]["items"], f"{100 * own[shots[0]]['chance']:.1f}"]
        for count in shots:
            line.append(_percent(own[count]))
            if count != shots[0] and changes:
                change = changes.get((name, count))
                line.append("" if change is None else f"{_percent(change, '+')} (p {change['p']:.2g})")
        lines.append(line)
    headers = ["set", "items", "chance %"]
    for count in shots:
        headers.append(f"{count}-shot {metric} %")
        if count != shots[0] and changes:
            headers.append(f"{count} - {shots[0]}")
    note = "± standard error; differences are paired by item, p is McNemar's exact test"
    return f"{table(headers, lines)}\n{note if changes else '± standard error'}"


def _percent(row: dict[str, Any], sign: str = "") -> str:
    error = "" if row["stderr"] is None else f" ± {100 * row['stderr']:.1f}"
    return f"{100 * row['value']:{sign}.1f}{error}"


def draw_curve(result: dict[str, Any], path: Path, title: str, metric: str = "acc") -> None:
    """Draw accuracy by shots: a panel a language, a line a set with its standard errors, chance dashed.

    Raises:
        UserError: the name of the file does not say a format that is drawn.
    """
    check_drawing(path)
    import matplotlib.style
    from matplotlib.figure import Figure

    rows = [row for row in result["results"] if row["metric"] == metric]
    languages = sorted({row["language"] for row in rows})
    shots = sorted({row["shots"] for row in rows})
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "xmodel"}
    with matplotlib.style.context(["default", style]):
        chart = Figure(figsize=(4.5 * len(languages), 3.6), layout="constrained")
        panels = chart.subplots(1, len(languages), sharey=True, squeeze=False)[0]
        for panel, language in zip(panels, languages, strict=True):
            own = [row for row in rows if row["language"] == language]
            names = list(dict.fromkeys(row["set"] for row in own))
            for number, name in enumerate(names):
                line = sorted((row for row in own if row["set"] == name), key=lambda row: row["shots"])
                mean = name.startswith("mean_")
                panel.errorbar(
                    [shots.index(row["shots"]) for row in line],
                    [100 * row["value"] for row in line],
                    yerr=[100 * (row["stderr"] or 0.0) for row in line],
                    color="#000000" if mean else COLOURS[number % (len(COLOURS) - 1)],
                    linewidth=2 if mean else 1.2,
                    marker="o",
                    markersize=3.5,
                    capsize=2,
                    label=name,
                )
            for level in sorted({100 * row["chance"] for row in own if row["set"] in names}):
                panel.axhline(level, color="#888888", linestyle="--", linewidth=0.8)
            panel.set_xticks(range(len(shots)), map(str, shots))
            panel.set_xlabel("solved examples before the question")
            panel.set_title(language, loc="left", fontsize=10, fontweight="bold")
            panel.legend(frameon=False, fontsize=8)
            panel.grid(axis="y", color="#dddddd", linewidth=0.8)
        panels[0].set_ylabel(f"{metric}, % (± standard error; dashed: chance)")
        chart.suptitle(title, fontsize=10)
        with atomic_write(path) as stream:
            no_date = {"Date": None} if path.suffix.lower() == ".svg" else None
            chart.savefig(stream, format=path.suffix.lower()[1:], dpi=150, metadata=no_date)
