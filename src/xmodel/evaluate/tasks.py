"""The harness's own task objects, over rows of the hub or over local files (`--benchmarks DIR`).

A local task is the stock definition (its YAML, with all that it includes) with the data set replaced: an overlay. So
the prompts, the answers and the metrics are the harness's to the letter; only where rows come from differs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xmodel.console import log, progress
from xmodel.errors import MachineError, Unreachable, UserError, hub_fault
from xmodel.evaluate.local_rows import ENDINGS, Rows, data_of, find_rows, read_rows
from xmodel.evaluate.paper import BENCHMARKS, Benchmark, definitions, harness_tasks
from xmodel.evaluate.sizes import SIZES, size_of
from xmodel.files import atomic_write

FEWSHOT_SEED = 1234  # the harness's default: which examples stand before which question follows from it
_NO_METRIC = {"metric_list": [{"metric": "bypass"}], "filter_list": None, "unsafe_code": False}
_NOT_OF_A_TASK = ("tag", "group", "task_list", "include")


class Prepared(NamedTuple):
    """A task whose rows are read and found to be right, or will come from the hub."""

    benchmark: Benchmark
    name: str
    shots: int
    splits: dict[str, Rows] | None  # None: the hub's
    overlay: dict[str, Any]  # what replaces fields of the stock definition
    files: dict[str, str]  # split -> the file it was read from
    notes: tuple[str, ...]  # where this is not what the harness would score
    run_code: bool
    questions: int | None  # of the whole benchmark, in the split that it is scored on; None: not known


class _Missing(Exception):
    """A file that is not there; its message goes into a list."""


def prepare(
    selection: Mapping[Benchmark, Sequence[str]],
    folder: Path | None,
    shots: int | None = None,
    run_code: bool = False,
) -> tuple[list[Prepared], list[str]]:
    """Read and check all rows of the chosen tasks, before anything is scored.

    Args:
        folder: holds the rows as `layout` says; None: the harness loads them from the hub, task by task.
        shots: examples before every question, instead of each benchmark's own number.

    Returns:
        The tasks that can be scored, and a line for each that cannot: what is missing.

    Raises:
        UserError: no such folder, or a row that is not as documented (file and line), or too few examples.
    """
    if folder is not None and not folder.is_dir():
        raise UserError(f"{folder}: no such folder; `xmodel evaluate layout` says what it has to hold")
    ready, missing = [], []
    for benchmark, names in selection.items():
        absent: dict[str, str] = {}
        for name in names:
            try:
                ready.append(_prepare(benchmark, name, folder, shots, run_code))
            except _Missing as what:
                absent[name] = str(what)
        if len(absent) > 1:
            tasks = ", ".join(name.removeprefix(f"{benchmark.name}_") for name in absent)
            missing.append(
                f"{benchmark.name}: {len(absent)} of {len(names)} tasks ({tasks}); {next(iter(absent.values()))}"
            )
        else:
            missing += [f"{name}: {what}" for name, what in absent.items()]
    return ready, missing


def _prepare(benchmark: Benchmark, name: str, folder: Path | None, shots: int | None, run_code: bool) -> Prepared:
    config = stock(benchmark, name, resolve=False)
    wanted = benchmark.shots if shots is None else shots
    if config.get("num_fewshot") == 0:
        wanted = 0  # the harness lets no one change it
    samples = (config.get("fewshot_config") or {}).get("samples")
    if isinstance(samples, list) and wanted > len(samples):
        raise UserError(f"{name}: its definition holds {len(samples)} examples, not {wanted}")
    subset = subset_of(benchmark, config)
    questions = size_of(benchmark.data, subset, name)
    if folder is None:
        return Prepared(benchmark, name, wanted, None, {}, {}, (), run_code, questions)

    scored, path = _first_split(folder, benchmark, subset, config)
    splits, files, notes = {scored: read_rows(path, benchmark.data, subset)}, {scored: str(path)}, []
    if not splits[scored]:
        raise _Missing(f"{path} has no rows of {subset or name}")
    overlay: dict[str, Any] = {"training_split": None}
    if scored == config.get("test_split"):
        overlay["validation_split"] = None
    else:
        overlay["test_split"] = None
        if config.get("test_split"):
            notes.append(f"scored on {scored} (the benchmark is scored on {config['test_split']})")
            questions = None
    if wanted and not samples:
        split = config.get("fewshot_split") or config.get("training_split")
        found = find_rows(folder, benchmark.data, subset, split) if split else None
        if found is not None and split:
            splits[split], files[split] = read_rows(found, benchmark.data, subset), str(found)
            if not config.get("fewshot_split"):
                overlay["training_split"] = split
        else:  # the harness's own rule for a task without them, which leaves out the question itself
            if split:
                notes.append(f"examples from {scored} ({benchmark.data}: no rows of {split})")
            overlay["fewshot_split"] = scored if scored == config.get("test_split") else None
            split = scored
        if len(splits[split]) < wanted + (split == scored):
            raise UserError(f"{files[split]}: {len(splits[split])} rows are too few for {wanted} examples ({name})")
    elif not samples:
        overlay["fewshot_split"] = None
    if benchmark.name == "hellaswag" and "query" in splits[scored][0]:
        overlay["process_docs"] = None
    return Prepared(benchmark, name, wanted, splits, overlay, files, tuple(notes), run_code, questions)


def _first_split(folder: Path, benchmark: Benchmark, subset: str, config: Mapping[str, Any]) -> tuple[str, Path]:
    names = [config[key] for key in ("test_split", "validation_split") if config.get(key)]
    for split in names:
        if path := find_rows(folder, benchmark.data, subset, split):
            return split, path
    wanted = f"{subset}_{names[0]}" if subset else names[0]
    raise _Missing(f"no {folder / benchmark.data / wanted}.jsonl (.jsonl.gz, .parquet)")


def stock(benchmark: Benchmark, name: str, resolve: bool = True) -> dict[str, Any]:
    """The harness's definition of a task; `resolve`: its Python functions are imported, else named."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(definitions(benchmark)[name], resolve_func=resolve)
    return {key: value for key, value in config.items() if key not in _NOT_OF_A_TASK}


