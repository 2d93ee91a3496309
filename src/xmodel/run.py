"""A run directory: it describes itself, its stages are done once, and only one process works on it at a time.

A stage is a row of the table in `xmodel.stages`. Its fingerprint is a hash of the settings that decide its outcome, of
its input files and of the fingerprints of the stages that it builds on, so all fingerprints of a run are known before
anything is carried out. `stages/NAME.json` records the fingerprint of what stands.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from xmodel.console import duration, log
from xmodel.errors import UserError
from xmodel.files import atomic_folder, atomic_write, read_json, write_json
from xmodel.recipe.dump import dump_recipe, recipe_diff
from xmodel.recipe.load import load_recipe
from xmodel.recipe.settings import Recipe

RUNS = Path("runs")


@dataclass(frozen=True)
class Stage:
    """One step of the flow from text to report.

    Attributes:
        name: the stage's name and its command's.
        output: what it leaves in the run directory (a folder or a file).
        needs: the stages whose outputs it reads.
        settings: recipe -> JSON-able settings that decide the outcome.
        carry_out: (run, path) -> summary. Writes the output at `path`, a temporary name that is renamed afterwards;
            a resumable stage writes at the final name, and keeps that safe by itself. What is to survive a kill may be
            kept in `work_folder`, which is removed when the output stands.
        inputs: recipe -> files outside the run directory that the outcome depends on.
        version: raised when the code comes to give another outcome for the same settings.
        resumable: goes on where it was cut off; its output is never removed unless the user asks for it.
    """

    name: str
    output: str
    needs: tuple[str, ...]
    settings: Callable[[Recipe], Any]
    carry_out: Callable[[Run, Path], dict[str, Any]]
    inputs: Callable[[Recipe], Sequence[Path]] = field(default=lambda recipe: ())
    version: int = 1
    resumable: bool = False


@dataclass
class Run:
    """A run directory and the recipe that it follows."""

    folder: Path
    recipe: Recipe
    command: str = ""
    processes: int = 1  # training processes on this machine, for stages that can use several
    ray: str | None = None  # address of the Ray cluster that the corpus stage works on

    @property
    def imported(self) -> bool:
        """Whether this is a model of others (`xmodel import`): weights and tokenizer, without a corpus of its own."""
        return not self.recipe.corpus.sources

    def path(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts)


def open_run(target: str, overrides: Sequence[str] = (), folder: str | None = None) -> Run:
    """The run that `target` names: a recipe file, or the directory of a run that exists.

    Raises:
        UserError: neither, or the recipe has problems (all of them are listed).
    """
    path = Path(target)
    if path.is_dir():
        if not (path / "recipe.yaml").is_file():
            raise UserError(f"{path}: not a run directory (it has no recipe.yaml)")
        if folder is not None:
            raise UserError(f"--dir {folder}: {path} is a run directory already; give --dir with a recipe file")
        return Run(path, load_recipe(path / "recipe.yaml", overrides))
    recipe = load_recipe(path, overrides)
    return Run(Path(folder) if folder else RUNS / recipe.name, recipe)


def work_folder(run: Run, output: str) -> Path:
    """Where a stage with this output keeps unfinished work."""
    return run.path(f"{output}.work")


def fingerprints(stages: Sequence[Stage], recipe: Recipe) -> dict[str, str]:
    """The fingerprint of each stage, in order; nothing has to be carried out to know them."""
    prints: dict[str, str] = {}
    for stage in stages:
        inputs = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in stage.inputs(recipe)]
        parts = [stage.name, stage.version, stage.settings(recipe), inputs, [prints[name] for name in stage.needs]]
        text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
        prints[stage.name] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return prints


def record(run: Run, stage: Stage) -> dict[str, Any]:
    """What `stages/NAME.json` says, or {} when the stage's output is gone or was never made."""
    path = run.path("stages", f"{stage.name}.json")
    return read_json(path) if path.exists() and run.path(stage.output).exists() else {}


def stands(run: Run, stage: Stage, fingerprint: str) -> bool:
    """Whether the stage is done, with exactly these settings and inputs."""
    known = record(run, stage)
    return known.get("fingerprint") == fingerprint and known.get("status") == "done"


def carry_out(
    run: Run, stages: Sequence[Stage], wanted: Sequence[str], redo: str | None = None
) -> list[dict[str, Any]]:
    """Carry out the wanted stages that do not stand yet, in order.

    Args:
        stages: all stages, in the order of the flow.
        wanted: names of the stages to bring up to date; the stages that they need must stand.
        redo: discard this stage and all that build on it first.

    Returns:
        One row per wanted stage: its name, "done" or "stands", seconds and summary.

    Raises:
        UserError: a needed stage does not stand, or checkpoints were made with other settings.
    """
    names = [stage.name for stage in stages]
    if redo is not None and redo not in names:
        raise UserError(f"--redo {redo}: no such stage; the stages are {', '.join(names)}")
    prints = fingerprints(stages, run.recipe)
    _refuse_other_settings(run, stages, wanted, prints, redo)
    if redo is not None:
        _discard(run, stages, redo)
    _describe(run)
    rows = []
    for stage in (stage for stage in stages if stage.name in wanted):
        fingerprint = prints[stage.name]
        if stands(run, stage, fingerprint):
            known = record(run, stage)
            shutil.rmtree(work_folder(run, stage.output), ignore_errors=True)
            log(f"{stage.name}: stands ({run.path(stage.output)})")
            rows.append({"stage": stage.name, "status": "stands", "seconds": 0.0, "summary": known["summary"]})
            continue
        by_name = {other.name: other for other in stages}
        missing = [name for name in stage.needs if not stands(run, by_name[name], prints[name])]
        if missing:
            raise UserError(
                f"{stage.name} builds on {', '.join(missing)}, which {'does' if len(missing) == 1 else 'do'} not stand "
                f"in {run.folder}; `xmodel run {run.folder}` does what is missing"
            )
        seconds, summary = _carry_out_one(run, stage, fingerprint)
        rows.append({"stage": stage.name, "status": "done", "seconds": round(seconds, 2), "summary": summary})
    return rows


