"""`xmodel pretrain ...`: the training, how it stands, and a profile of it."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import click

from xmodel.cli.common import (
    FOLDER,
    JSON,
    OVERRIDES,
    PROCESSES,
    REDO,
    TARGET,
    WithDefault,
    carry_out_stages,
    open_target,
)
from xmodel.console import log
from xmodel.errors import UserError

WATCH_SECONDS = 5


@click.group(cls=WithDefault)
def pretrain() -> None:
    """Train the model, and see how the training stands.

    \b
    Examples:
      xmodel pretrain runs/quickstart               train; goes on from the newest whole checkpoint
      xmodel pretrain status runs/quickstart        loss, speed, time left, checkpoints, warnings
      xmodel pretrain runs/quickstart --profile 5   profile five steps of it, also while it runs
    """


@pretrain.command("run")
@TARGET
@OVERRIDES
@FOLDER
@REDO
@PROCESSES
@click.option(
    "--profile",
    "profiled",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Profile so many steps, into RUN/profile; a process that trains this run already is asked to do it.",
)
@click.option("--worker", is_flag=True, help="Be one rank under torchrun: train, take no lock, record no stage.")
@JSON
def pretrain_run(
    target: str,
    overrides: tuple[str, ...],
    folder: str | None,
    redo: str | None,
    processes: int | None,
    profiled: int | None,
    worker: bool,
    as_json: bool,
) -> None:
    """Train the model (`run` may be left out); goes on from the newest whole checkpoint if there is one.

    SIGTERM and Ctrl-C save a checkpoint and exit with code 75.

    \b
    Examples:
      xmodel pretrain runs/quickstart
      xmodel pretrain recipes/xmodel-lm-1.1b.yaml --processes 7
      torchrun --nproc-per-node 8 -m xmodel pretrain --worker runs/mine       see launch/ for several machines
    """
    if "RANK" in os.environ and not worker:
        raise UserError("under torchrun every process is one rank: add --worker; launch/ has examples")
    opened = open_target(target, overrides, folder, processes)
    if worker:
        from xmodel.stages import pretrain_here

        pretrain_here(opened)
        return
    if profiled is not None and _asked(opened, profiled):
        return
    rows = carry_out_stages(opened, ("pretrain",), redo)
    if profiled is not None and opened.path("profile.request").exists():
        opened.path("profile.request").unlink()
        log("nothing was profiled: no step was left to train")
    if as_json:
        click.echo(json.dumps(rows[0], ensure_ascii=False))


def _asked(opened: Any, steps: int) -> bool:
    """Ask for a profile; whether a process that trains this run already will make it."""
    from xmodel.files import atomic_write
    from xmodel.status import owner

    process = owner(opened.path(".lock"))
    with atomic_write(opened.path("profile.request"), "w") as stream:
        stream.write(f"{steps}\n")
    running = process is not None and process["alive"] is not False
    if running and process is not None:
        log(f"process {process['pid']} on {process['host']} is asked for {steps} steps, into {opened.path('profile')}")
    return running


@pretrain.command("status")
@click.argument("target", metavar="RUN")
@click.option("--watch", is_flag=True, help=f"Show it again every {WATCH_SECONDS} seconds, until the training ends.")
@JSON
def pretrain_status(target: str, watch: bool, as_json: bool) -> None:
    """Say how a training stands: step, loss, speed, time left, checkpoints, whether it is alive, what looks wrong.

    It reads the files of the run directory alone, and does not disturb the training.

    \b
    Examples:
      xmodel pretrain status runs/quickstart
      xmodel pretrain status runs/quickstart --watch
      xmodel pretrain status runs/quickstart --json
    """
    from xmodel.status import line, status, told

    opened = open_target(target, (), None)
    while True:
        found = status(opened.folder, opened.recipe)
        if as_json:
            click.echo(json.dumps(found, ensure_ascii=False))
        elif watch and not sys.stdout.isatty():
            click.echo(line(found))
        else:
            click.echo(("\x1b[H\x1b[2J" if watch else "") + told(found))
        if not watch or found["state"] not in ("training", "unknown"):
            return
        sys.stdout.flush()
        time.sleep(WATCH_SECONDS)