def subset_of(benchmark: Benchmark, config: Mapping[str, Any]) -> str:
    """The part of a group's data that a task is about, as in file names."""
    return config["dataset_name"] if len(definitions(benchmark)) > 1 else ""


def open_task(prepared: Prepared) -> Any:
    """The harness's task object, ready to build its requests.

    Raises:
        UserError: datasets or lm-eval is not installed.
        MachineError: the hub's rows cannot be had.
    """
    from lm_eval.api.task import ConfigurableTask

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    _remember_templates()
    unsafe = prepared.name == "humaneval"  # reading its functions loads a script of the hub, and runs it
    config = stock(prepared.benchmark, prepared.name, resolve=not unsafe)
    config |= prepared.overlay | {"num_fewshot": prepared.shots}
    if unsafe:
        config |= _code_metric() if prepared.run_code else _NO_METRIC
    if prepared.splits is not None:
        tables = _tables(prepared.splits, config)
        config |= {"dataset_path": "json", "custom_dataset": lambda **_: tables}
        task = ConfigurableTask(config=config)
    else:
        try:
            task = ConfigurableTask(config=config)
        except (OSError, ValueError) as error:  # what datasets and huggingface_hub raise for a hub out of reach
            reason = hub_fault(error) or _first_line(error)
            raise MachineError(
                f"{prepared.name}: its rows cannot be loaded ({reason}); --benchmarks DIR reads "
                "local files, which `xmodel evaluate fetch DIR` gets on a machine with a network"
            ) from None
    task.set_fewshot_seed(FEWSHOT_SEED)
    return task


def _code_metric() -> dict[str, Any]:
    """HumanEval's metric and filter, of our own making."""
    from xmodel.evaluate.run_code import build_predictions, pass_at_k

    return {
        "metric_list": [{"metric": pass_at_k, "aggregation": "mean", "higher_is_better": True}],
        "filter_list": [{"name": "create_test", "filter": [{"function": "custom", "filter_fn": build_predictions}]}],
    }


def _tables(splits: Mapping[str, Rows], config: Mapping[str, Any]) -> dict[str, Any]:
    import datasets

    datasets.disable_progress_bars()
    scored = config.get("test_split") or config.get("validation_split")
    plain = config.get("process_docs") is None  # then examples may stay as they are: a list is built at once
    return {
        split: rows if plain and split != scored else datasets.Dataset.from_list(rows) for split, rows in splits.items()
    }


def _remember_templates() -> None:
    """Let the harness compile each prompt template once, not for each row."""
    from functools import lru_cache

    from lm_eval import utils

    if not hasattr(utils.env.from_string, "cache_info"):
        setattr(utils.env, "from_string", lru_cache(maxsize=512)(utils.env.from_string))  # noqa: B010 (an instance's)


