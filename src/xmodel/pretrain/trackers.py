"""Where the figures of metrics.jsonl are shown as well: TensorBoard, Weights & Biases, trackio. Imported where used.

A tracker is a pair of functions, one that takes a row of metrics.jsonl and one that ends it. Rows keep their step as a
figure of their own: a resumed run writes the steps since its checkpoint again, with the same values.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xmodel.console import log
from xmodel.errors import UserError
from xmodel.files import read_json, write_json
from xmodel.recipe.settings import Recipe

Row = dict[str, Any]
Tracker = tuple[Callable[[Row], None], Callable[[], None]]
PROJECT = "xmodel"  # WANDB_PROJECT and TRACKIO_PROJECT name another
NAMES_RUN = "trackers.json"  # in the run directory: by which id the services know it


def installed(names: Sequence[str]) -> list[str]:
    """The trackers that can be used. TensorBoard, the default, is passed over where it is not installed.

    Raises:
        UserError: wandb or trackio is asked for and not installed.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    for name in missing:
        if name != "tensorboard":
            raise UserError(f"pretrain.trackers: {name} is not installed; pip install {name}, or take it off the list")
        log("pretrain: TensorBoard is not installed (pip install tensorboard); metrics.jsonl has every figure")
    return [name for name in names if name not in missing]


def open_tracker(name: str, run_folder: Path, recipe: Recipe, last_step: int) -> Tracker:
    """Open one tracker for a run whose rows up to `last_step` it has seen."""
    return {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}[name](run_folder, recipe, last_step)


def scalars(row: Row) -> Iterator[tuple[str, float]]:
    """The numbers of a row by name: `train/loss`, `validation/en/bits_per_byte`, `score/facts_en/accuracy`,
    `layers/grad_norm/12`.
    """
    about = "set" if "set" in row else "language"
    group = "/".join(str(row[key]) for key in ("kind", about) if key in row)
    for key, value in row.items():
        if isinstance(value, dict):
            yield from ((f"{group}/{key}/{inner}", number) for inner, number in value.items())
        elif isinstance(value, int | float) and key not in ("step", "time"):
            yield f"{group}/{key}", value


def _tensorboard(run_folder: Path, recipe: Recipe, last_step: int) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    board = SummaryWriter(str(run_folder / "tensorboard"), purge_step=last_step + 1)

    def write(row: Row) -> None:
        for name, value in scalars(row):
            board.add_scalar(name, value, row["step"])

    return write, board.close


def _wandb(run_folder: Path, recipe: Recipe, last_step: int) -> Tracker:
    """The same W&B run after a resume. WANDB_MODE=offline and all its other variables mean what they always do."""
    import wandb  # pyright: ignore[reportMissingImports]

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=_identity(run_folder),
        name=run_folder.resolve().name,
        dir=str(run_folder),
        config=asdict(recipe),
        resume="allow",
    )
    run.define_metric("*", step_metric="step")
    return (lambda row: run.log(dict(scalars(row)) | {"step": row["step"]})), run.finish


def _trackio(run_folder: Path, recipe: Recipe, last_step: int) -> Tracker:
    """Local by default; TRACKIO_SPACE_ID sends it to a Space. trackio knows a run by its name."""
    import trackio  # pyright: ignore[reportMissingImports]

    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    name = f"{run_folder.resolve().name}-{_identity(run_folder)}"
    trackio.init(project=project, name=name, config=asdict(recipe), resume="allow", embed=False)
    return (lambda row: trackio.log(dict(scalars(row)), step=row["step"])), trackio.finish


def _identity(run_folder: Path) -> str:
    """The id under which services know this run directory: drawn once, kept in it."""
    path = run_folder / NAMES_RUN
    if not path.exists():
        write_json(path, {"id": secrets.token_hex(4)})
    return read_json(path)["id"]
