"""What the commands share: groups that help, options, and how a run is opened and carried out."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import sys
from collections.abc import Callable
from typing import Any

import click


class Commands(click.Group):
    """A group that answers a mistyped command with the nearest right one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            if near:
                raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from None
            raise


class WithDefault(Commands):
    """A group whose first argument may be a run instead of a subcommand: `xmodel export RUN`."""

    default = "run"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options of the command that needs no name stand in the group's help: there is no other place to find them."""
        command = self.commands[self.default]
        own = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
        records = [record for option in own if (record := option.get_help_record(ctx))]
        if records:
            target = next((each.make_metavar(ctx) for each in command.params if isinstance(each, click.Argument)), "")
            with formatter.section(f"Options of `{ctx.command_path} {target}`"):
                formatter.write_dl(records)
        super().format_options(ctx, formatter)


class ManyTexts(click.Command):
    """Takes all that follows --text for files, as a shell makes them of a pattern: `--text corpus/*.jsonl`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        within = False
        for argument in args:
            if argument.startswith("-"):
                within = argument == "--text" or argument.startswith("--text=")
            elif within and spread[-1] != "--text":
                spread.append("--text")
            spread.append(argument)
        return super().parse_args(ctx, spread)


UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


class Bytes(click.ParamType):
    """`5GB`, `500MB`, `2e9`: a number of bytes, in powers of 1,000."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?) *([kmgt]?)b?", str(value).strip().lower())
        size = int(float(found[1]) * UNITS[found[2]]) if found else 0
        if size < 1:
            self.fail(f"{value!r} is not a size; write 5GB or 500MB", param, ctx)
        return size


TARGET = click.argument("target", metavar="RECIPE|RUN")
OVERRIDES = click.argument("overrides", nargs=-1, metavar="[SETTING=VALUE]...")
FOLDER = click.option("--dir", "folder", metavar="DIR", help="Run directory (default: runs/NAME of the recipe).")
REDO = click.option("--redo", metavar="STAGE", help="Discard this stage and all that build on it, then go on.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
PROCESSES = click.option(
    "--processes", type=click.IntRange(min=1), help="Training processes on this machine (default: one per GPU, or 1)."
)
STEP = click.option(
    "--step", type=click.IntRange(min=0), help="The run's checkpoint of this step (default: the newest)."
)
DTYPE = click.option(
    "--dtype",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="Number format; auto: bf16 on a GPU, else fp32.",
)
DEVICE = click.option(
    "--device", default="auto", metavar="NAME", help="cpu, cuda or cuda:1 (default: a GPU, or the CPU)."
)
WEIGHTS = click.option(
    "--weights",
    type=click.Choice(["auto", "int8"]),
    default="auto",
    show_default=True,
    help="int8: rounded to 8 bits, smaller and faster on a CPU.",
)


def with_options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator, in their order."""

    def add(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return add


opening = with_options(STEP, DTYPE, DEVICE)  # the arguments of `open_subject`


def sampling(*, max_new_tokens: int, temperature: float, top_p: float) -> Callable[[Any], Any]:
    """Options that are named as the fields of `Sampling`, with a command's own defaults."""
    return with_options(
        click.option(
            "--max-new-tokens", type=int, default=max_new_tokens, show_default=True, help="Most tokens of an answer."
        ),
        click.option("--temperature", type=float, default=temperature, show_default=True, help="0: greedy."),
        click.option("--top-k", type=int, default=0, show_default=True, help="Only the k likeliest tokens; 0: all."),
        click.option("--top-p", type=float, default=top_p, show_default=True, help="Nucleus; 1: all tokens."),
        click.option(
            "--min-p", type=float, default=0.0, show_default=True, help="Least share of the likeliest's chance; 0: all."
        ),
        click.option(
            "--repetition-penalty", type=float, default=1.0, show_default=True, help="Above 1: fewer repeats."
        ),
    )


def open_target(target: str, overrides: tuple[str, ...], folder: str | None, processes: int | None = 1) -> Any:
    from xmodel.run import open_run

    run = open_run(target, overrides, folder)
    run.command = shlex.join(["xmodel", *sys.argv[1:]])
    if processes is None and "RANK" not in os.environ:
        import torch

        wanted = run.recipe.pretrain.device
        processes = max(1, torch.cuda.device_count()) if wanted in ("auto", "cuda") else 1
    run.processes = processes or 1
    return run


def carry_out_stages(run: Any, wanted: tuple[str, ...], redo: str | None) -> list[dict[str, Any]]:
    from xmodel.errors import UserError
    from xmodel.run import carry_out, locked
    from xmodel.stages import STAGES

    if run.imported:
        raise UserError(
            f"{run.folder}: an imported model, which has no corpus and no stages; `xmodel evaluate {run.folder} "
            f"--suite NAME` scores it; a recipe that `extends: {run.folder}/recipe.yaml` with corpus.sources trains it"
        )

    with locked(run):
        return carry_out(run, STAGES, wanted, redo)