def _carry_out_one(run: Run, stage: Stage, fingerprint: str) -> tuple[float, dict[str, Any]]:
    note = run.path("stages", f"{stage.name}.json")
    started = time.monotonic()
    log(f"{stage.name}: starts")
    if stage.resumable:
        write_json(note, {"status": "running", "fingerprint": fingerprint})
        run.path(stage.output).mkdir(parents=True, exist_ok=True)
        summary = stage.carry_out(run, run.path(stage.output))
    else:
        note.unlink(missing_ok=True)
        if Path(stage.output).suffix:
            summary = stage.carry_out(run, run.path(stage.output))
        else:
            with atomic_folder(run.path(stage.output)) as partial:
                summary = stage.carry_out(run, partial)
    seconds = time.monotonic() - started
    write_json(
        note,
        {
            "status": "done",
            "fingerprint": fingerprint,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": round(seconds, 2),
            "summary": summary,
        },
    )
    shutil.rmtree(work_folder(run, stage.output), ignore_errors=True)
    figures = ", ".join(f"{key} {value}" for key, value in summary.items() if isinstance(value, int | float | str))
    log(f"{stage.name}: done in {duration(seconds)}" + (f" ({figures})" if figures else ""))
    return seconds, summary


def _refuse_other_settings(
    run: Run, stages: Sequence[Stage], wanted: Sequence[str], prints: dict[str, str], redo: str | None
) -> None:
    """Checkpoints cost days: never throw them away, or mix two trainings, because a recipe was edited."""
    names = [stage.name for stage in stages]
    for stage in stages:
        discarded = redo is not None and names.index(redo) <= names.index(stage.name)
        known = record(run, stage)
        if not stage.resumable or discarded or not known or known["fingerprint"] == prints[stage.name]:
            continue
        if not any(run.path(stage.output).iterdir()):
            continue
        if not any(name in wanted for name in (stage.name, *stage.needs)):
            continue
        changed = recipe_diff(load_recipe(run.path("recipe.yaml")), run.recipe)
        what = "; ".join(changed) if changed else "the input files have changed"
        raise UserError(
            f"{run.path(stage.output)}: made with other settings than those asked for now ({what}). "
            f"Use another run directory (--dir), or discard them with --redo {stage.name}"
        )


def _discard(run: Run, stages: Sequence[Stage], first: str) -> None:
    names = [stage.name for stage in stages]
    for stage in stages[names.index(first) :]:
        run.path("stages", f"{stage.name}.json").unlink(missing_ok=True)
        output = run.path(stage.output)
        shutil.rmtree(work_folder(run, stage.output), ignore_errors=True)
        if output.is_dir():
            shutil.rmtree(output)
        else:
            output.unlink(missing_ok=True)
        if stage.resumable:
            run.path("metrics.jsonl").unlink(missing_ok=True)


def _describe(run: Run) -> None:
    """Write recipe.yaml (resolved) and run.json (who, when, with what)."""
    with atomic_write(run.path("recipe.yaml"), "w") as stream:
        stream.write(dump_recipe(run.recipe))
    path = run.path("run.json")
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    known = read_json(path) if path.exists() else {"created": now, "sessions": []}
    known |= {"code_revision": code_revision(), "versions": versions(), "hardware": hardware(), "seed": run.recipe.seed}
    known["command"] = run.command
    known["sessions"].append({"started": now, "command": run.command})
    write_json(path, known)


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """Hold the run directory for this process.

    Raises:
        UserError: another process holds it.
    """
    if os.environ.get("RANK", "0") != "0":  # under torchrun the first rank holds the lock for all
        yield
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    with open(run.path(".lock"), "a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            owner = stream.read().strip() or "another process"
            raise UserError(f"{run.folder}: {owner} is working on this run; wait for it, or stop it first") from None
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        stream.flush()
        try:
            yield
        finally:
            stream.truncate(0)


def code_revision() -> str:
    """The git revision of the code, `+` when it has uncommitted changes; the version outside a checkout."""
    folder = Path(__file__).parent
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        options: dict[str, Any] = {"cwd": folder, "capture_output": True, "text": True, "check": True}
        revision = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **options).stdout.strip()
        dirty = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no", "."], **options).stdout.strip()
        return revision + ("+" if dirty else "")
    return metadata.version("xmodel")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide numbers."""
    found = {"python": platform.python_version(), "xmodel": metadata.version("xmodel")}
    for name in ("torch", "numpy", "sentencepiece", "tokenizers", "pyarrow", "numba"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def hardware() -> dict[str, Any]:
    """The machine: processor, cores that may be used, memory, GPUs (only when torch is loaded already)."""
    facts: dict[str, Any] = {"machine": platform.machine(), "system": f"{platform.system()} {platform.release()}"}
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        facts["cpu"] = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown"
        )
    facts["cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(ValueError, OSError):
        facts["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        facts["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return facts
