"""What a recipe amounts to, by arithmetic alone: for `xmodel recipe check`."""

from __future__ import annotations

from xmodel.recipe.batches import samples_through
from xmodel.recipe.phases import shares
from xmodel.recipe.presets import parameters
from xmodel.recipe.settings import Recipe

NAMES = {"en": "English", "zh": "Chinese", "auto": "by document"}


def check_summary(recipe: Recipe) -> list[tuple[str, str]]:
    """Rows (what, how much) for a resolved recipe: size, batch, tokens, compute, memory, and each source's epochs.

    A source's epochs are its share of the whole run (phases included) x total tokens / its published size; sources of
    unknown size show their share alone.
    Compute counts 6N + 12·L·d·S per token (PaLM, arXiv 2204.02311, appendix B; N: weights of the matrix products).
    """
    model, train = recipe.model, recipe.pretrain
    weights = parameters(model)
    table = model.vocab_size * model.hidden
    outside = weights - table * (1 if model.tied_embeddings else 2)
    per_step = train.global_batch * model.context_length
    total = samples_through(train.steps, train) * model.context_length
    matmul = weights - (0 if model.tied_embeddings else table)
    flops = total * (6 * matmul + 12 * model.layers * model.hidden * model.context_length)
    heads = f"{model.heads} heads ({model.kv_heads} key/value)"
    shape = f"{model.layers} layers, hidden {model.hidden:,}, {heads}, SwiGLU {model.ffn:,}"
    each = f"{total / weights:,.1f}" if total >= weights else f"{total / weights:.2g}"
    rows = [
        ("model", shape + (f": the preset {model.preset}" if model.preset else "")),
        ("parameters", f"{weights:,} ({outside:,} outside the embeddings)"),
        ("vocabulary, context", f"{model.vocab_size:,} pieces, {model.context_length:,} tokens"),
        ("tokens a step", f"{per_step:,} ({train.global_batch:,} x {model.context_length:,})"),
        ("tokens in all", f"{short(total)} in {train.steps:,} steps; {each} per parameter"),
        ("compute", f"{flops:.2e} FLOP"),
        ("training state", f"{16 * weights / 1e9:,.2f} GB: float32 weights, gradients and AdamW moments"),
    ]
    by_language: dict[str, float] = {}
    whole = shares(recipe)
    for source in recipe.corpus.sources:
        share = whole[source.name]
        by_language[source.language] = by_language.get(source.language, 0.0) + share
        seen = f"{share:7.2%} of the samples = {short(share * total)} tokens"
        epochs = f", {share * total / source.tokens:.2f} epochs of {short(source.tokens)}" if source.tokens else ""
        rows.append((f"source {source.name}", seen + epochs))
    shown = ", ".join(f"{NAMES[name]} {share:.1%}" for name, share in by_language.items())
    rows.append(("languages", shown or "none: an imported model, which has no corpus"))
    return rows


def short(count: float) -> str:
    """A count as people write it: 2.064T, 5.12M, 840."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.4g}{suffix}"
    return f"{count:.4g}"
