"""`xmodel evaluate`: how good a model is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from xmodel.cli import experiments
from xmodel.cli.common import DTYPE, FOLDER, JSON, OVERRIDES, REDO, STEP, WithDefault, carry_out_stages, open_target

OWN_SUITES = ("perplexity", "sandbox", "translation")  # of a run's own corpus
SUITES = click.option("--suite", "suites", multiple=True, metavar="NAME", help="A suite, benchmark or task.")


@click.group(cls=WithDefault)
def evaluate() -> None:
    """Score a model: a run, a checkpoint, an exported folder, or any causal model of Hugging Face.

    \b
    Examples:
      xmodel evaluate runs/quickstart                               the run's evaluate stage
      xmodel evaluate runs/quickstart evaluate.shots=[0,1,5] --json
      xmodel evaluate runs/quickstart --suite paper --benchmarks DIR
      xmodel evaluate hf:OWNER/NAME --suite commonsense chinese --html scores.html
      xmodel evaluate layout                                        how DIR is laid out
    """


experiments.add_to(evaluate)


@evaluate.command("run", hidden=True)
@click.argument("target", metavar="RUN|MODEL")
@OVERRIDES
@SUITES
@click.option("--benchmarks", metavar="DIR", help="Local rows (`xmodel evaluate layout`); no network is used.")
@click.option("--limit", type=click.IntRange(min=1), help="Score only the first N questions of each task.")
@click.option(
    "--shots", type=click.IntRange(min=0), help="Examples before each question, instead of the paper's number."
)
@STEP
@DTYPE
@click.option("--device", default="auto", metavar="NAME", help="cpu, cuda or cuda:1 (default: all GPUs, or the CPU).")
@click.option("--out", metavar="DIR", help="Result files (default: RUN/evaluations/step-N, or evaluations/NAME).")
@click.option("--html", metavar="FILE", help="Write the tables as one HTML page.")
@click.option("--markdown", metavar="FILE", help="Write the tables as Markdown.")
@click.option(
    "--contamination/--no-contamination",
    default=None,
    help="Look for the questions in the run's training text, and show the scores without those found. Default: where "
    "its files have at most 20 GB.",
)
@click.option("--run-code", is_flag=True, help="HumanEval: run the code that the model writes. It may do anything.")
@FOLDER
@REDO
@JSON
def evaluate_run(
    target: str,
    overrides: tuple[str, ...],
    suites: tuple[str, ...],
    folder: str | None,
    redo: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Score a model on named suites, or carry out the evaluate stage of a run.

    Without --suite: the run's stage, with bits per byte, multiple choice and translation as its recipe says. With it:
    the paper's suites (`xmodel evaluate tasks`), or perplexity, sandbox and translation of the run's own corpus; names
    may follow one another, as in `--suite commonsense chinese`.
    """
    if suites:
        if folder or redo:
            raise click.UsageError(
                "--dir and --redo belong to the run's evaluate stage, which --suite does not carry out"
            )
        _score(
            target, [name for given in (*suites, *overrides) for name in given.split(",") if name], as_json, **options
        )
        return
    unset = (None, "auto")
    given = [name for name, value in options.items() if value not in unset and (name != "run_code" or value)]
    if given or (not (Path(target) / "recipe.yaml").is_file() and not target.endswith((".yaml", ".yml"))):
        what = f"--{given[0].replace('_', '-')} needs" if given else f"{target} is no run: to score it, give"
        raise click.UsageError(f"{what} --suite, as in --suite paper (`xmodel evaluate tasks` lists the names)")

    from xmodel.evaluate.suites import results_table
    from xmodel.stages import scores

    opened = open_target(target, overrides, folder)
    carry_out_stages(opened, ("evaluate",), redo)
    rows = scores(opened)
    click.echo(json.dumps(rows, ensure_ascii=False) if as_json else results_table(rows))


