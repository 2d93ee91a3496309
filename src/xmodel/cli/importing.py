"""`xmodel import`: models of others as runs."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import click

from xmodel.cli.common import JSON, Commands
from xmodel.errors import UserError

CHECKED_DOCUMENTS = 300  # of each language of the sandbox, on which a converted tokenizer is compared
FOLDER = click.argument("folder", metavar="DIR")
OUT = click.option("--out", metavar="RUN", required=True, help="Run directory to write (must not exist).")
TOKENIZER = click.option("--tokenizer", metavar="PATH", help="Where the tokenizer is, if not in DIR.")
CONTEXT = click.option(
    "--context-length", type=click.IntRange(min=8), help="Tokens of its context, in place of what DIR says."
)


@click.group("import", cls=Commands)
def import_() -> None:
    """Make a run of a model that others trained: to evaluate, to generate from, to export, to train further.

    \b
    Examples:
      xmodel import official XmodelLM/models --out runs/published
      xmodel import hf TinyLlama_v1.1 --out runs/tinyllama
      xmodel generate runs/published "The capital of France is"
    """


@import_.command("official")
@FOLDER
@OUT
@TOKENIZER
@CONTEXT
@JSON
def import_official(folder: str, out: str, tokenizer: str | None, context_length: int | None, as_json: bool) -> None:
    """Import the published Xmodel-LM format: pytorch_model.bin, xmodel_32000.model, a config.json of type xmodel.

    The pickle is read without running any code in it. The context is the 4,096 tokens that the model was trained with.

    \b
    Examples:
      xmodel import official XmodelLM/models --out runs/published
      xmodel import official weights/ --tokenizer xmodel_32000.model --out runs/published
    """
    import_run(Path(folder), "official", Path(out), tokenizer, context_length, as_json)


@import_.command("hf")
@FOLDER
@OUT
@TOKENIZER
@CONTEXT
@JSON
def import_hf(folder: str, out: str, tokenizer: str | None, context_length: int | None, as_json: bool) -> None:
    """Import a Llama of Hugging Face: safetensors or .bin, in shards or not; tokenizer.json or a SentencePiece .model.

    \b
    Examples:
      xmodel import hf TinyLlama_v1.1 --out runs/tinyllama
      xmodel import hf mymodel --context-length 2048 --out runs/mine --json
    """
    import_run(Path(folder), "hf", Path(out), tokenizer, context_length, as_json)


def import_run(
    folder: Path, kind: Any, out: Path, tokenizer: str | None, context: int | None, as_json: bool = False
) -> None:
    """Write the run whole, or not at all; see `import_official` and `import_hf`."""
    from xmodel.console import log
    from xmodel.files import atomic_folder, write_json
    from xmodel.importing.source import read_source, recipe_text
    from xmodel.importing.weights import copy_weights, find_weights
    from xmodel.model.counts import parameters
    from xmodel.pretrain.checkpoint_files import seal
    from xmodel.recipe.checks import RUN_NAME
    from xmodel.recipe.load import load_recipe
    from xmodel.recipe.settings import Tokenizer as Settings
    from xmodel.run import code_revision, hardware, versions
    from xmodel.tokenizer.adopt import adopt
    from xmodel.tokenizer.codec import Tokenizer, pieces_fingerprint

    if out.exists():
        raise UserError(f"--out {out}: exists already; name a run directory that does not")
    if not RUN_NAME.fullmatch(out.name):
        raise UserError(f"--out {out}: `{out.name}` cannot name a run; use letters, digits, `.`, `-` and `_`")
    started = time.monotonic()
    source = read_source(folder, kind, tokenizer, context)
    files, tensors = find_weights(folder)
    size = sum((folder / file).stat().st_size for file in files)
    log(f"import: {parameters(source.shape)['total']:,} parameters from {', '.join(files)} ({size / 1e9:.2f} GB)")
    checkpoint = Path("checkpoints") / "step-000000000"
    with atomic_folder(out) as partial:
        settings = Settings(path=source.where, vocab_size=source.tokenizer.vocab_size)
        figures = adopt(sample_texts(), settings, partial / "tokenizer", add_bos=source.bos)
        (partial / checkpoint).mkdir(parents=True)
        facts = copy_weights(source.shape, tensors, folder, partial / checkpoint)
        seal(partial / checkpoint, 0, pieces_fingerprint(Tokenizer.load(partial / "tokenizer")))
        origin = str(folder.resolve())
        (partial / "recipe.yaml").write_text(recipe_text(out.name, source, origin, str(checkpoint)), encoding="utf-8")
        load_recipe(partial / "recipe.yaml")
        now, command = time.strftime("%Y-%m-%dT%H:%M:%S%z"), shlex.join(["xmodel", *sys.argv[1:]])
        facts |= {"from": origin, "format": kind, "files": files, "tokenizer": source.where}
        about = {"code_revision": code_revision(), "versions": versions(), "hardware": hardware(), "seed": 0}
        sessions = [{"started": now, "command": command}]
        write_json(
            partial / "run.json",
            {"created": now, "sessions": sessions, **about, "command": command, "imported": facts},
        )
    seconds = round(time.monotonic() - started, 1)
    found = {"run": str(out), **facts, "context_length": source.shape.context_length, "seconds": seconds}
    found |= {key: value for key, value in figures.items() if key.startswith("converted_")}
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
    else:
        log(f"import: {facts['dtype']} weights, a context of {source.shape.context_length:,} tokens, {seconds} s")
        click.echo(str(out))


def sample_texts() -> list[str]:
    """Text in both languages, on which the tokenizer is measured and a converted one compared."""
    from xmodel.corpus.sources import read
    from xmodel.recipe.settings import Source

    texts: list[str] = []
    for part in ("en", "zh"):
        source = Source(name=part, reader="sandbox", paths=[part], documents=CHECKED_DOCUMENTS)
        for batch in read(source, "sample", seed=0):
            texts += batch["text"].to_pylist()
    return [text for text in texts if text]
