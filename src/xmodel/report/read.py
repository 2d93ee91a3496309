"""A run directory as plain data. Whatever is not there is empty; the page says so instead of failing."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from xmodel.console import read_json_lines
from xmodel.errors import MachineError, UserError
from xmodel.files import PARTIAL, read_json
from xmodel.recipe import presets, settings
from xmodel.recipe.batches import samples_through
from xmodel.report.numbers import known

SAMPLES, METRICS, TABLES = "samples.json", "metrics.jsonl", "tables.json"
# Runs that differ from NAME in one thing, in the folder NAME-WHAT beside it: what they leave out -> the overrides.
CONTROLS = {"constant": "pretrain.schedule=constant", "no-decay": "pretrain.weight_decay=0"}


@dataclass(frozen=True)
class Run:
    """The files of a run. Mappings are empty where a stage has not run."""

    name: str
    recipe: dict[str, Any]
    recipe_text: str
    info: dict[str, Any]  # run.json: when, which code, which machine
    funnel: dict[str, Any]
    tokenizer: dict[str, Any]
    tokens: dict[str, Any]
    starts: list[dict[str, Any]]  # one for each process that trained: device, precision, peak FLOP/s
    train: list[dict[str, Any]]  # in order of steps
    layers: list[dict[str, Any]]  # norms by layer, in order of steps; empty unless pretrain.norms_every asks for them
    validation: dict[str, list[dict[str, Any]]]  # by language
    scores: dict[tuple[str, int], list[dict[str, Any]]]  # during training, by (set, shots)
    results: list[dict[str, Any]]  # of the finished model; each row carries its suite and step
    others: dict[str, list[dict[str, Any]]]  # rows of further evaluations, by their file in evaluations/
    tables: dict[str, list[dict[str, Any]]]  # beside what was published: title, headers, rows, notes; by folder
    samples: list[dict[str, Any]]
    translations: list[dict[str, Any]]  # source, reference, output, set, shots
    export: list[tuple[str, int]]  # file, bytes
    stages: dict[str, dict[str, Any]]  # what stages/NAME.json says, by name
    controls: dict[
        str, list[dict[str, Any]]
    ]  # training records of control runs beside this one, by what they leave out

    def setting(self, *path: str) -> Any:
        """The recipe's value at `path`, None where the recipe is silent."""
        value: Any = self.recipe
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value