def _score(
    target: str,
    names: Sequence[str],
    as_json: bool,
    *,
    benchmarks: str | None,
    limit: int | None,
    shots: int | None,
    step: int | None,
    dtype: str,
    device: str,
    out: str | None,
    html: str | None,
    markdown: str | None,
    run_code: bool,
    contamination: bool | None,
) -> None:
    from xmodel.errors import UserError
    from xmodel.evaluate import paper
    from xmodel.evaluate.tasks import stay_offline

    if benchmarks:
        stay_offline()
    own = [name for name in names if name in OWN_SUITES]
    published = [name for name in names if name not in own]
    selected = paper.select(published, OWN_SUITES)  # a mistyped name is told before anything is loaded
    from xmodel.console import log
    from xmodel.evaluate.replicas import every_gpu
    from xmodel.evaluate.suites import prepare_suites, results_table, score_tasks
    from xmodel.inference.subjects import open_subject

    rows_of = Path(benchmarks) if benchmarks else None
    ready, missing = prepare_suites(published, rows_of, shots=shots, run_code=run_code) if selected else ([], [])
    subject = open_subject(target, step=step, dtype=dtype, device=device)
    if own and subject.run is None:
        raise UserError(f"--suite {own[0]}: {target} is not of a run, and only a run has such questions")
    at = f"step-{subject.about['step']}"
    place = (
        Path(out) if out else subject.run / "evaluations" / at if subject.run else Path("evaluations") / subject.name
    )
    rows = _score_own(subject, own, place, limit, shots) if own else []
    tasks: list[dict[str, Any]] = []
    if ready:
        devices = every_gpu() if device == "auto" else []
        known = {}
        if subject.run and contamination is not False:
            from xmodel.stages import contaminated

            known = contaminated(subject.run, ready, anyway=bool(contamination))
        tasks, missing = score_tasks(subject, ready, missing, place, limit=limit, devices=devices, known=known)
    found = paper.summarise(tasks)
    log(f"results: {place}")
    if as_json:
        answer = {"about": subject.about, "missing": missing, "results": rows + found, "tasks": tasks}
        click.echo(json.dumps(answer, ensure_ascii=False))
    elif rows:
        click.echo(results_table(rows))
    _write_tables(found, subject.name, html, markdown, to_terminal=bool(found) and not as_json)


def _score_own(
    subject: Any, suites: list[str], place: Path, limit: int | None, shots: int | None
) -> list[dict[str, Any]]:
    """Suites of the run's own corpus, written as the run's evaluate stage writes them."""
    from xmodel.evaluate.suites import run_suites, write_result
    from xmodel.recipe.load import load_recipe

    recipe = load_recipe(subject.run / "recipe.yaml")
    wanted = recipe.evaluate
    wanted.suites, wanted.limit = suites, limit or wanted.limit  # pyright: ignore[reportAttributeAccessIssue]
    wanted.shots = wanted.shots if shots is None else [shots]
    train, corpus = recipe.pretrain, subject.run / "corpus"
    found = run_suites(
        subject.model, subject.tokenizer, corpus, wanted, subject.bos, train.eval_tokens, train.document_mask
    )
    for name, result in found.items():
        write_result(place / f"{name}.json", name, subject.about["step"], result)
    return [{"suite": name, **row} for name, result in found.items() for row in result["results"]]


def _write_tables(
    rows: Sequence[dict[str, Any]], name: str, html: str | None, markdown: str | None, to_terminal: bool
) -> None:
    from xmodel.evaluate.results import as_html, as_markdown, as_text, tables
    from xmodel.files import atomic_write

    found = tables(rows, name)
    for path, render in ((html, as_html), (markdown, as_markdown)):
        if path:
            with atomic_write(Path(path), "w") as stream:
                stream.write(render(found, f"Scores of {name}"))
    if to_terminal:
        click.echo(as_text(found))


@evaluate.command("tasks")
@JSON
def evaluate_tasks(as_json: bool) -> None:
    """The suites, and the benchmarks and tasks of each.

    \b
    Examples:
      xmodel evaluate tasks
    """
    from xmodel.console import table
    from xmodel.evaluate.paper import BENCHMARKS, definitions

    rows = [
        {
            "suite": each.suite,
            "name": each.name,
            "shots": each.shots,
            "metric": each.metric,
            "tasks": list(definitions(each)),
        }
        for each in BENCHMARKS
    ]
    if as_json:
        click.echo(json.dumps(rows))
        return
    lines = [[row["suite"], row["name"], row["shots"], row["metric"], len(row["tasks"])] for row in rows]
    click.echo(table(["suite", "benchmark", "shots", "metric", "tasks"], lines))
    click.echo(
        "\npaper: commonsense, problem-solving and chinese. Of a group, single tasks may be named: mmlu_anatomy."
    )


@evaluate.command("layout")
def evaluate_layout() -> None:
    """How the folder given as --benchmarks is laid out: files, fields, an example row, sources and licences.

    \b
    Examples:
      xmodel evaluate layout
    """
    from xmodel.evaluate.tasks import layout

    click.echo(layout())


@evaluate.command("fetch")
@click.argument("folder", metavar="DIR")
@SUITES
@JSON
def evaluate_fetch(folder: str, suites: tuple[str, ...], as_json: bool) -> None:
    """Fill DIR with the benchmarks' rows from the Hugging Face hub; files that are there stay as they are.

    \b
    Examples:
      xmodel evaluate fetch rows/ --suite paper
      xmodel evaluate fetch rows/ --suite mmlu --suite xnli_zh
    """
    from xmodel.errors import MachineError
    from xmodel.evaluate.paper import select
    from xmodel.evaluate.tasks import fetch

    written, failed = fetch(Path(folder), select([name for given in suites or ("paper",) for name in given.split(",")]))
    if as_json:
        click.echo(json.dumps({"written": written, "failed": failed}))
    if failed:
        raise MachineError(
            f"{folder}: {written} files written, and some sets could not be had:\n  " + "\n  ".join(failed)
        )
    if not as_json:
        click.echo(f"{folder}: {written} files written")
