"""Going on from another run's checkpoint (one stable phase, and from it decays of several lengths), or from weights.

A run that was made with other settings is never gone on with in its own directory. A recipe with `branch_from` starts
a run of its own from a checkpoint of another, if both have made the same steps up to there. One with `init_from` takes
only the weights, of any model folder of its shape, and makes its own steps from the first.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from xmodel.errors import UserError
from xmodel.files import read_json
from xmodel.model.checkpoint_io import CONFIG, INDEX, WEIGHTS
from xmodel.model.config import from_hf
from xmodel.pretrain.checkpoint_files import MANIFEST, STATE, damage
from xmodel.pretrain.schedule import learning_rate
from xmodel.recipe.batches import batch_size, samples_through
from xmodel.recipe.dump import recipe_diff
from xmodel.recipe.load import load_recipe
from xmodel.recipe.phases import mixture
from xmodel.recipe.settings import Pretrain, Recipe

FREE = ("steps", "schedule", "decay_steps", "decay_shape", "final_lr", "warmup_steps", "peak_lr")  # judged by the rates
FREE_PHASES = ("phases",)  # judged by the mixture of every sample
FREE_BATCHES = ("global_batch", "batch_warmup", "batch_warmup_steps")  # judged by the batch of every step


def branch_point(recipe: Recipe, tokens_folder: Path) -> Path | None:
    """The checkpoint that `pretrain.branch_from` names, or None if it names none.

    Raises:
        UserError: there is none, it is damaged, or its run did not make the same steps up to it.
    """
    if not recipe.pretrain.branch_from:
        return None
    path = Path(recipe.pretrain.branch_from)
    if not path.name.startswith("step-") or not path.is_dir():
        raise UserError(f"pretrain.branch_from: {path} is not a checkpoint; name a folder checkpoints/.../step-NUMBER")
    if fault := damage(path):
        raise UserError(f"pretrain.branch_from: {path} is damaged ({fault})")
    run = next((parent for parent in path.parents if (parent / "recipe.yaml").is_file()), None)
    if run is None:
        raise UserError(f"pretrain.branch_from: {path} is not in a run directory (no recipe.yaml above it)")
    step = int(path.name.rpartition("-")[2])
    if differences := _differences(load_recipe(run / "recipe.yaml"), recipe, step):
        raise UserError(
            f"pretrain.branch_from: the run of {path} made other steps up to {step:,} ({'; '.join(differences)})"
        )
    if read_json(run / "tokens" / "manifest.json") != read_json(tokens_folder / "manifest.json"):
        raise UserError(f"pretrain.branch_from: the run of {path} was trained on other tokens than these")
    return path


SHAPE = ("layers", "heads", "kv_heads", "hidden", "ffn", "vocab_size")
SHAPE += ("rope_base", "norm_eps", "tied_embeddings", "qk_norm")  # what the weights were made for


def initial_weights(recipe: Recipe, tokenizer: str | None) -> Path | None:
    """The model folder that `pretrain.init_from` names, or None if it names none.

    Args:
        tokenizer: fingerprint of the tokens' tokenizer, None when it is not known.

    Raises:
        UserError: there is none, it is damaged, or it is of another shape or tokenizer.
    """
    if not recipe.pretrain.init_from:
        return None
    path = Path(recipe.pretrain.init_from)
    if not (path / CONFIG).is_file() or not ((path / WEIGHTS).is_file() or (path / INDEX).is_file()):
        raise UserError(
            f"pretrain.init_from: {path} is not a model folder ({CONFIG} and {WEIGHTS}); name a checkpoint "
            "checkpoints/step-NUMBER of a run; `xmodel import` makes a run of a model of others"
        )
    if (path / MANIFEST).is_file() and (fault := damage(path)):
        raise UserError(f"pretrain.init_from: {path} is damaged ({fault})")
    theirs, ours = from_hf(read_json(path / CONFIG)), recipe.model
    pairs = [(name, getattr(theirs, name), getattr(ours, name)) for name in SHAPE]
    if changed := ", ".join(f"{name} {old} -> {new}" for name, old, new in pairs if old != new):
        raise UserError(
            f"pretrain.init_from: {path} is of another shape ({changed}); `extends: RUN/recipe.yaml` has its shape"
        )
    known = read_json(path / STATE).get("tokenizer") if (path / STATE).is_file() else None
    if tokenizer and known and known != tokenizer:
        raise UserError(
            f"pretrain.init_from: {path} knows the ids of another tokenizer than these tokens'; set tokenizer.path to "
            "its own, and tokenizer.vocab_size to its size"
        )
    return path


def _differences(old: Recipe, new: Recipe, step: int) -> list[str]:
    """What makes steps 1 to `step` of two recipes differ."""
    if step >= new.pretrain.steps:
        return [f"pretrain.steps: {new.pretrain.steps}, of which nothing is left"]
    found = recipe_diff(old.model, new.model, identity_only=True, path="model")
    found += recipe_diff(old.seed, new.seed, path="seed")
    if _mixture_through(old, step) != _mixture_through(new, step):
        found.append("corpus.sources or pretrain.phases: other weights")
    found += recipe_diff(_fixed(old.pretrain), _fixed(new.pretrain), identity_only=True, path="pretrain")
    steps = range(1, step + 1)
    for name, of_step in (("learning rate", learning_rate), ("batch", batch_size)):
        first = next((n for n in steps if of_step(n, old.pretrain) != of_step(n, new.pretrain)), None)
        if first is not None:
            pair = f"{of_step(first, old.pretrain):g} -> {of_step(first, new.pretrain):g}"
            found.append(f"{name} of step {first:,}: {pair}")
    return found


def _mixture_through(recipe: Recipe, step: int) -> list[tuple[int, dict[str, float]]]:
    """The stretches of the mixture that begin by then."""
    end = samples_through(step, recipe.pretrain)
    return [
        (start, {name: weight for name, weight in weights.items() if weight})
        for start, weights in mixture(recipe)
        if start < end
    ]


def _fixed(train: Pretrain) -> Pretrain:
    """The settings without those that are compared step by step."""
    default = Pretrain()
    return replace(
        train,
        branch_from="",
        init_from="",
        **{name: getattr(default, name) for name in FREE + FREE_PHASES + FREE_BATCHES},
    )
