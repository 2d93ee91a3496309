"""Result files of scored tasks, one a task, written as each task ends; what stands is not scored twice; the tables.

`TASK.json` holds what was scored with which settings, and its rows; `TASK.items.jsonl.zst` a record a question.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xmodel.console import table
from xmodel.errors import MachineError
from xmodel.evaluate.paper import BENCHMARKS, MISPRINTS, PUBLISHED, published_columns, summarise
from xmodel.files import atomic_write, read_json, write_json

ITEMS = ".items.jsonl.zst"
TABLES = "tables.json"
CONTAMINATED = (
    "Contaminated: of a question with its right answer 13 words or 30 Han characters in a row, or all of a shorter "
    "one, stand in a document of the run's training text. Clean: the others; they may be harder or easier."
)


def write_task(folder: Path, task: str, content: Mapping[str, Any], items: Iterable[Mapping[str, Any]]) -> None:
    """Write a task's two files, the items first: where `TASK.json` stands, both are whole."""
    import pyarrow

    lines = b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in items)
    with atomic_write(folder / (task + ITEMS)) as stream:
        stream.write(pyarrow.compress(lines, "zstd", asbytes=True))
    write_json(folder / f"{task}.json", dict(content))


def read_items(folder: Path, task: str) -> list[dict[str, Any]]:
    """The records of a task's questions, in their order.

    Raises:
        MachineError: the file is missing or damaged.
    """
    import pyarrow

    path = folder / (task + ITEMS)
    try:
        with pyarrow.input_stream(str(path), compression="zstd") as stream:
            return [json.loads(line) for line in stream.read().splitlines()]
    except FileNotFoundError:
        raise MachineError(f"{path}: missing") from None
    except (OSError, ValueError) as error:
        raise MachineError(f"{path}: damaged ({error})") from None


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The contents of all task files of a folder, by name: task, about, settings, fingerprint, results, truncated.

    Raises:
        MachineError: a file is damaged.
    """
    contents = [read_json(path) for path in sorted(folder.glob("*.json"))]
    return [content for content in contents if isinstance(content, dict) and "fingerprint" in content]


def standing(folder: Path, task: str, fingerprint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The content of a task's file, if it was scored with exactly these weights, definition, rows and settings."""
    path = folder / f"{task}.json"
    if not fingerprint.get("weights") or not path.is_file() or not (folder / (task + ITEMS)).is_file():
        return None
    try:
        content = read_json(path)
    except MachineError:
        return None
    return content if content.get("fingerprint") == fingerprint else None


def write_tables(
    folder: Path, contents: Iterable[Mapping[str, Any]], name: str, clean: Mapping[tuple[str, str], Any]
) -> None:
    """Write the tables of all tasks that stand in `folder` as tables.json, for pages that read files alone.

    Args:
        contents: of the tasks' files.
        clean: of `met.clean_scores`.
    """
    rows = [row | clean.get((row["set"], row["metric"]), {}) for content in contents for row in content["results"]]
    write_json(folder / TABLES, [each._asdict() for each in tables(summarise(rows), name)])


class Table(NamedTuple):
    """A table of results, before it is written for a reader."""

    title: str
    headers: list[str]
    rows: list[list[str]]
    notes: list[str]


def tables(rows: Sequence[dict[str, Any]], name: str) -> list[Table]:
    """For every suite with results: ours beside what the paper published; then contamination, where it is known, and
    all figures with their standard errors.

    Args:
        rows: of `paper.summarise`.
        name: what our model is called.
    """
    suites = dict.fromkeys(row["suite"] for row in rows)
    found = [_beside_published(suite, rows, name) for suite in suites if suite in PUBLISHED]
    return [*found, *_contamination(rows), _all_figures(rows)]


