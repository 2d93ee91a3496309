"""`xmodel evaluate perplexity | translate | curve | contamination | diff`: first experiments with any checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from xmodel.cli.common import JSON, ManyTexts, opening
from xmodel.errors import UserError

SUBJECT = click.argument("subject", metavar="SUBJECT")
OUT = click.option("--out", metavar="FILE", help="Keep the result with the records of its items: a JSON file.")


class Numbers(click.ParamType):
    """`0,1,2`: whole numbers, none of them negative."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        parts = [part.strip() for part in str(value).strip("[]").split(",")]
        if not all(part.isdecimal() for part in parts):
            self.fail(f"{value!r} is not a list of numbers such as 0,1,2", param, ctx)
        return sorted({int(part) for part in parts})


@click.command("perplexity", cls=ManyTexts)
@SUBJECT
@click.option(
    "--text",
    "paths",
    multiple=True,
    metavar="FILES...",
    help="Text to score: files, folders, quoted patterns (JSON lines, Parquet, plain text). Default: the run's own "
    "held-out text.",
)
@click.option("--text-field", default="text", show_default=True, help="Field of the text in JSON lines and Parquet.")
@click.option(
    "--documents",
    type=click.Choice(["apart", "stream", "masked"]),
    help="apart: each document by itself (default with --text). stream: one behind another. masked: so, but they do "
    "not see each other. Default for held-out text: as the run was trained.",
)
@click.option("--window", type=click.IntRange(min=1), help="Tokens read at once (default: the model's context).")
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    help="Tokens from window to window (default: the window). Below the window only the last STRIDE tokens of a "
    "window are scored, the others are their context.",
)
@click.option("--limit-tokens", type=click.IntRange(min=1), help="Whole documents until a language has so many tokens.")
@opening
@OUT
@JSON
def perplexity(
    subject: str,
    paths: tuple[str, ...],
    text_field: str,
    documents: str | None,
    window: int | None,
    stride: int | None,
    limit_tokens: int | None,
    step: int | None,
    dtype: str,
    device: str,
    out: str | None,
    as_json: bool,
) -> None:
    """Loss, perplexity and bits per byte of any text, by language and source, each with its standard error.

    SUBJECT is a run, a checkpoint, a Hugging Face folder or hf:NAME. A record's fields `language` and `source` are
    taken as stated; otherwise the share of Han characters decides on the language, and the file or folder that is
    named is the source. Compare models of different tokenizers by bits per byte.

    \b
    Examples:
      xmodel evaluate perplexity runs/quickstart
      xmodel evaluate perplexity runs/quickstart --text news/*.jsonl --window 512 --stride 128
      xmodel evaluate perplexity hf:Qwen/Qwen2.5-0.5B --text books/ --limit-tokens 100000 --json
    """
    from xmodel.evaluate.perplexity import encode_texts, perplexity_table, score_documents
    from xmodel.evaluate.texts import read_texts, text_files
    from xmodel.inference.subjects import open_subject

    files = text_files(paths)
    opened = open_subject(subject, step=step, dtype=dtype, device=device)
    layout, name = documents or "apart", "text"
    if not paths:
        files, layout, name = _held_out(opened, documents)
    texts = read_texts(files, text_field, spread=limit_tokens is not None)
    encoded = encode_texts(texts, opened.tokenizer, limit_tokens)
    if not encoded:
        raise UserError(f"{', '.join(str(path) for path, _ in files[:3])}: no document with a text in it")
    result = score_documents(
        opened.model,
        opened.tokenizer,
        opened.bos,
        encoded,
        layout=layout,  # pyright: ignore[reportArgumentType] - one of the choices
        window=window or 0,
        stride=stride or 0,
        name=name,
    )
    result["settings"] |= {"limit": limit_tokens, "text": list(paths)}
    _give("perplexity", opened, result, out, as_json, perplexity_table)


