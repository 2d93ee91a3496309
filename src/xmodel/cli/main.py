"""The command line. It loads nothing heavy before it must: `xmodel --help` answers without torch.

Exit codes: 0 done; 1 a fault of the machine; 2 a mistake of the user's; 75 stopped, the same command goes on;
130 Ctrl-C. A bug ends in a traceback.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from xmodel.cli.chat import chat
from xmodel.cli.common import (
    FOLDER,
    JSON,
    OVERRIDES,
    PROCESSES,
    REDO,
    TARGET,
    Commands,
    carry_out_stages,
    open_target,
)
from xmodel.cli.compare import compare
from xmodel.cli.corpus import corpus
from xmodel.cli.evaluate import evaluate
from xmodel.cli.exporting import export
from xmodel.cli.generate import generate
from xmodel.cli.importing import import_
from xmodel.cli.plan import plan
from xmodel.cli.pretrain import pretrain
from xmodel.cli.serve import serve
from xmodel.cli.tokenizer import tokenizer
from xmodel.errors import Interrupted, UserError, XmodelError
from xmodel.files import PARTIAL


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="xmodel")
def cli() -> None:
    """Make a compact bilingual (Chinese/English) language model from scratch, and know how good it is.

    \b
    Start here:
      xmodel run recipes/quickstart.yaml            text to model, scores, export and report in minutes
      xmodel init --text mytext/ --hours 2          a commented recipe for your own text
      xmodel generate runs/quickstart "The capital of France is"
    """


def _stop(signum: int, frame: Any) -> NoReturn:
    raise Interrupted("stopped by a signal; the same command goes on")


def main() -> None:
    """Entry point: run the command and turn what it raises into one line and an exit code."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        fail("stopped; the same command goes on", 130)
    except XmodelError as error:
        fail(str(error), error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            where = f" ({error.filename})" if error.filename else ""
            fail(f"the disk is full{where}; nothing half-written was kept: make room and repeat the command", 1)
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            fail(f"{error.filename}: {error.strerror}", 1)
        if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST) or str(error.filename).endswith(PARTIAL):
            fail(f"{str(error.filename).removesuffix(PARTIAL)}: {error.strerror}", 2)  # a name that cannot be a file's
        raise


def fail(message: str, code: int) -> NoReturn:
    """One clear line (a list of recipe problems: one line each), then the exit code."""
    print(f"xmodel: {message}", file=sys.stderr)
    sys.exit(code)


@cli.command()
@TARGET
@OVERRIDES
@FOLDER
@REDO
@PROCESSES
@JSON
def run(
    target: str, overrides: tuple[str, ...], folder: str | None, redo: str | None, processes: int | None, as_json: bool
) -> None:
    """Take a run through all stages: corpus, tokenizer, tokens, pretrain, evaluate, export, report.

    Stages that stand with the same settings and inputs are skipped; what was cut off is resumed.

    \b
    Examples:
      xmodel run recipes/quickstart.yaml
      xmodel run recipes/quickstart.yaml pretrain.peak_lr=1e-3 --dir runs/lr-1e-3
      xmodel run runs/quickstart                    go on with a run
      xmodel run mine.yaml --processes 8            eight training processes on this machine
    """
    from xmodel.stages import NAMES, final_table, scores

    if "RANK" in os.environ:
        raise UserError(
            "xmodel run starts the training processes itself (--processes N); torchrun is for `xmodel pretrain`"
        )
    opened = open_target(target, overrides, folder, processes)
    rows = carry_out_stages(opened, NAMES, redo)
    if as_json:
        click.echo(
            json.dumps({"run": str(opened.folder), "stages": rows, "scores": scores(opened)}, ensure_ascii=False)
        )
        return
    click.echo(final_table(opened))
    click.echo(f"\nreport: {opened.path('report.html')}\nexport: {opened.path('export', 'hf')}")


def _stage_command(name: str, summary: str, examples: str) -> None:
    """Make the command of one stage."""

    @TARGET
    @OVERRIDES
    @FOLDER
    @REDO
    @JSON
    def command(target: str, overrides: tuple[str, ...], folder: str | None, redo: str | None, as_json: bool) -> None:
        rows = carry_out_stages(open_target(target, overrides, folder), (name,), redo)
        if as_json:
            click.echo(json.dumps(rows[0], ensure_ascii=False))

    command.__doc__ = f"{summary}\n\n\b\nExamples:\n{examples}"
    cli.command(name)(command)


cli.add_command(corpus)
cli.add_command(tokenizer)
_stage_command(
    "tokens",
    "Encode the corpus into token shards, with a manifest of sizes and checksums.",
    "  xmodel tokens runs/quickstart\n  xmodel tokens mine.yaml tokens.shard_tokens=100M",
)
cli.add_command(pretrain)
cli.add_command(plan)

cli.add_command(chat)
cli.add_command(evaluate)
cli.add_command(import_)
cli.add_command(compare)
cli.add_command(export)
cli.add_command(generate)
cli.add_command(serve)