def _beside_published(suite: str, rows: Sequence[dict[str, Any]], name: str) -> Table:
    columns = published_columns(suite)
    metrics = {benchmark.name: benchmark.metric for benchmark in BENCHMARKS}
    titles = {benchmark.name: benchmark.title for benchmark in BENCHMARKS}
    ours = {
        row["set"]: row for row in rows if row["suite"] == suite and row["metric"] == metrics.get(row["set"], "mean")
    }
    headers = [titles.get(column, _mean_title(column, suite)) for column in columns]
    partial = [column for column in columns if ours.get(column, {}).get("partial")]
    lines = [
        [name, *(_percent(ours.get(column, {}).get("value")) + "†" * (column in partial) for column in columns)],
        ["  ± standard error", *(_percent(ours.get(column, {}).get("stderr")) for column in columns)],
        ["  chance", *(_percent(ours.get(column, {}).get("chance")) for column in columns)],
    ]
    notes = ["Percent. Published figures: arXiv 2406.02856, without standard errors."]
    if any(row.get("contaminated") for row in ours.values()):
        clean = [ours.get(column, {}).get("clean") or {} for column in columns]
        lines.insert(2, ["  without contaminated", *(_percent(each.get("value")) for each in clean)])
    if partial:
        notes.append(
            "† partial: some of its benchmarks, tasks or rows were not there; it compares with nothing published."
        )
        short = [
            f"{title} {questions_of(ours[column])}"
            for column, title in zip(columns, headers, strict=True)
            if column in partial and " of " in questions_of(ours[column])
        ]
        notes += [f"Questions scored: {', '.join(short)}."] if short else []
        named = zip(columns, headers, strict=True)
        notes += [f"{title}: {note}." for column, title in named if (note := ours.get(column, {}).get("note"))]
    for model, figures in sorted(PUBLISHED[suite].items(), key=lambda item: item[1][-1]):
        cells = []
        for column, figure in zip(columns, figures, strict=True):
            true = MISPRINTS.get((suite, model, column.removesuffix(f"_{suite}")))
            cells.append(f"{figure:.2f}" + "*" * (true is not None))
            if true is not None:
                notes.append(f"* as printed for {model}; the mean of its row is {true:.2f}.")
        lines.append([model, *cells])
    return Table(suite, ["model", *headers], lines, notes)


def _mean_title(column: str, suite: str) -> str:
    return column.removesuffix(f"_{suite}").replace("_", " ").replace("gsm8k", "GSM8K")


def _contamination(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """Of each benchmark's figure, how much of it was met in training, and the figure of the rest."""
    metrics = {benchmark.name: benchmark.metric for benchmark in BENCHMARKS}
    shown = [row for row in rows if "clean" in row and row["metric"] == metrics.get(row["set"], "mean")]
    lines = [
        [
            row["set"],
            f"{row['items']:,}",
            "–" if row["searched"] is None else f"{row['searched']:,}",
            f"{row['contaminated']:,}",
            _percent(row["contaminated"] / row["items"]),
            *map(_percent, (row["value"], row["stderr"], row["clean"]["value"], row["clean"]["stderr"])),
        ]
        for row in shown
    ]
    heads = ["set", "items", "searched", "contaminated", "%", "all %", "± s.e.", "clean %", "± s.e."]
    return [Table("contamination", heads, lines, [CONTAMINATED])] if lines else []


def _all_figures(rows: Sequence[dict[str, Any]]) -> Table:
    lines = []
    for row in rows:
        plain = row["metric"] in ("perplexity", "gold_bpb")
        value, error = (
            f"{row[key]:.3f}" if plain and row[key] is not None else _percent(row[key]) for key in ("value", "stderr")
        )
        shots = "" if row["shots"] is None else str(row["shots"])
        mark = "†" if row.get("partial") else ""
        lines.append(
            [
                row["suite"],
                row["set"],
                shots,
                row["metric"],
                value + mark,
                error,
                _percent(row["chance"]),
                questions_of(row),
            ]
        )
    headers = ["suite", "set", "shots", "metric", "%", "± s.e.", "chance %", "items"]
    return Table("all figures", headers, lines, [])


def questions_of(row: Mapping[str, Any]) -> str:
    """How many questions a figure is of, and of how many there are where it is of others: `300 of 1,172`."""
    whole = row.get("benchmark_items", row["items"])
    return f"{row['items']:,}" + (f" of {whole:,}" if whole != row["items"] else "")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def as_text(found: Iterable[Table]) -> str:
    """Tables for a terminal."""
    parts = [
        f"{each.title}\n{table(each.headers, each.rows)}" + "".join(f"\n{note}" for note in each.notes)
        for each in found
    ]
    return "\n\n".join(parts)


def as_markdown(found: Iterable[Table], title: str) -> str:
    """Tables as a Markdown page."""
    parts = [f"# {title}\n"]
    for each in found:
        lines = [f"## {each.title}\n", _pipes(each.headers), "|---|" + "---:|" * (len(each.headers) - 1)]
        parts.append("\n".join([*lines, *map(_pipes, each.rows)]) + "\n")
        parts += [note.replace("*", "\\*") + "\n" for note in each.notes]
    return "\n".join(parts)


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.strip().replace("|", "\\|").replace("*", "\\*") for cell in cells) + " |"


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .25rem .7rem; text-align: right; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #888; }
tbody tr:nth-child(even) { background: #f4f4f4; } p { color: #555; margin: .2rem 0; }
"""


def as_html(found: Iterable[Table], title: str) -> str:
    """Tables as one page that needs nothing else."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"]
    parts.append(f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>")
    for each in found:
        body = "\n".join(line(row, "td") for row in each.rows)
        parts.append(f"<h2>{html.escape(each.title)}</h2><table><thead>{line(each.headers, 'th')}</thead>")
        parts.append(f"<tbody>{body}</tbody></table>" + "".join(f"<p>{html.escape(note)}</p>" for note in each.notes))
    return "\n".join(parts) + "</html>\n"
