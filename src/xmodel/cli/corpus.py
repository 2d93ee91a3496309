"""`xmodel corpus ...`: the corpus stage, and what it has done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from xmodel.cli.common import FOLDER, JSON, OVERRIDES, REDO, TARGET, WithDefault, carry_out_stages, open_target
from xmodel.errors import UserError


@click.group(cls=WithDefault)
def corpus() -> None:
    """Read the sources, clean and deduplicate them, set validation text aside; every drop is counted with its reason.

    \b
    Examples:
      xmodel corpus recipes/quickstart.yaml
      xmodel corpus mine.yaml corpus.keep_dropped=true corpus.workers=8
      xmodel corpus plan mine.yaml                  what the weights draw from each source
      xmodel corpus stats runs/mine                 documents and bytes by stage, source, language and reason
      xmodel corpus run --help                      many machines: job arrays and Ray
    """


@corpus.command("run")
@TARGET
@OVERRIDES
@FOLDER
@REDO
@click.option("--rank", type=click.IntRange(min=0), help="Only this task's share of the reading and filtering.")
@click.option("--world", type=click.IntRange(min=1), help="Number of tasks that share the work.")
@click.option("--ray", metavar="ADDRESS", help="Work on a Ray cluster; `local` starts one on this machine.")
@JSON
def corpus_run(
    target: str,
    overrides: tuple[str, ...],
    folder: str | None,
    redo: str | None,
    rank: int | None,
    world: int | None,
    ray: str | None,
    as_json: bool,
) -> None:
    """The corpus stage of a run (`run` may be left out). It goes on where it was cut off.

    With --rank and --world, a task of a job array reads and filters its share and leaves it in the run directory, which
    all tasks share. Afterwards the plain command does what is left over, and the rest. Each may be repeated.

    \b
    Examples:
      xmodel corpus recipes/quickstart.yaml
      xmodel corpus mine.yaml --rank $SLURM_PROCID --world $SLURM_NTASKS
      xmodel corpus mine.yaml --ray auto
    """
    if (rank is None) != (world is None) or (rank is not None and world is not None and rank >= world):
        raise UserError(f"--rank {rank} --world {world}: give both, the rank from 0 to one less than the world")
    if rank is not None and (ray is not None or redo is not None):
        raise UserError("--rank: a task of a job array takes neither --ray nor --redo; give them to the plain command")
    opened = open_target(target, overrides, folder)
    opened.ray = ray
    if rank is not None and world is not None:
        from xmodel.stages import corpus_share

        row: Any = corpus_share(opened, rank, world)
    else:
        row = carry_out_stages(opened, ("corpus",), redo)[0]
    if as_json:
        click.echo(json.dumps(row, ensure_ascii=False))


def _finished_corpus(target: str) -> Any:
    opened = open_target(target, (), None)
    if not opened.path("corpus", "funnel.json").exists():
        raise UserError(f"{target}: has no finished corpus; `xmodel corpus {target}` makes it")
    return opened


@corpus.command("stats")
@click.argument("target", metavar="RUN")
@JSON
def corpus_stats(target: str, as_json: bool) -> None:
    """Documents, bytes and tokens, in and out, by stage, source, language and reason.

    \b
    Examples:
      xmodel corpus stats runs/quickstart
      xmodel corpus stats runs/quickstart --json
    """
    from xmodel.corpus.inspect import stats, stats_tables

    opened = _finished_corpus(target)
    found = stats(opened.path("corpus"), opened.path("tokens"))
    click.echo(json.dumps(found, ensure_ascii=False) if as_json else stats_tables(found))


@corpus.command("sample")
@click.argument("target", metavar="RUN")
@click.argument("reason", required=False)
@click.option("--source", help="Only documents of this source.")
@click.option("--count", type=click.IntRange(min=1), default=3, show_default=True, help="Documents for each reason.")
@JSON
def corpus_sample(target: str, reason: str | None, source: str | None, count: int, as_json: bool) -> None:
    """Show documents that were dropped, for one REASON or for each.

    Texts that were not kept (corpus.keep_dropped) are read again from the sources.

    \b
    Examples:
      xmodel corpus sample runs/quickstart
      xmodel corpus sample runs/quickstart symbols --source sandbox-zh --count 10
    """
    from xmodel.corpus.inspect import excerpt, samples

    opened = _finished_corpus(target)
    recipe = opened.recipe
    rows = samples(recipe.corpus, recipe.seed, opened.path("corpus"), reason, source, count)
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False))
    else:
        for row in rows:
            click.echo(f"{row['reason']}  {row['id']} ({row['source']}): {excerpt(row['text'], 400)}\n")


@corpus.command("why")
@click.argument("target", metavar="RUN")
@click.argument("document", metavar="DOC")
@JSON
def corpus_why(target: str, document: str, as_json: bool) -> None:
    """Say what happened to the document with the id DOC: kept or dropped, why, and what the filters measure.

    \b
    Examples:
      xmodel corpus why runs/quickstart en-12
    """
    from xmodel.corpus.inspect import told, why

    opened = _finished_corpus(target)
    rows = why(opened.recipe.corpus, opened.recipe.seed, opened.path("corpus"), document)
    click.echo(json.dumps(rows, ensure_ascii=False) if as_json else "\n\n".join(map(told, rows)))


@corpus.command("plan")
@TARGET
@OVERRIDES
@JSON
def corpus_plan(target: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Say what the mixture draws from each source: tokens available, weight, epochs, tokens drawn, repeated or cut.

    With pretrain.phases a weight is given for each stretch of the run, and the rest is of the whole run.

    Tokens available are those that a finished run counted, else the sizes that the recipe states (`tokens`).

    \b
    Examples:
      xmodel corpus plan recipes/xmodel-lm-1.1b.yaml
      xmodel corpus plan runs/quickstart --json
    """
    from dataclasses import asdict

    from xmodel.corpus.mixture import plan, plan_table
    from xmodel.files import read_json
    from xmodel.recipe.batches import samples_through
    from xmodel.recipe.phases import mixture

    opened = open_target(target, overrides, None)
    recipe, manifest = opened.recipe, opened.path("tokens", "manifest.json")
    counted = None
    if Path(target).is_dir() and manifest.exists():
        counted = {name: source["tokens"] for name, source in read_json(manifest)["train"].items()}
    length = recipe.model.context_length
    budget = samples_through(recipe.pretrain.steps, recipe.pretrain) * length
    phases = [(first * length, weights) for first, weights in mixture(recipe)[1:]]
    made = plan(recipe.corpus.sources, budget, counted, phases)
    click.echo(json.dumps(asdict(made), ensure_ascii=False) if as_json else plan_table(made))
