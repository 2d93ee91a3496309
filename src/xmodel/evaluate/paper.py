"""The paper's suites: which tasks of lm-evaluation-harness belong to them, how they are averaged, what was published.

A *task* is one definition of the harness (`mmlu_anatomy`). A *benchmark* is a column of the paper's tables: one task,
or a group of them (`mmlu`), of which every item counts alike. A *suite* is a table: its mean is plain, over benchmarks.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from xmodel.errors import UserError
from xmodel.evaluate.sizes import SIZES

GENERATED = "exact_match"
LABEL = re.compile(r"""^["']?task["']?: *["']?([\w-]+)""", re.MULTILINE)


class Benchmark(NamedTuple):
    """One column of a table."""

    name: str
    suite: str
    title: str
    files: str  # pattern of the harness's YAML files, under lm_eval/tasks
    data: str  # folder of its rows under --benchmarks
    shots: int = 0
    metric: str = "acc"  # what the table shows
    language: str = "en"


_PROBLEM = "problem-solving"
BENCHMARKS = (
    Benchmark("arc_challenge", "commonsense", "ARC-c", "arc/arc_challenge.yaml", "arc_challenge"),
    Benchmark("arc_easy", "commonsense", "ARC-e", "arc/arc_easy.yaml", "arc_easy"),
    Benchmark("boolq", "commonsense", "BoolQ", "super_glue/boolq/default.yaml", "boolq"),
    Benchmark("hellaswag", "commonsense", "HellaSwag", "hellaswag/hellaswag.yaml", "hellaswag"),
    Benchmark("openbookqa", "commonsense", "OpenbookQA", "openbookqa/openbookqa.yaml", "openbookqa"),
    Benchmark("piqa", "commonsense", "PIQA", "piqa/piqa.yaml", "piqa"),
    Benchmark("sciq", "commonsense", "SciQ", "sciq/sciq.yaml", "sciq"),
    Benchmark("triviaqa", "commonsense", "TriviaQA", "triviaqa/default.yaml", "triviaqa", 0, GENERATED),
    Benchmark("winogrande", "commonsense", "WinoGrande", "winogrande/default.yaml", "winogrande"),
    # What the harness calls `bbh` is the chain of thought; the direct answers stand beside it, outside the mean.
    Benchmark("bbh_cot_fewshot", _PROBLEM, "BBH", "bbh/cot_fewshot/[!_]*.yaml", "bbh", 3, GENERATED),
    Benchmark("bbh_fewshot", _PROBLEM, "BBH direct", "bbh/fewshot/[!_]*.yaml", "bbh", 3, GENERATED),
    Benchmark("glue", _PROBLEM, "GLUE", "glue/*/*.yaml", "glue", 5),
    Benchmark("gsm8k", _PROBLEM, "GSM8K", "gsm8k/gsm8k.yaml", "gsm8k", 5, GENERATED),
    Benchmark("mmlu", _PROBLEM, "MMLU", "mmlu/default/mmlu_*.yaml", "mmlu", 5),
    Benchmark("arc_zh", "chinese", "ARC-zh", "okapi/arc_multilingual/arc_zh.yaml", "arc_zh", language="zh"),
    Benchmark("xcopa_zh", "chinese", "XCOPA-zh", "xcopa/default_zh.yaml", "xcopa_zh", language="zh"),
    Benchmark("xnli_zh", "chinese", "XNLI-zh", "xnli/xnli_zh.yaml", "xnli_zh", language="zh"),
    Benchmark("ceval-valid", "beyond", "C-Eval", "ceval/ceval-valid_*.yaml", "ceval", 5, language="zh"),
    Benchmark("cmmlu", "beyond", "CMMLU", "cmmlu/cmmlu_*.yaml", "cmmlu", 5, language="zh"),
    Benchmark("lambada_openai", "beyond", "LAMBADA", "lambada/lambada_openai.yaml", "lambada_openai"),
    Benchmark("mmlu_continuation", "beyond", "MMLU cloze", "mmlu/continuation/mmlu_*.yaml", "mmlu"),
    Benchmark("gsm8k_cot", "beyond", "GSM8K-CoT", "gsm8k/gsm8k-cot.yaml", "gsm8k", 8, GENERATED),
    Benchmark("humaneval", "beyond", "HumanEval", "humaneval/humaneval.yaml", "humaneval", 0, "pass@1"),
)
SUITES = {
    "commonsense": ("commonsense",),
    "problem-solving": ("problem-solving",),
    "chinese": ("chinese",),
    "paper": ("commonsense", "problem-solving", "chinese"),
    "beyond": ("beyond",),
}
# Columns of the published tables; those of a mean are the benchmarks that it is taken over.
MEANS = {
    "commonsense": {"mean": tuple(b.name for b in BENCHMARKS if b.suite == "commonsense")},
    "problem-solving": {
        "mean": ("bbh_cot_fewshot", "glue", "gsm8k", "mmlu"),
        "mean_without_gsm8k": ("bbh_cot_fewshot", "glue", "mmlu"),
    },
    "chinese": {"mean": ("arc_zh", "xcopa_zh", "xnli_zh")},
}

# arXiv 2406.02856, percent; the last figures of a row are the printed means, in the order of MEANS.
PUBLISHED: dict[str, dict[str, tuple[float, ...]]] = {
    "commonsense": {
        "OPT-1.3B": (23.29, 57.03, 57.80, 41.52, 23.20, 71.71, 84.30, 7.48, 59.59, 47.32),
        "Pythia-1.4B": (25.60, 57.58, 60.34, 39.81, 20.20, 71.06, 85.20, 5.01, 56.20, 47.00),
        "TinyLLaMA-3T-1.1B": (27.82, 60.31, 57.83, 44.98, 21.80, 73.34, 88.90, 11.30, 59.12, 48.59),
        "MobileLLaMA-1.4B": (26.28, 61.32, 57.92, 42.87, 23.60, 71.33, 87.40, 12.02, 58.25, 49.00),
        "Qwen1.5-1.8B": (32.25, 64.69, 66.48, 45.49, 23.80, 73.45, 92.90, 1.01, 61.17, 51.25),
        "Xmodel-LM-1.1B": (28.16, 62.29, 61.44, 45.96, 24.00, 72.03, 89.70, 18.46, 60.62, 51.41),
        "H2O-danube-1.8B": (32.94, 67.42, 65.75, 50.85, 27.40, 75.73, 91.50, 25.05, 62.35, 55.44),
        "InternLM2-1.8B": (37.54, 70.20, 69.48, 46.52, 24.40, 75.57, 93.90, 36.67, 65.67, 57.77),
    },
    "problem-solving": {
        "OPT-1.3B": (22.67, 51.06, 0.83, 26.70, 25.32, 33.48),
        "Pythia-1.4B": (25.37, 52.23, 1.63, 25.40, 26.16, 34.33),
        "MobileLLaMA-1.4B": (23.48, 43.34, 1.44, 24.60, 23.22, 30.47),
        "TinyLLaMA-3T-1.1B": (26.75, 48.25, 1.97, 25.70, 25.67, 33.57),
        "H2O-danube-1.8B": (27.31, 49.83, 1.90, 25.70, 26.19, 34.28),
        "Xmodel-LM-1.1B": (27.34, 52.61, 2.58, 25.90, 27.11, 35.28),
        "InternLM2-1.8B": (16.86, 58.96, 23.50, 42.00, 35.34, 39.27),
        "Qwen1.5-1.8B": (13.84, 64.57, 33.59, 45.10, 39.28, 41.17),
    },
    "chinese": {
        "OPT-1.3B": (18.80, 53.00, 33.45, 35.08),
        "Pythia-1.4B": (21.03, 52.60, 34.06, 35.90),
        "MobileLLaMA-1.4B": (20.26, 52.80, 33.82, 35.63),
        "TinyLLaMA-3T-1.1B": (21.37, 56.80, 33.25, 37.14),
        "H2O-danube-1.8B": (21.79, 55.60, 34.74, 37.38),
        "Xmodel-LM-1.1B": (26.24, 60.60, 36.02, 40.95),
        "InternLM2-1.8B": (27.69, 66.80, 34.58, 43.00),
        "Qwen1.5-1.8B": (32.14, 66.00, 39.28, 45.81),
    },
}
# The printed mean is not the mean of its row: (suite, model, mean) -> the true one.
MISPRINTS = {
    ("commonsense", "Pythia-1.4B", "mean"): 46.78,
    ("commonsense", "TinyLLaMA-3T-1.1B", "mean"): 49.49,
}


def harness_tasks() -> Path:
    """The folder of lm-evaluation-harness's task definitions; nothing of it is imported.

    Raises:
        UserError: lm-eval is not installed.
    """
    found = importlib.util.find_spec("lm_eval")
    if found is None or not found.submodule_search_locations:
        raise UserError("the paper's suites need lm-evaluation-harness: pip install 'xmodel[harness]'")
    return Path(found.submodule_search_locations[0]) / "tasks"


@cache
def definitions(benchmark: Benchmark) -> dict[str, Path]:
    """The harness's tasks of a benchmark, by name, and the YAML file of each."""
    files = sorted(harness_tasks().glob(benchmark.files))
    named = {}
    for path in files:
        if found := LABEL.search(path.read_text(encoding="utf-8")):
            named[found[1]] = path
    if not named:
        raise UserError(
            f"the installed lm-eval has no tasks {benchmark.files}; xmodel[harness] names a version that has"
        )
    return named


