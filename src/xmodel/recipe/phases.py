"""The mixture over a run: the weights of `corpus.sources`, then those of each phase. Pure arithmetic."""

from __future__ import annotations

from xmodel.recipe.batches import samples_before, samples_through
from xmodel.recipe.settings import Recipe


def mixture(recipe: Recipe) -> list[tuple[int, dict[str, float]]]:
    """(first sample, weights) of each stretch of the run, in order; the first begins with sample 0."""
    train = recipe.pretrain
    stretches = [(0, {source.name: source.weight for source in recipe.corpus.sources})]
    return stretches + [(samples_before(phase.from_step, train), phase.weights) for phase in train.phases]


def shares(recipe: Recipe) -> dict[str, float]:
    """Share of each source among the samples of the whole run."""
    total = samples_through(recipe.pretrain.steps, recipe.pretrain)
    stretches = mixture(recipe)
    lasts = [first for first, _ in stretches[1:]] + [total]
    return {
        source.name: sum(
            weights.get(source.name, 0.0) * (last - first)
            for (first, weights), last in zip(stretches, lasts, strict=True)
        )
        / total
        for source in recipe.corpus.sources
    }