def _held_out(opened: Any, documents: str | None) -> tuple[list[tuple[Path, str]], str, str]:
    from xmodel.recipe.load import load_recipe

    if opened.run is None:
        raise UserError(f"{opened.about['where']}: not a run, so it has no held-out text of its own; give --text FILES")
    paths = sorted((opened.run / "corpus" / "validation").glob("*.parquet"))
    if not paths:
        raise UserError(f"{opened.run}/corpus/validation: no held-out text; corpus.holdout sets some aside")
    masked = load_recipe(opened.run / "recipe.yaml").pretrain.document_mask
    return [(path, path.stem) for path in paths], documents or ("masked" if masked else "stream"), "validation"


@click.command("translate")
@SUBJECT
@click.option(
    "--pairs",
    metavar="FILE",
    help='JSON lines {"zh": ..., "en": ...}, some with "split": "dev" for examples. Default: the run\'s translation '
    "questions; without a run 60 everyday sentences. `everyday` names the latter.",
)
@click.option("--shots", type=Numbers(), default="0,3", show_default=True, help="Solved examples before each.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many pairs of each direction.")
@opening
@OUT
@JSON
def translate(
    subject: str,
    pairs: str | None,
    shots: list[int],
    limit: int | None,
    step: int | None,
    dtype: str,
    device: str,
    out: str | None,
    as_json: bool,
) -> None:
    """Translate simple sentences, Chinese to English and back: chrF and BLEU by sacrebleu, and ranking.

    Greedy translations end at a newline. The row `acc` is another task: to give the right translation a higher
    likelihood than three wrong ones. Chance stands beside every score: for chrF and BLEU that of answering with another
    item's reference.

    \b
    Examples:
      xmodel evaluate translate runs/quickstart
      xmodel evaluate translate runs/quickstart --pairs everyday --shots 0,1,4
      xmodel evaluate translate hf:Qwen/Qwen2.5-0.5B --pairs mine.jsonl --json
    """
    from xmodel.evaluate.questions import TRANSLATION, load_questions
    from xmodel.evaluate.suites import results_table, translation
    from xmodel.evaluate.translation import EVERYDAY, pair_sets, read_pairs
    from xmodel.inference.subjects import open_subject

    path = EVERYDAY if pairs == "everyday" else Path(pairs) if pairs else None
    sets = pair_sets(read_pairs(path), max(shots), limit) if path else None
    opened = open_subject(subject, step=step, dtype=dtype, device=device)
    if sets is None and opened.run is not None:
        own = load_questions(opened.run / "corpus" / "questions", shots, limit)
        sets = [questions for questions in own if questions.name.startswith(TRANSLATION)]
        path = opened.run / "corpus" / "questions"
    if not sets:
        sets, path = pair_sets(read_pairs(EVERYDAY), max(shots), limit), EVERYDAY
    result = translation(opened.model, opened.tokenizer, sets, shots, opened.bos)
    result["settings"] = {"pairs": pairs or (str(path) if path != EVERYDAY else "everyday"), "limit": limit}

    def shown(result: dict[str, Any]) -> str:
        signatures = dict.fromkeys(row["signature"] for row in result["results"] if "signature" in row)
        samples = [f"{one['source']} → {one['output']} ({one['reference']})" for one in result["samples"][:3]]
        return "\n".join(
            [
                results_table(result["results"]),
                f"pairs: {result['settings']['pairs']}; sacrebleu: {', '.join(signatures)}",
                *samples,
            ]
        )

    _give("translation", opened, result, out, as_json, shown)


@click.command("curve")
@SUBJECT
@click.option("--shots", type=Numbers(), default="0,1,2,4,8", show_default=True, help="Solved examples before each.")
@click.option(
    "--questions", metavar="FILE|DIR", multiple=True, help="Question files of the corpus stage's form (docs/corpus.md)."
)
@click.option(
    "--sets",
    metavar="NAMES",
    help="Only these, by commas. everyday_en and everyday_zh come with the software. Default: all multiple choice of "
    "the run and these two.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many questions of each set.")
