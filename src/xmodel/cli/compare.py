"""`xmodel compare`: our model beside others of its size, on this machine."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from xmodel.cli.common import JSON
from xmodel.errors import UserError

DEFAULTS = {  # by device: batches, contexts, new tokens, rounds
    "cpu": ((1,), (128,), 16, 2),
    "cuda": ((1, 16, 64), (512, 1536), 64, 1),
}


@click.command()
@click.argument("names", nargs=-1, metavar="[MODEL]...")
@click.option("--batch", "batches", type=click.IntRange(min=1), multiple=True, help="Sequences at once; repeatable.")
@click.option("--context", "contexts", type=click.IntRange(min=1), multiple=True, help="Prompt tokens; repeatable.")
@click.option("--new-tokens", type=click.IntRange(min=2), help="Tokens to generate for each sequence.")
@click.option("--rounds", type=click.IntRange(min=1), help="Times that every cell is measured; figures are medians.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--dtype", type=click.Choice(["bf16", "fp32"]), default="bf16", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of a CPU (default: as torch chooses).")
@click.option("--compile", "compiled", is_flag=True, help="CUDA: transformers with a static cache, compiled.")
@click.option("--train", metavar="BATCHxLENGTH", help="Measure a training step too, as in 4x2048.")
@click.option("--layers", type=click.IntRange(min=1), help="Cut every model to so many layers: a quick look only.")
@click.option(
    "--time-limit", type=click.FloatRange(min=1), default=3600, show_default=True, help="Seconds for everything."
)
@click.option("--out", metavar="FILE", help="Write everything measured as JSON.")
@click.option("--plot", metavar="FILE", help="Draw it: .png, .svg or .pdf.")
@JSON
def compare(
    names: tuple[str, ...],
    batches: tuple[int, ...],
    contexts: tuple[int, ...],
    new_tokens: int | None,
    rounds: int | None,
    device: str,
    dtype: str,
    threads: int | None,
    compiled: bool,
    train: str | None,
    layers: int | None,
    time_limit: float,
    out: str | None,
    plot: str | None,
    as_json: bool,
) -> None:
    """Measure models of similar size side by side: memory, prefill and decode speed, time to first token.

    A MODEL is an architecture by name (its published shape with random weights: xmodel-lm, tinyllama-1.1b,
    qwen2.5-1.5b, llama-3.2-1b, smollm2-1.7b, pythia-1.4b, opt-1.3b), a run, or a folder of Hugging Face; without any,
    all by name. Ours run in our engine and in transformers, the others in transformers.

    \b
    Examples:
      xmodel compare                                                  all architectures, on a GPU if there is one
      xmodel compare runs/mine pythia-1.4b qwen2.5-1.5b --batch 1 --batch 8 --plot compare.png
      xmodel compare --layers 2 --context 32 --new-tokens 4           does it run at all?
      xmodel compare --train 4x2048 --time-limit 460 --out compare-cuda.json
    """
    from xmodel.compare.architectures import ARCHITECTURES
    from xmodel.compare.compare import Settings
    from xmodel.compare.compare import compare as measured
    from xmodel.compare.output import draw, tables
    from xmodel.files import check_drawing, write_json
    from xmodel.run import hardware, versions

    if plot:
        check_drawing(Path(plot))
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{repeated[0]}: named twice; name each model once")
    if find_spec("transformers") is None:
        raise UserError("compare needs transformers: pip install 'xmodel[hf]'")
    step = _step(train)
    subjects = [subject for name in names or ARCHITECTURES for subject in _subjects(name)]
    where = _device(device)
    if compiled and where == "cpu":
        raise UserError("--compile: transformers compiles its decoding on CUDA only; leave it out on a CPU")
    usual = DEFAULTS[where]
    settings = Settings(
        device=where,
        dtype=dtype,
        cells=tuple((batch, context) for batch in batches or usual[0] for context in contexts or usual[1]),
        new_tokens=new_tokens or usual[2],
        train=step,
        rounds=rounds or usual[3],
        layers=layers or 0,
        threads=threads or 0,
        compiled=compiled,
        seconds=time_limit,
    )
    found = measured(subjects, settings)
    found |= {"versions": versions() | _version("transformers"), "hardware": hardware()}
    if out:
        write_json(Path(out), found)
    if plot:
        draw(found, Path(plot))
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    click.echo(
        "\n\n".join([tables(found), *[f"{what}: {path}" for what, path in (("json", out), ("plot", plot)) if path]])
    )


def _version(name: str) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name)}


def _device(asked: str) -> str:
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is there; leave it out, or say cpu")
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


def _step(train: str | None) -> tuple[int, int] | None:
    if train is None:
        return None
    found = re.fullmatch(r"(\d+)x(\d+)", train)
    if found is None or int(found[1]) < 1 or int(found[2]) < 2:
        raise UserError(f"--train {train}: expected BATCHxLENGTH, as in 4x2048")
    return int(found[1]), int(found[2])


def _subjects(name: str) -> list[dict[str, Any]]:
    """What a name on the command line means: an architecture, a run or a folder, in the engines that run it."""
    from xmodel.compare.architectures import ARCHITECTURES, OURS
    from xmodel.compare.engines import ENGINES

    if name in ARCHITECTURES:
        engines = ENGINES if name == OURS else ("transformers",)
        return [{"name": name, "engine": engine, "architecture": name} for engine in engines]
    path = Path(name)
    if not path.is_dir():
        near = difflib.get_close_matches(name.lower(), ARCHITECTURES, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"the architectures are {', '.join(ARCHITECTURES)}"
        raise UserError(f"{name}: no architecture of the table, and no folder; {hint}")
    ours = (path / "recipe.yaml").is_file()
    if ours:
        from xmodel.run import open_run
        from xmodel.stages import checkpoint_folder

        path = checkpoint_folder(open_run(name))
    elif not (path / "config.json").is_file():
        raise UserError(f"{name}: neither a run (recipe.yaml) nor a model folder (config.json)")
    engines = ENGINES if ours or _is_ours(path) else ("transformers",)
    label = Path(name).resolve().name
    return [{"name": label, "engine": engine, "folder": str(path.resolve())} for engine in engines]


def _is_ours(folder: Path) -> bool:
    """Whether our engine runs a model folder: a Llama or Qwen3 in safetensors, without what it does not do."""
    from xmodel.files import read_json
    from xmodel.model.config import from_hf

    config = read_json(folder / "config.json")
    try:
        from_hf(config)
    except UserError:
        return False
    whole = any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))
    return whole and config.get("model_type") in ("llama", "qwen3")
