"""Which questions of a benchmark stand in the run's own training text, and what the scores are without them.

The search is the corpus room's; who calls brings it along (`search`). The corpus is read once for all tasks that were
not searched for yet; what was found is kept in RUN/evaluations/contamination.json, for every checkpoint of the run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xmodel.console import log
from xmodel.errors import MachineError
from xmodel.evaluate.choices import mean_and_error
from xmodel.evaluate.diff import read_measured
from xmodel.evaluate.local_rows import LETTERS, data_of
from xmodel.evaluate.tasks import Prepared, open_task, rows_digest, stock, subset_of
from xmodel.files import read_json, write_json

KEPT = "contamination.json"
LARGEST = 20 * 10**9  # bytes of Parquet that are searched without being asked to: minutes
# Fields of a row that give its question away, where these are not all its texts. Passages are left out: they are pages
# that anyone may quote (as in corpus/benchmarks.py), and so are wrong answers.
FIELDS = {
    "boolq": ("question",),
    "sciq": ("question", "correct_answer"),
    "humaneval": ("prompt", "canonical_solution"),
}

Asked = tuple[str, str, list[str]]  # set, item, texts
Search = Callable[[Sequence[Path], Sequence[Asked]], dict[str, Any]]  # what `corpus.contamination.scan` returns


class Met(NamedTuple):
    """What was found of one task's questions."""

    questions: int
    searched: int  # the others are too short, or made of phrases that many of them share
    ids: frozenset[str]  # the contaminated ones: their places among the rows


Known = dict[tuple[str, str], Met]  # by task and digest of its rows


def question_text(folder: str, subset: str, row: Mapping[str, Any]) -> str:
    """A question with its right answer, as it would stand in a text.

    Args:
        folder, subset: as for `local_rows.data_of`.
        row: as documented there, or as the harness has prepared it.
    """
    if folder == "hellaswag":
        whole = f"{row['ctx_a']} {row.get('ctx_b') or ''}" if row.get("ctx_a") else row["query"]
        return f"{whole.strip()} {(row.get('endings') or row['choices'])[int(row['label'])]}"
    if folder == "triviaqa":
        return f"{row['question']} {row['answer'].get('value') or row['answer']['aliases'][0]}"
    data = data_of(folder, subset)
    answer = _right_answer(data.choices, row.get(data.answer), row)
    if folder == "winogrande":
        return row["sentence"].replace("_", answer)
    parts = [row.get(field) or "" for field in FIELDS.get(folder, data.texts + data.blank)]
    return " ".join(filter(None, [*parts, answer]))


def _right_answer(fields: Sequence[str], answer: Any, row: Mapping[str, Any]) -> str:
    """The text of the right choice; nothing where the answer is a label of the texts."""
    if not fields:
        return ""
    if fields == ("choices.text",):
        labels = [str(label) for label in row["choices"]["label"]]
        return row["choices"]["text"][labels.index(str(answer).strip())]
    choices = row[fields[0]] if len(fields) == 1 else [row.get(field) or "" for field in fields]
    if answer in LETTERS:
        return choices[LETTERS.index(answer)]
    return choices[int(answer) - (fields[0] == "option1")]


def met_questions(run: Path, ready: Sequence[Prepared], search: Search, *, anyway: bool = False) -> Known:
    """Look for the questions of the tasks in the run's training text; what was found before is taken as it stands.

    Args:
        run: its text is corpus/train/*.parquet; without any, nothing is known.
        search: called once, with the files and the items of all tasks that are new.
        anyway: also in files of more than `LARGEST` bytes; else nothing new is searched for there.

    Returns:
        What is known of the run's tasks, these and others.
    """
    paths = sorted((run / "corpus" / "train").glob("*.parquet"))
    if not paths:
        return {}
    place = run / "evaluations" / KEPT
    kept = _read_kept(place, _fingerprint(paths))
    asked: list[Asked] = []
    new: dict[str, dict[str, Any]] = {}  # sets by the digest of their texts: two tasks may ask the same questions
    for prepared in ready:
        digest = rows_digest(prepared)
        if digest != kept["tasks"].get(prepared.name, {}).get("rows"):
            texts = _texts(prepared)
            name = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
            kept["tasks"][prepared.name] = {"rows": digest, "set": name}
            if name not in kept["sets"] and name not in new:
                new[name] = {"questions": len(texts), "met": []}
                asked += [(name, str(number), [text]) for number, text in enumerate(texts)]
    size = sum(path.stat().st_size for path in paths)
    if asked and size > LARGEST and not anyway:
        log(
            f"contamination: the run's corpus has {size / 1e9:,.0f} GB of text files, and was not searched for the "
            "benchmarks' questions; --contamination does so"
        )
        kept["tasks"] = {task: entry for task, entry in kept["tasks"].items() if entry["set"] in kept["sets"]}
    elif asked:
        found = search(paths, asked)
        for row in found["sets"]:
            new[row["set"]]["searched"] = row["searched"]
        for item in found["items"]:
            new[item["set"]]["met"].append(item["id"])
        kept["sets"] |= new
        write_json(place, kept)
    known: Known = {}
    for task, entry in kept["tasks"].items():
        one = kept["sets"][entry["set"]]
        known[task, entry["rows"]] = Met(one["questions"], one["searched"], frozenset(one["met"]))
    return known


def _fingerprint(paths: Sequence[Path]) -> str:
    """Of Parquet files: their names, sizes and ends, where the statistics of their columns stand."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - 2**16))
            digest.update(f"{path.name} {size}\n".encode() + stream.read())
    return digest.hexdigest()


def _read_kept(place: Path, corpus: str) -> dict[str, Any]:
    empty = {"corpus": corpus, "tasks": {}, "sets": {}}
    try:
        kept = read_json(place) if place.is_file() else empty
    except MachineError:
        return empty
    return kept if isinstance(kept, dict) and kept.get("corpus") == corpus else empty


def _texts(prepared: Prepared) -> list[str]:
    """The texts of a task's questions, in the order in which they are scored."""
    config = stock(prepared.benchmark, prepared.name, resolve=False)
    subset = subset_of(prepared.benchmark, config)
    if prepared.splits is None:
        rows: Iterable[Any] = open_task(prepared).task_docs
    else:
        rows = prepared.splits[next(iter(prepared.splits))]  # the one that is scored is read first
    return [question_text(prepared.benchmark.data, subset, row) for row in rows]


def clean_scores(folder: Path, contents: Iterable[Mapping[str, Any]], known: Known) -> dict[tuple[str, str], Any]:
    """For each task and right-or-wrong metric, how many questions are contaminated, and the score of the others.

    Args:
        folder: holds the tasks' records.
        contents: of the tasks' files.

    Returns:
        Fields for the task's row: "contaminated" (questions), "searched" (None where not all questions were scored),
        and "clean" with the items, value and stderr of the others (None where there is no such item, or but one).
    """
    fields: dict[tuple[str, str], Any] = {}
    for content in contents:
        met = known.get((content["task"], content["fingerprint"].get("rows", "")))
        if met is None:
            continue
        for (task, _, metric), measured in read_measured(folder / f"{content['task']}.json").items():
            if not measured.binary:
                continue
            pairs = zip(measured.ids, measured.values_N.tolist(), strict=True)
            clean = [value for item, value in pairs if item not in met.ids]
            value, stderr = mean_and_error(clean) if clean else (None, None)
            fields[task, metric] = {
                "contaminated": len(measured.ids) - len(clean),
                "searched": met.searched if len(measured.ids) == met.questions else None,
                "clean": {"items": len(clean), "value": value, "stderr": stderr},
            }
    return fields