def select(names: Sequence[str]) -> dict[Benchmark, list[str]]:
    """The tasks that names of suites, benchmarks and tasks stand for, by benchmark, in the order of the tables.

    Raises:
        UserError: a name that is none of them; the nearest ones are named.
    """
    by_name = {benchmark.name: benchmark for benchmark in BENCHMARKS}
    chosen: dict[Benchmark, set[str]] = {}
    for name in names:
        if name in SUITES:
            for benchmark in BENCHMARKS:
                if benchmark.suite in SUITES[name]:
                    chosen.setdefault(benchmark, set()).update(definitions(benchmark))
        elif name in by_name:
            chosen.setdefault(by_name[name], set()).update(definitions(by_name[name]))
        else:
            owners = [benchmark for benchmark in BENCHMARKS if name in definitions(benchmark)]
            if not owners:
                raise UserError(unknown(name))
            chosen.setdefault(owners[0], set()).add(name)
    return {benchmark: sorted(chosen[benchmark]) for benchmark in BENCHMARKS if benchmark in chosen}


def unknown(name: str, others: Iterable[str] = ()) -> str:
    """The message for a name that is no suite and no task; `others`: further names that would have been right."""
    known = [*others, *SUITES, *(benchmark.name for benchmark in BENCHMARKS)]
    known += [task for benchmark in BENCHMARKS for task in definitions(benchmark)]
    near = list(dict.fromkeys(difflib.get_close_matches(name, known, n=3)))
    hint = f"did you mean {' or '.join(near)}?" if near else f"the suites are {', '.join([*others, *SUITES])}"
    return f"no suite or task is called {name!r}; {hint} (`xmodel evaluate tasks` lists all)"


