"""`xmodel evaluate`: how good a model is."""

from __future__ import annotations

import json

import click

from xmodel.cli import experiments
from xmodel.cli.common import FOLDER, JSON, OVERRIDES, REDO, TARGET, WithDefault, carry_out_stages, open_target


@click.group(cls=WithDefault)
def evaluate() -> None:
    """Score a trained model.

    \b
    Examples:
      xmodel evaluate runs/quickstart               the run's evaluate stage
      xmodel evaluate runs/quickstart evaluate.shots=[0,1,5] --json
    """


@evaluate.command("run", hidden=True)
@TARGET
@OVERRIDES
@FOLDER
@REDO
@JSON
def evaluate_run(target: str, overrides: tuple[str, ...], folder: str | None, redo: str | None, as_json: bool) -> None:
    """The evaluate stage of a run: bits per byte, multiple choice, translation, each beside its chance level."""
    from xmodel.evaluate.suites import results_table
    from xmodel.stages import scores

    opened = open_target(target, overrides, folder)
    carry_out_stages(opened, ("evaluate",), redo)
    rows = scores(opened)
    click.echo(json.dumps(rows, ensure_ascii=False) if as_json else results_table(rows))


experiments.add_to(evaluate)
