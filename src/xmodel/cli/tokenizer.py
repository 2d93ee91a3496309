"""`xmodel tokenizer ...`: the tokenizer stage, tokenizers side by side, and a text as its pieces."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from xmodel.cli.common import (
    FOLDER,
    JSON,
    OVERRIDES,
    REDO,
    TARGET,
    ManyTexts,
    WithDefault,
    carry_out_stages,
    open_target,
)
from xmodel.errors import UserError


class Tokenizers(WithDefault):
    """`xmodel tokenizer RUN` trains."""

    default = "train"


@click.group(cls=Tokenizers)
def tokenizer() -> None:
    """Train the tokenizer, compare tokenizers on your text, look at what one makes of a text.

    A TOKENIZER is a run, a folder with tokenizer.model or tokenizer.json, such a file (also other people's), or a name
    on the Hugging Face hub.

    \b
    Examples:
      xmodel tokenizer runs/quickstart                        the tokenizer stage of a run
      xmodel tokenizer compare runs/quickstart Qwen/Qwen3-0.6B --text news/*.jsonl
      xmodel tokenizer show runs/quickstart "The capital of France is 巴黎。"
    """


@tokenizer.command("train")
@TARGET
@OVERRIDES
@FOLDER
@REDO
@JSON
def tokenizer_train(
    target: str, overrides: tuple[str, ...], folder: str | None, redo: str | None, as_json: bool
) -> None:
    """Train the SentencePiece tokenizer on the corpus and write the equal tokenizer.json (`train` may be left out).

    \b
    Examples:
      xmodel tokenizer runs/quickstart
      xmodel tokenizer train mine.yaml tokenizer.vocab_size=16k
    """
    rows = carry_out_stages(open_target(target, overrides, folder), ("tokenizer",), redo)
    if as_json:
        click.echo(json.dumps(rows[0], ensure_ascii=False))


@tokenizer.command("compare", cls=ManyTexts)
@click.argument("names", nargs=-1, required=True, metavar="TOKENIZER...")
@click.option(
    "--text",
    "paths",
    multiple=True,
    required=True,
    metavar="FILES...",
    help="Text to compare on: files, folders, quoted patterns (JSON lines, Parquet, plain text).",
)
@click.option("--text-field", default="text", show_default=True, help="Field of the text in JSON lines and Parquet.")
@click.option("--published", is_flag=True, help="Print the paper's compression table too (it is of other text).")
@click.option("--rounds", type=click.IntRange(min=0), default=5, show_default=True, help="Rounds of timing; 0: none.")
@click.option("--plot", metavar="FILE", help="Draw the comparison: .svg, .png or .pdf.")
@JSON
def tokenizer_compare(
    names: tuple[str, ...],
    paths: tuple[str, ...],
    text_field: str,
    published: bool,
    rounds: int,
    plot: str | None,
    as_json: bool,
) -> None:
    """Compare tokenizers on the same text: compression, words, bytes, losslessness, use of the vocabulary, speed.

    Figures stand by language and category. Records may state them (fields `language`, `category`); otherwise the share
    of Han characters decides on the language, and the file or folder that is named is the category. Records that cannot
    be read are left out and counted.

    \b
    Examples:
      xmodel tokenizer compare runs/a runs/b --text runs/a/corpus/validation
      xmodel tokenizer compare runs/a other.model Qwen/Qwen3-0.6B --text news.jsonl.gz books/ --plot compared.svg
      xmodel tokenizer compare runs/a --text notes.md --published --json
    """
    from xmodel.files import check_drawing
    from xmodel.tokenizer.compare import compare
    from xmodel.tokenizer.compare_output import draw, published_table, tables
    from xmodel.tokenizer.others import open_tokenizer

    if plot:
        check_drawing(Path(plot))
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{repeated[0]}: named twice; name each tokenizer once")
    files = {path: _files(path) for path in paths}
    left_out: Counter[str] = Counter()
    opened = {name: open_tokenizer(name) for name in names}
    found = compare(opened, _documents(files, text_field, left_out), rounds)
    missing = ", ".join(f"{count:,} of them {reason}" for reason, count in left_out.items())
    if not found["text"][0]["documents"]:
        why = f" that can be read ({missing}; --text-field names the text's field)" if missing else ""
        raise UserError(f"--text {' '.join(paths)}: holds no document{why}")
    found["records_left_out"] = dict(left_out)
    if plot:
        draw(found, Path(plot))
    if as_json:
        click.echo(json.dumps(found | ({"published": published_table()} if published else {}), ensure_ascii=False))
        return
    parts = [tables(found, published)]
    if missing:
        parts.append(f"records left out: {missing}")
    if plot:
        parts.append(f"plot: {plot}")
    click.echo("\n\n".join(parts))


def _files(path: str) -> list[Path]:
    """The files that an argument of --text means."""
    import glob

    from xmodel.corpus.sources.files import SUFFIXES, in_folder

    if Path(path).is_dir():
        known = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
        if found := in_folder(Path(path), known):
            return found
        raise UserError(f"--text {path}: the folder holds no JSON lines, Parquet or text file; name the files")
    found = [Path(path)] if Path(path).is_file() else sorted(map(Path, glob.glob(path, recursive=True)))  # noqa: PTH207
    if not found:
        raise UserError(f"--text {path}: no such file or folder; give JSON lines, Parquet or plain text")
    return found


def _documents(files: dict[str, list[Path]], text_field: str, left_out: Counter[str]) -> Iterator[list[Any]]:
    """Lists of `Document`s from the files of each --text; records that cannot be read are counted by reason."""
    from xmodel.console import progress
    from xmodel.tokenizer.compare import Document, language_of

    total = sum(path.stat().st_size for found in files.values() for path in found)
    with progress("comparing", total, "bytes") as shown:
        for argument, found in files.items():
            named = Path(argument).name.split(".")[0] or argument
            for rows in (rows for path in found for rows in _rows(path, text_field, shown.advance)):
                documents = []
                for row in rows:
                    if row["reason"] not in (None, "nul_bytes"):  # NUL is a character like any other here
                        left_out[row["reason"]] += 1
                        continue
                    language, category = row["language"] or language_of(row["text"]), row["category"] or named
                    documents.append(Document(row["id"], row["text"], language, category))
                yield documents


def _rows(path: Path, text_field: str, advance: Callable[[int], None]) -> Iterator[list[dict[str, Any]]]:
    """The records of a file by batches: id, text, language and category (None: not stated), reason (None: usable)."""
    from xmodel.corpus.sources import read_shard, shards
    from xmodel.corpus.sources.columnar import parquet_file
    from xmodel.corpus.sources.files import SUFFIXES
    from xmodel.recipe.settings import Fields, Source

    reader = next((reader for reader, suffixes in SUFFIXES.items() if path.name.endswith(suffixes)), "text")
    has = parquet_file(path).schema_arrow.names if reader == "parquet" else ["language", "category"]
    source = Source(
        name=path.name,
        reader=reader,  # pyright: ignore[reportArgumentType] - the keys of SUFFIXES are readers
        paths=[str(path.absolute())],
        text_field=text_field,
        fields=Fields(id="", **{name: name for name in ("language", "category") if name in has}),
        bad_rows="drop",
        category="",
    )
    columns = ["id", "text", "language", "category", "reason"]
    try:
        for shard in shards(source, "--text"):
            for batch in read_shard(shard, source, "--text", seed=0):
                yield batch.select(columns).to_pylist()
            advance(shard.size)
    except UserError as error:  # its advice names the key of a recipe
        raise UserError(str(error).replace("--text.text_field", "--text-field")) from None


@tokenizer.command("show")
@click.argument("name", metavar="TOKENIZER")
@click.argument("text", required=False)
@click.option("--file", "path", type=click.Path(exists=True, dir_okay=False), help="Read the text from a file.")
@JSON
def tokenizer_show(name: str, text: str | None, path: str | None, as_json: bool) -> None:
    """Show a text as its pieces, with their ids and bytes. TEXT `-` is standard input.

    On a terminal the pieces are coloured (NO_COLOR turns that off), elsewhere set apart by `│`. What is no ordinary
    piece stands in brackets: bytes of a character that has no piece, unknown characters, control tokens.

    \b
    Examples:
      xmodel tokenizer show runs/quickstart "The capital of France is 巴黎。"
      xmodel tokenizer show runs/quickstart --file src/main.py
      git diff | xmodel tokenizer show Qwen/Qwen3-0.6B - --json
    """
    from xmodel.tokenizer.others import open_tokenizer
    from xmodel.tokenizer.show import show, shown

    if (text is None) == (path is None):
        raise UserError("give a text or --file, one of them; the text `-` reads standard input")
    if path is not None or text == "-":
        data = Path(path).read_bytes() if path is not None else sys.stdin.buffer.read()
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            place = path or "standard input"
            raise UserError(f"{place}: invalid UTF-8 at byte {error.start}; re-save as UTF-8") from None
    found = show(open_tokenizer(name), text or "")
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    click.echo(json.dumps(found, ensure_ascii=False) if as_json else shown(found, colour))