@click.option("--plot", metavar="FILE", help="Draw the curves: .png, .svg or .pdf.")
@opening
@OUT
@JSON
def curve(
    subject: str,
    shots: list[int],
    questions: tuple[str, ...],
    sets: str | None,
    limit: int | None,
    plot: str | None,
    step: int | None,
    dtype: str,
    device: str,
    out: str | None,
    as_json: bool,
) -> None:
    """Accuracy by the number of solved examples before a question, and what the examples change, item by item.

    The two everyday sets (60 questions each; physical sense, cause and effect, simple facts) were written for this
    command and share nothing with the sandbox, so any model has something to answer.

    \b
    Examples:
      xmodel evaluate curve runs/quickstart --plot curve.png
      xmodel evaluate curve runs/quickstart --sets everyday_en,everyday_zh --shots 0,1,2,4,8
      xmodel evaluate curve hf:Qwen/Qwen2.5-0.5B --questions mine.jsonl --json
    """
    from xmodel.evaluate.curve import (
        EVERYDAY_SETS,
        choose_sets,
        curve_table,
        draw_curve,
        everyday_questions,
        few_shot_curve,
        of_run,
    )
    from xmodel.evaluate.questions import load_questions
    from xmodel.files import check_drawing
    from xmodel.inference.subjects import open_subject

    if plot:
        check_drawing(Path(plot))
    wanted = [name.strip() for name in sets.split(",") if name.strip()] if sets else []
    given = [one for path in questions for one in load_questions(Path(path), shots, limit)]
    opened = open_subject(subject, step=step, dtype=dtype, device=device)
    own: list[Any] = []
    if opened.run is not None and not questions and (not wanted or set(wanted) - set(EVERYDAY_SETS)):
        folder = opened.run / "corpus" / "questions"
        own = of_run(folder, shots, limit) if folder.is_dir() else []
    everyday = everyday_questions(shots, limit) if not questions or wanted else []
    known = {one.name: one for one in [*everyday, *own, *given]}
    chosen = choose_sets(known.values(), wanted)
    result = few_shot_curve(opened.model, opened.tokenizer, opened.bos, chosen, shots)
    result["settings"] = {"limit": limit, "questions": list(questions), "sets": [one.name for one in chosen]}
    if plot:
        draw_curve(result, Path(plot), opened.name)

    def shown(result: dict[str, Any]) -> str:
        cut = f"\n{result['truncated']} choices did not fit into the context with their prompt and lost its beginning"
        return curve_table(result) + (cut if result["truncated"] else "") + (f"\nplot: {plot}" if plot else "")

    _give("curve", opened, result, out, as_json, shown)


def _give(
    suite: str, opened: Any, result: dict[str, Any], out: str | None, as_json: bool, shown: Callable[[Any], str]
) -> None:
    """Keep a result with all its records, and print it without them."""
    from xmodel.evaluate.suites import write_result

    result = {"about": opened.about} | result
    if out:
        write_result(Path(out), suite, opened.about["step"], result)
    if as_json:
        kept = {key: value for key, value in result.items() if key not in ("items", "outputs")}
        click.echo(json.dumps({"suite": suite} | kept, ensure_ascii=False))
        return
    click.echo(f"{opened.name}\n{shown(result)}" + (f"\nkept: {out}" if out else ""))


