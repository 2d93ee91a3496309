"""`xmodel export`: the trained model in the formats of other engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from xmodel.cli.common import FOLDER, JSON, OVERRIDES, REDO, TARGET, Bytes, WithDefault, carry_out_stages, open_target
from xmodel.errors import UserError

SOURCE = click.argument("target", metavar="RUN|CHECKPOINT")
PUSH = click.option("--push", metavar="OWNER/NAME", help="Send it to this repository of the Hugging Face hub too.")
PUBLIC = click.option("--public", is_flag=True, help="With --push: a repository that is made is public (else private).")


@click.group(cls=WithDefault)
def export() -> None:
    """Write the trained model in the formats of other engines.

    \b
    Examples:
      xmodel export runs/quickstart                 the run's export stage: runs/quickstart/export/hf
      xmodel export hf runs/quickstart --out mymodel
      xmodel export gguf runs/quickstart --out mymodel.gguf --type q8_0
    """


@export.command("run", hidden=True)
@TARGET
@OVERRIDES
@FOLDER
@REDO
@JSON
def export_run(target: str, overrides: tuple[str, ...], folder: str | None, redo: str | None, as_json: bool) -> None:
    """The export stage of a run."""
    rows = carry_out_stages(open_target(target, overrides, folder), ("export",), redo)
    if as_json:
        click.echo(json.dumps(rows[0], ensure_ascii=False))


@export.command("hf")
@SOURCE
@click.option("--out", metavar="DIR", required=True, help="Folder to write (must not exist).")
@click.option("--dtype", type=click.Choice(["bf16", "fp32"]), help="Number format (default: the recipe's).")
@click.option("--shard-size", type=Bytes(), help="Most bytes of weights in one file, as 5GB (default: the recipe's).")
@PUSH
@PUBLIC
def export_hf(target: str, out: str, dtype: str | None, shard_size: int | None, push: str | None, public: bool) -> None:
    """Write a model for Hugging Face transformers, vLLM and others: a run's newest checkpoint, or the one named.

    \b
    Examples:
      xmodel export hf runs/quickstart --out mymodel
      xmodel export hf runs/quickstart --out mymodel-fp32 --dtype fp32
      xmodel export hf runs/quickstart/checkpoints/step-000000700 --out half-way
      xmodel export hf runs/quickstart --out mymodel --push me/mymodel
    """
    folder = _new(out)
    _check_push(push, public)
    overrides = [f"export.dtype={dtype}"] if dtype else []
    overrides += [f"export.shard_size={shard_size}"] if shard_size else []
    run, checkpoint = _opened(target, tuple(overrides))
    from xmodel.export.hf import export_hf as write
    from xmodel.files import atomic_folder

    with atomic_folder(folder) as partial:
        write(run.folder, checkpoint, partial, run.recipe.export, push or "PATH")
    click.echo(out)
    if push:
        _push(push, {file.name: file for file in sorted(folder.iterdir())}, public, checkpoint)


@export.command("gguf")
@SOURCE
@click.option("--out", metavar="FILE", required=True, help="File to write (must not exist), NAME.gguf.")
@click.option(
    "--type",
    "kind",
    type=click.Choice(["f32", "f16", "bf16", "q8_0"]),
    default="f16",
    show_default=True,
    help="Number format of the matrices.",
)
@click.option(
    "--tokenizer",
    "unigram",
    type=click.Choice(["t5", "plamo2"]),
    default="t5",
    show_default=True,
    help="llama.cpp's tokenizer for a unigram vocabulary. t5: the same ids, but a character outside the vocabulary is "
    "<unk>. plamo2: such characters are spelt in bytes, but a text must itself begin with <s>.",
)
@PUSH
@PUBLIC
def export_gguf(target: str, out: str, kind: str, unigram: str, push: str | None, public: bool) -> None:
    """Write a model for llama.cpp, and NAME.Modelfile for Ollama beside it.

    \b
    Examples:
      xmodel export gguf runs/quickstart --out mymodel.gguf
      xmodel export gguf runs/quickstart --out mymodel-q8_0.gguf --type q8_0
      ollama create mymodel -f mymodel-q8_0.Modelfile
    """
    path = _new(out)
    if path.suffix != ".gguf":
        raise UserError(f"--out {out}: the name of a GGUF file ends in .gguf")
    beside = _new(str(path.with_suffix(".Modelfile")))
    _check_push(push, public)
    run, checkpoint = _opened(target, ())
    from xmodel.export.gguf import export_gguf as write

    write(run.folder, checkpoint, path, run.recipe.export, kind=kind, bos=run.recipe.tokens.bos, unigram=unigram)
    click.echo(out)
    if push:
        from xmodel.export.card import model_card

        card = model_card(run.folder, checkpoint, run.recipe.export, push).encode()
        _push(push, {"README.md": card, path.name: path, beside.name: beside}, public, checkpoint)


def _new(out: str) -> Path:
    path = Path(out)
    if path.exists():
        raise UserError(f"--out {out}: {path} exists already; name one that does not")
    return path


def _opened(target: str, overrides: tuple[str, ...]) -> tuple[Any, Path]:
    """The run that a target names or lies in, and the checkpoint: the one that is named, or else the newest."""
    path = Path(target)
    inside = path.resolve().parent.name == "checkpoints" and (path / "config.json").is_file()
    run = open_target(str(path.resolve().parents[1]) if inside else target, overrides, None)
    if inside:
        return run, path.resolve()
    from xmodel.stages import checkpoint_folder

    return run, checkpoint_folder(run)


def _check_push(push: str | None, public: bool) -> None:
    if public and not push:
        raise UserError("--public: says how --push makes a repository; add --push OWNER/NAME")
    if push:
        from xmodel.export.hub import check_push

        check_push(push)


def _push(repository: str, files: dict[str, Path | bytes], public: bool, checkpoint: Path) -> None:
    from xmodel.export.hub import push

    click.echo(push(repository, files, public=public, message=f"Xmodel-LM, {checkpoint.name}"))