def definition_digest(prepared: Prepared) -> str:
    """SHA-256 of all that decides a task's prompts and figures but its rows: YAML, functions, what replaces fields."""
    config = stock(prepared.benchmark, prepared.name, resolve=False)
    digest = hashlib.sha256(json.dumps(prepared.overlay, sort_keys=True).encode())
    root = str(harness_tasks())
    digest.update(json.dumps(config, sort_keys=True, default=str).replace(root, "").encode())
    for helper in sorted(definitions(prepared.benchmark)[prepared.name].parent.glob("*.py")):
        digest.update(helper.read_bytes())
    return digest.hexdigest()


def rows_digest(prepared: Prepared) -> str:
    """SHA-256 of a local task's files; of the hub's, the name under which they are cached says enough."""
    digest = hashlib.sha256()
    for split in sorted(prepared.files):
        digest.update(split.encode())
        digest.update(Path(prepared.files[split]).read_bytes())
    return digest.hexdigest() if prepared.files else "hub"


def layout() -> str:
    """The documented layout of `--benchmarks DIR`, for people."""
    lines = [
        "DIR/BENCHMARK/SPLIT.jsonl, one row a line; .jsonl.gz and .parquet are read as well. A benchmark of several",
        "sets has SUBSET_SPLIT.jsonl (glue/mrpc_validation.jsonl), or one file for all with a field `subject`",
        "(mmlu/test.jsonl); bbh has SUBSET.jsonl. Examples are read from the second split named, only where a",
        "benchmark is given any. HellaSwag may be prepared: validation_prepared.jsonl with query, choices and label.",
        "Labels are integers unless shown otherwise. Licences are as the data sets' pages state them; read them there.",
    ]
    for folder in dict.fromkeys(benchmark.data for benchmark in BENCHMARKS):
        used = [benchmark for benchmark in BENCHMARKS if benchmark.data == folder]
        subsets = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "wnli") if folder == "glue" else ("",)
        names = ", ".join(f"{benchmark.name} ({benchmark.shots}-shot)" for benchmark in used)
        lines += ["", f"{folder}/   {names}"]
        for subset in subsets:
            data = data_of(folder, subset)
            fields = ", ".join(dict.fromkeys((*data.texts, *data.blank, *data.choices, *filter(None, [data.answer]))))
            total = SIZES[folder][subset] if subset else sum(SIZES[folder].values())
            splits = data.splits.format(rows=f"{total:,}")
            title = f"  {subset + ': ' if subset else ''}{splits}; {data.hub}; {data.licence}"
            lines += [title, f"    fields   {fields}", f"    example  {data.example}"]
    return "\n".join(lines)


def fetch(folder: Path, selection: Mapping[Benchmark, Sequence[str]]) -> tuple[int, list[str]]:
    """Fill `folder` with the chosen tasks' rows from the hub; what is there already stays.

    Returns:
        How many files were written, and a line for each set that could not be had.

    Raises:
        UserError: datasets is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise UserError("fetching needs datasets: pip install 'xmodel[harness]'") from None

    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # of each try again it would write two lines
    written, failed = 0, []
    names = [(benchmark, name) for benchmark, tasks in selection.items() for name in tasks]
    with progress("evaluate fetch", len(names), "tasks") as shown:
        for benchmark, name in names:
            config = stock(benchmark, name, resolve=False)
            subset = subset_of(benchmark, config)
            scored = config.get("test_split") or config.get("validation_split")
            splits = [scored]
            if benchmark.shots and not (config.get("fewshot_config") or {}).get("samples"):
                splits.append(config.get("fewshot_split") or config.get("training_split"))
            absent = [split for split in splits if split and not find_rows(folder, benchmark.data, subset, split)]
            if absent:
                options = config.get("dataset_kwargs") or {}
                try:
                    tables = datasets.load_dataset(config["dataset_path"], config.get("dataset_name"), **options)
                    for split in absent:
                        _write_rows(folder / benchmark.data / _file_name(subset, split), tables[split])
                        written += 1
                except Exception as error:  # any library below may raise its own; the other sets are still wanted
                    fault = hub_fault(error)
                    failed.append(f"{name}: {fault or f'{type(error).__name__}: {_first_line(error)}'}")
                    if isinstance(fault, Unreachable):
                        failed += ["the sets behind it were not asked for"] if (benchmark, name) != names[-1] else []
                        break
            shown.advance(1)
    return written, failed


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _file_name(subset: str, split: str) -> str:
    return (f"{subset}_{split}" if subset else split) + ENDINGS[0]


def _write_rows(path: Path, rows: Any) -> None:
    with atomic_write(path, "w") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    log(f"{path}: {len(rows):,} rows")


def stay_offline() -> None:
    """Forbid the Hugging Face libraries any network in this process; they read these when first imported."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_EVALUATE_OFFLINE="1")