@click.command("contamination")
@click.argument("run", metavar="RUN")
@click.option("--sets", metavar="NAMES", help="Only these question sets, by commas (default: all; everyday_* too).")
@click.option("--questions", metavar="FILE|DIR", multiple=True, help="More question files, as the corpus stage's.")
@click.option(
    "--benchmarks", metavar="DIR", multiple=True, help="Folders of benchmarks, a subfolder each (as corpus.benchmarks)."
)
@click.option("--results", metavar="FILE|DIR", help="Results to take scores from (default: the run's eval/).")
@click.option("--out", metavar="FILE", help="Write all contaminated items to a JSON file.")
@JSON
def contamination(
    run: str,
    sets: str | None,
    questions: tuple[str, ...],
    benchmarks: tuple[str, ...],
    results: str | None,
    out: str | None,
    as_json: bool,
) -> None:
    """How many items of each evaluation set stand in the run's own training text, and what the scores are without.

    \b
    Examples:
      xmodel evaluate contamination runs/quickstart
      xmodel evaluate contamination runs/quickstart --benchmarks ../benchmarks --json
    """
    from xmodel.console import progress
    from xmodel.corpus.benchmarks import load_benchmarks
    from xmodel.corpus.contamination import Asked, scan
    from xmodel.evaluate.contamination import contamination_table, giveaways, with_scores
    from xmodel.evaluate.curve import choose_sets, everyday_questions
    from xmodel.evaluate.diff import read_measured
    from xmodel.evaluate.questions import load_questions
    from xmodel.files import write_json

    folder = Path(run)
    paths = sorted((folder / "corpus" / "train").glob("*.parquet"))
    if not paths:
        raise UserError(f"{run}: no training text (corpus/train/*.parquet); name a run whose corpus stage is done")
    wanted = [name.strip() for name in sets.split(",") if name.strip()] if sets else []
    given = [one for path in questions for one in load_questions(Path(path))]
    own = load_questions(folder / "corpus" / "questions") if any(folder.glob("corpus/questions/*.jsonl")) else []
    chosen = choose_sets({one.name: one for one in [*everyday_questions(), *own, *given]}.values(), wanted)
    asked = [Asked(*item) for item in giveaways(chosen)]
    for benchmark in load_benchmarks(list(benchmarks), "--benchmarks"):
        asked += [Asked(benchmark.name, str(number), texts) for number, texts in enumerate(benchmark.items)]
    started = time.monotonic()
    with progress("evaluate contamination", None, "bytes") as shown:
        found = scan(paths, asked, shown.advance)
    found["seconds"] = round(time.monotonic() - started, 3)
    if results or any(folder.glob("eval/*.json")):
        found["scores"] = with_scores(found, read_measured(Path(results or folder / "eval")))
    if out:
        write_json(Path(out), found)
    if as_json:
        click.echo(json.dumps({key: value for key, value in found.items() if key != "items"}, ensure_ascii=False))
        return
    click.echo(contamination_table(found) + (f"\nkept: {out}" if out else ""))


@click.command("diff")
@click.argument("a", metavar="A", type=click.Path(exists=True, path_type=Path))
@click.argument("b", metavar="B", type=click.Path(exists=True, path_type=Path))
@click.option("--markdown", "markdown_file", metavar="FILE", help="Write the table as Markdown.")
@click.option("--html", "html_file", metavar="FILE", help="Write the table as a web page.")
@JSON
def diff(a: Path, b: Path, markdown_file: str | None, html_file: str | None, as_json: bool) -> None:
    """What changed from results A to results B, item by item, and whether it is more than chance.

    A and B are results files, folders of them, or runs (their eval/). Items, shots and limits have to be the same.

    \b
    Examples:
      xmodel evaluate diff runs/a runs/b
      xmodel evaluate diff evaluations/qwen runs/a/evaluations/step-1400 --html diff.html
    """
    from xmodel.evaluate.diff import diff as compare
    from xmodel.evaluate.diff import diff_table, read_measured
    from xmodel.evaluate.results import as_html, as_markdown, as_text
    from xmodel.files import atomic_write

    found = compare(read_measured(a), read_measured(b))
    page = [diff_table(found, str(a), str(b))]
    for path, written in ((markdown_file, as_markdown), (html_file, as_html)):
        if path:
            with atomic_write(Path(path), "w") as stream:
                stream.write(written(page, f"{a} and {b}"))
    click.echo(json.dumps(found, ensure_ascii=False) if as_json else as_text(page))


def add_to(group: click.Group) -> None:
    """Make the experiments subcommands of `xmodel evaluate`."""
    for command in (perplexity, translate, curve, contamination, diff):
        group.add_command(command)