@cli.command()
@click.argument("target", metavar="RUN")
@JSON
def report(target: str, as_json: bool) -> None:
    """Write report.html for a run, finished or not (also while it trains).

    \b
    Examples:
      xmodel report runs/quickstart
    """
    from xmodel.files import atomic_write
    from xmodel.report import build_report

    opened = open_target(target, (), None)
    path = opened.path("report.html")
    with atomic_write(path, "w") as stream:
        stream.write(build_report(opened.folder))
    click.echo(json.dumps({"report": str(path)}) if as_json else str(path))


@cli.group(cls=Commands)
def recipe() -> None:
    """Look at recipes: every setting of a run, in YAML.

    \b
    Examples:
      xmodel recipe show recipes/quickstart.yaml
      xmodel recipe check mine.yaml
    """


@recipe.command("show")
@TARGET
@OVERRIDES
@JSON
def recipe_show(target: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print the resolved recipe: extends, preset and overrides applied, every default written out.

    \b
    Examples:
      xmodel recipe show recipes/xmodel-lm-1.1b.yaml
      xmodel recipe show recipes/quickstart.yaml model.layers=6 --json
    """
    from dataclasses import asdict

    from xmodel.recipe.dump import dump_recipe

    opened = open_target(target, overrides, None)
    click.echo(
        json.dumps(asdict(opened.recipe), ensure_ascii=False) if as_json else dump_recipe(opened.recipe), nl=as_json
    )


@recipe.command("check")
@TARGET
@OVERRIDES
@JSON
def recipe_check(target: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check a recipe; all problems are listed at once. Prints what it amounts to: parameters, tokens, epochs.

    \b
    Examples:
      xmodel recipe check recipes/xmodel-lm-1.1b.yaml
      xmodel recipe check mine.yaml pretrain.steps=20k --json
    """
    from xmodel.console import table
    from xmodel.recipe.summary import check_summary

    rows = check_summary(open_target(target, overrides, None).recipe)
    click.echo(json.dumps(dict(rows), ensure_ascii=False) if as_json else table(["setting", "amounts to"], rows))


@recipe.command("schema")
def recipe_schema() -> None:
    """Print the JSON Schema of recipes, for editors that complete and check YAML.

    \b
    Examples:
      xmodel recipe schema > recipe.schema.json
    """
    from xmodel.recipe.schema import schema

    click.echo(json.dumps(schema(), ensure_ascii=False, indent=2))


@cli.command()
@click.argument("what", type=click.Choice(["cli", "recipe"]))
def reference(what: str) -> None:
    """Print the reference of all commands or of all settings, as Markdown.

    \b
    Examples:
      xmodel reference cli > docs/reference/cli.md
      xmodel reference recipe > docs/reference/recipe.md
    """
    if what == "recipe":
        from xmodel.recipe.schema import reference as text
    else:
        text = command_reference
    click.echo(text(), nl=False)


def command_reference() -> str:
    """The help of every command, as one Markdown page."""
    parts = ["# Commands\n\nMade by `xmodel reference cli`; a test keeps it true.\n"]

    def add(command: click.Command, context: click.Context) -> None:
        parts.append(f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n")
        for name, child in sorted(command.commands.items()) if isinstance(command, click.Group) else ():
            if not child.hidden:
                add(child, click.Context(child, info_name=name, parent=context))

    add(cli, click.Context(cli, info_name="xmodel", terminal_width=100, **cli.context_settings))
    return "\n".join(parts)


@cli.command()
@click.option(
    "--text", "files", multiple=True, required=True, metavar="PATH", help="File, folder or pattern; repeatable."
)
@click.option("--hours", type=float, required=True, help="Time for the training.")
@click.option("--name", default="mine", show_default=True, help="Name of the run.")
@click.option("--out", type=click.Path(dir_okay=False), help="Recipe file to write (default: NAME.yaml).")
@click.option("--force", is_flag=True, help="Overwrite the recipe file.")
@click.argument("more", nargs=-1, metavar="[PATH]...")
def init(files: tuple[str, ...], hours: float, name: str, out: str | None, force: bool, more: tuple[str, ...]) -> None:
    """Write a commented starter recipe for your own text, sized for this machine and the time you give.

    \b
    Examples:
      xmodel init --text corpus.jsonl --hours 2
      xmodel init --text books/ --text news.jsonl.gz --hours 12 --name library
    """
    from xmodel.files import atomic_write
    from xmodel.init import starter_recipe

    path = Path(out or f"{name}.yaml")
    if path.exists() and not force:
        raise UserError(f"{path}: exists already; name another with --out, or add --force")
    text = starter_recipe([*files, *more], hours, name, folder=path.parent)
    with atomic_write(path, "w") as stream:
        stream.write(text)
    click.echo(f"{path} written; read it, then: xmodel run {path}")
