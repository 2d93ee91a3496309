"""What the commands share: groups that help, options, and how a run is opened and carried out."""

from __future__ import annotations

import difflib
import os
import shlex
import sys
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


TARGET = click.argument("target", metavar="RECIPE|RUN")
OVERRIDES = click.argument("overrides", nargs=-1, metavar="[SETTING=VALUE]...")
FOLDER = click.option("--dir", "folder", metavar="DIR", help="Run directory (default: runs/NAME of the recipe).")
REDO = click.option("--redo", metavar="STAGE", help="Discard this stage and all that build on it, then go on.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
PROCESSES = click.option(
    "--processes", type=click.IntRange(min=1), help="Training processes on this machine (default: one per GPU, or 1)."
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