def headline(benchmark: Benchmark, task: str) -> str:
    """The metric of a task that its benchmark's figure is made of; CoLA has no accuracy, and stands beside GLUE."""
    return "mcc" if task == "cola" else benchmark.metric


def questions(benchmark: Benchmark) -> int:
    """How many questions the figure of a whole benchmark is of."""
    sizes = SIZES[benchmark.data].items()
    return sum(size for task, size in sizes if headline(benchmark, task) == benchmark.metric)


def benchmark_rows(benchmark: Benchmark, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The figures of a group, from its tasks' rows: for every metric the mean over all items of the tasks that have it.

    So the harness's groups weight (`weight_by_size`), and so did its old group `glue`: accuracy over every task but
    CoLA, mnli_mismatch among them. Tasks are independent samples, so errors add up in squares.
    """
    found = []
    for metric in dict.fromkeys(row["metric"] for row in rows):
        parts = [row for row in rows if row["metric"] == metric]
        if metric in ("f1", "mcc", "perplexity", "gold_bpb"):
            continue  # no means over items; a reader finds them in the tasks' own rows
        tasks = {task for task in definitions(benchmark) if headline(benchmark, task) == benchmark.metric}
        whole = {row["set"] for row in parts} >= tasks and not any(row.get("partial") for row in parts)
        items = sum(row["items"] for row in parts)
        found.append(
            _row(benchmark, metric, parts, [row["items"] / items for row in parts])
            | _without_contaminated(parts, by_size=True)
            | {"set": benchmark.name, "tasks": len(parts), "benchmark_items": questions(benchmark)}
            | ({} if whole else {"partial": True})
            | ({"note": notes[0]} if (notes := [row["note"] for row in parts if "note" in row]) else {})
        )
    return found


def suite_rows(suite: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The means of a table from its benchmarks' rows; with a benchmark missing a mean is of the others, and partial."""
    titles = {benchmark.name: benchmark for benchmark in BENCHMARKS}
    found = []
    for name, members in MEANS.get(suite, {}).items():
        parts = [row for row in rows if row["set"] in members and row["metric"] == titles[row["set"]].metric]
        if not parts:
            continue
        whole = len(parts) == len(members) and not any(row.get("partial") for row in parts)
        found.append(
            _row(titles[members[0]], "mean", parts, [1 / len(parts)] * len(parts))
            | _without_contaminated(parts, by_size=False)
            | {"set": f"{name}_{suite}", "shots": None, "tasks": len(parts)}
            | ({} if whole else {"partial": True})
        )
    return found


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of tasks as the tables have them: groups in place of their tasks, and each suite's means behind it."""
    tables: list[dict[str, Any]] = []
    for suite in dict.fromkeys(benchmark.suite for benchmark in BENCHMARKS):
        table: list[dict[str, Any]] = []
        for benchmark in (each for each in BENCHMARKS if each.suite == suite):
            own = [row for row in rows if row["suite"] == suite and row.get("benchmark", row["set"]) == benchmark.name]
            single = [row["set"] for row in own] == [benchmark.name] * len(own)
            table += own if single else benchmark_rows(benchmark, own)
        tables += table + suite_rows(suite, table)
    return tables


def _row(
    benchmark: Benchmark, metric: str, parts: Sequence[dict[str, Any]], weights: Sequence[float]
) -> dict[str, Any]:
    errors, chances = [row["stderr"] for row in parts], [row["chance"] for row in parts]
    return {
        "suite": benchmark.suite,
        "language": benchmark.language,
        "shots": parts[0]["shots"],
        "metric": metric,
        "value": sum(weight * row["value"] for weight, row in zip(weights, parts, strict=True)),
        "stderr": None
        if None in errors
        else math.hypot(*(weight * error for weight, error in zip(weights, errors, strict=True))),
        "chance": None
        if None in chances
        else sum(weight * value for weight, value in zip(weights, chances, strict=True)),
        "items": sum(row["items"] for row in parts),
        "seconds": round(sum(row["seconds"] for row in parts), 2),
    }


def _without_contaminated(parts: Sequence[dict[str, Any]], by_size: bool) -> dict[str, Any]:
    """The fields of `met.clean_scores` for a mean over the parts, where all have them: of all clean items, or plain."""
    if not all("clean" in row for row in parts):
        return {}
    clean = [row["clean"] for row in parts if row["clean"]["items"]]
    items = sum(each["items"] for each in clean)
    weights = [each["items"] / items if by_size else 1 / len(clean) for each in clean]
    errors = [each["stderr"] for each in clean]
    value = sum(weight * each["value"] for weight, each in zip(weights, clean, strict=True)) if clean else None
    known = clean and None not in errors and len(clean) == len(parts)
    return {
        "contaminated": sum(row["contaminated"] for row in parts),
        "searched": None if None in (counts := [row["searched"] for row in parts]) else sum(counts),
        "clean": {
            "items": items,
            "value": value if by_size or len(clean) == len(parts) else None,
            "stderr": math.hypot(*(w * e for w, e in zip(weights, errors, strict=True))) if known else None,
        },
    }


def published_columns(suite: str) -> list[str]:
    """Names of the columns of a published table: its benchmarks, then its means."""
    columns = [benchmark.name for benchmark in BENCHMARKS if benchmark.suite == suite]
    return [name for name in columns if name != "bbh_fewshot"] + [f"{name}_{suite}" for name in MEANS[suite]]
