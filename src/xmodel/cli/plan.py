"""`xmodel plan`: what a training will take, before it is begun."""

from __future__ import annotations

import json
from typing import Any

import click

from xmodel.cli.common import JSON, OVERRIDES, open_target
from xmodel.console import log
from xmodel.errors import UserError


@click.command()
@click.argument("target", metavar="RECIPE|RUN", required=False)
@OVERRIDES
@click.option("--gpu", metavar="NAME", help="A GPU of the table, as in H800 or a100-80gb.  [default: H100]")
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True, help="How many of them.")
@click.option("--precision", type=click.Choice(["bf16", "fp8"]), help="Default: the recipe's.")
@click.option(
    "--checkpointing",
    type=click.Choice(["none", "selective", "full"]),
    help="Activations that are made again in the backward pass.  [default: the recipe's, or none]",
)
@click.option(
    "--parallel",
    type=click.Choice(["ddp", "zero2", "fsdp"]),
    help="What GPUs share out.  [default: the recipe's, or ddp]",
)
@click.option("--mfu", type=click.FloatRange(0, 1, min_open=True), help="PaLM MFU, in place of an assumed one.")
@click.option("--price", type=click.FloatRange(min=0), help="Of a GPU for an hour, in any currency.")
@click.option(
    "--power-share", type=click.FloatRange(0, 1), help="Of the board power that training draws.  [default: 0.85]"
)
@click.option(
    "--measure", "measuring", is_flag=True, help="Train on this machine for some seconds, and plan with its MFU."
)
@click.option(
    "--what-if", type=click.Choice(["gpus", "sizes"]), help="A table over all GPUs, or over the preset sizes."
)
@click.option("--check", "checking", is_flag=True, help="Compare the arithmetic with published figures.")
@JSON
def plan(
    target: str | None,
    overrides: tuple[str, ...],
    gpu: str | None,
    gpus: int,
    precision: str | None,
    checkpointing: str | None,
    parallel: str | None,
    mfu: float | None,
    price: float | None,
    power_share: float | None,
    measuring: bool,
    what_if: str | None,
    checking: bool,
    as_json: bool,
) -> None:
    """Say what training a recipe takes: parameters, FLOP, memory by part, micro-batch, tokens/s, days, energy, cost.

    The speed is the share of the GPU's dense bf16 peak (MFU) that published trainings reach on its family, unless it is
    given (--mfu) or measured. With --measure and no --gpu the plan is for this machine.

    \b
    Examples:
      xmodel plan recipes/xmodel-lm-1.1b.yaml --gpus 7 --gpu H800
      xmodel plan recipes/xmodel-lm-1.1b.yaml --gpus 8 --what-if gpus --price 2.5
      xmodel plan mine.yaml pretrain.steps=100k --gpu 4090 --checkpointing full
      xmodel plan mine.yaml --measure               on this machine
      xmodel plan --check
    """
    from xmodel.plan import output
    from xmodel.plan.estimate import POWER_SHARE, make_setup, over_gpus, over_sizes
    from xmodel.plan.estimate import plan as planned
    from xmodel.plan.published import check

    if checking:
        rows = check()
        click.echo(json.dumps(rows) if as_json else output.checked(rows))
        return
    if target is None:
        raise UserError("plan: name a recipe or a run, or --check")
    from xmodel.hardware import Gpu, named

    recipe = open_target(target, overrides, None).recipe
    wanted = named(gpu or "H100") if gpu or not measuring else None
    found: dict[str, Any] | None = None
    given = (mfu, "given") if mfu else None
    if measuring:
        from xmodel.pretrain.measure import measure

        found = measure(recipe)
        log(f"plan: {output.measured(found)}")
        wanted = wanted or found["gpu"]
        given = given or (found["mfu_palm"], f"measured on {found['gpu'].name}")
    assert wanted is not None

    def remake(one: Gpu) -> Any:
        return make_setup(
            recipe,
            one,
            gpus,
            precision=precision,
            checkpointing=checkpointing,
            parallel=parallel,
            mfu=given,
            power_share=POWER_SHARE if power_share is None else power_share,
            price=price,
        )

    if what_if == "gpus":
        rows = over_gpus(recipe, remake)
    elif what_if == "sizes":
        rows = over_sizes(recipe, remake(wanted))
    else:
        rows = [{"name": wanted.name, "plan": planned(recipe, remake(wanted))}]
    if as_json:
        seen = found and found | {"gpu": found["gpu"]._asdict()}
        answer = rows if what_if else rows[0]["plan"] | ({"measured": seen} if seen else {})
        click.echo(json.dumps(answer, ensure_ascii=False))
        return
    text = output.compared(rows, price is not None) if what_if else output.told(rows[0]["plan"])
    if what_if == "sizes":
        text += f"\n\nMFU {remake(wanted).mfu_source}. Below 125M parameters it is less than planned."
    click.echo(text)