def read(folder: Path) -> Run:
    """Read what there is of the run in `folder`.

    Raises:
        UserError: there is no run directory.
        MachineError: a file is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run directory; `xmodel run RECIPE` makes one")
    recipe_path = folder / "recipe.yaml"
    recipe_text = recipe_path.read_text(encoding="utf-8") if recipe_path.exists() else ""
    try:
        recipe = yaml.safe_load(recipe_text) or {}
    except yaml.YAMLError as error:
        raise MachineError(f"{recipe_path}: damaged ({error})") from None
    starts, train, layers, validation, scores = read_metrics(folder / METRICS)
    results, translations = [], []
    for path in sorted((folder / "eval").glob("*.json")):
        if path.name != SAMPLES:
            rows, more = _suite(path)
            results += rows
            translations += more
    evaluations = sorted((folder / "evaluations").rglob("*.json"), key=_by_number)
    others = {path.relative_to(folder / "evaluations").as_posix(): _suite(path)[0] for path in evaluations}
    name = str(recipe.get("name") or folder.resolve().name)
    beside = {what: folder.resolve().parent / f"{folder.resolve().name}-{what}" / METRICS for what in CONTROLS}
    hub = folder / "export" / "hf"
    exported = sorted(path for path in hub.rglob("*") if path.is_file() and path.suffix != PARTIAL)
    return Run(
        name=name,
        recipe=recipe,
        recipe_text=recipe_text,
        info=_json(folder / "run.json", {}),
        funnel=_json(folder / "corpus" / "funnel.json", {}),
        tokenizer=_json(folder / "tokenizer" / "tokenizer-stats.json", {}),
        tokens=_json(folder / "tokens" / "manifest.json", {}),
        starts=starts,
        train=train,
        layers=layers,
        validation=validation,
        scores=scores,
        results=results,
        others={title: rows for title, rows in others.items() if rows},
        tables={
            path.parent.relative_to(folder / "evaluations").as_posix(): read_json(path)
            for path in evaluations
            if path.name == TABLES
        },
        samples=[
            {"language": language_of(sample["prompt"])} | sample for sample in _json(folder / "eval" / SAMPLES, [])
        ],
        translations=translations,
        export=[(path.relative_to(hub).as_posix(), path.stat().st_size) for path in exported],
        stages={path.stem: read_json(path) for path in (folder / "stages").glob("*.json") if path.stem != "report"},
        controls={what: rows for what, path in beside.items() if (rows := read_metrics(path)[1])},
    )


def read_metrics(
    path: Path,
) -> tuple[list[dict], list[dict], list[dict], dict[str, list[dict]], dict[tuple[str, int], list[dict]]]:
    """The curves in metrics.jsonl: process starts, training, norms by layer, validation by language, scores by (set,
    shots).

    A line that is no record of ours is left out: a kill may have cut off the last one.
    """
    rows = [row for row in read_json_lines(path) if isinstance(row, dict) and isinstance(row.get("step"), int)]
    validation: dict[str, list[dict]] = {}
    scores: dict[tuple[str, int], list[dict]] = {}
    for row in rows:
        if row.get("kind") == "validation":
            validation.setdefault(str(row.get("language")), []).append(row)
        elif row.get("kind") == "score":
            scores.setdefault((str(row.get("set")), row.get("shots", 0)), []).append(row)
    starts, train, layers = ([row for row in rows if row.get("kind") == kind] for kind in ("start", "train", "layers"))
    return starts, train, layers, validation, scores


def language_of(text: str) -> str:
    """zh for text with a Han character in it, else en."""
    return "zh" if re.search("[\u3400-\u9fff]", text) else "en"


def parameters(recipe: dict[str, Any]) -> tuple[int, int] | None:
    """(all parameters, those outside the embeddings) of the shape in a resolved recipe; None if it has gaps."""
    given = recipe.get("model") or {}
    model = settings.Model(**{field.name: given[field.name] for field in fields(settings.Model) if field.name in given})
    if not all((model.layers, model.heads, model.kv_heads, model.hidden, model.ffn, model.vocab_size)):
        return None
    total = presets.parameters(model)
    return total, total - model.vocab_size * model.hidden * (1 if model.tied_embeddings else 2)


def planned_tokens(run: Run) -> int:
    """Tokens that the recipe asks for; 0 where it does not say."""
    given, length = run.recipe.get("pretrain") or {}, run.setting("model", "context_length")
    if not all(known(value) for value in (given.get("steps"), given.get("global_batch"), length)):
        return 0
    train = settings.Pretrain(**{f.name: given[f.name] for f in fields(settings.Pretrain) if f.name in given})
    return int(samples_through(train.steps, train) * length)


def _suite(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of a suite's file, each with its suite and step, and its sample translations; none of another file.

    The file of a single task of a suite (it has a fingerprint) is not read: its figures stand in the suite's.
    """
    suite = read_json(path)
    if not isinstance(suite, dict) or "fingerprint" in suite or not isinstance(suite.get("results", []), list):
        return [], []
    about = {"suite": suite.get("suite", path.stem), "step": suite.get("step")}
    samples = suite.get("samples", [])
    return [about | row for row in suite.get("results", [])], samples if isinstance(samples, list) else []


def _by_number(path: Path) -> list[tuple[int, str]]:
    """A key that puts step-200 before step-1000."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", path.as_posix())]


def _json(path: Path, otherwise: Any) -> Any:
    return read_json(path) if path.exists() else otherwise
