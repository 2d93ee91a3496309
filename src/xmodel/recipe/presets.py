"""The published size presets by name, and the numbers of a model shape that follow from others.

Source: Xmodel-LM (arXiv 2406.02856), the published configuration code. xl is the published model: 1,188,136,960
parameters.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from xmodel.recipe.settings import Model


class Preset(NamedTuple):
    """The shape that a name stands for; the SwiGLU's width follows from the hidden size."""

    layers: int
    heads: int
    kv_heads: int
    hidden: int


PRESETS = {
    "nano": Preset(6, 6, 1, 192),
    "micro": Preset(6, 6, 1, 384),
    "tiny": Preset(8, 8, 2, 512),
    "small": Preset(12, 12, 3, 768),
    "medium": Preset(24, 16, 4, 1024),
    "large": Preset(24, 16, 4, 1536),
    "xl": Preset(24, 32, 4, 2048),
    "3b": Preset(32, 32, 4, 2560),
    "7b": Preset(32, 32, 32, 4096),
    "13b": Preset(40, 40, 40, 5120),
    "34b": Preset(48, 64, 8, 8192),
    "70b": Preset(80, 64, 8, 8192),
}


def swiglu_width(hidden: int) -> int:
    """8/3 of `hidden`, rounded up to a multiple of 256: as many weights as a plain block of width 4·hidden."""
    return -(-8 * hidden // (3 * 256)) * 256


def expand(model: Model, tokenizer_vocab_size: int) -> Model:
    """The shape with every number filled in: given numbers first, then the preset's, then what follows from those.

    Afterwards `preset` is the name of the preset that the shape is, whatever was written, or empty: a resolved recipe
    never carries the name of a shape that it does not have.
    """
    preset = PRESETS.get(model.preset)
    given = {name: getattr(model, name) or (getattr(preset, name) if preset else 0) for name in Preset._fields}
    ffn = model.ffn or swiglu_width(given["hidden"])
    same = [name for name, other in PRESETS.items() if other == Preset(**given) and ffn == swiglu_width(other.hidden)]
    return dataclasses.replace(
        model,
        **given,
        preset=same[0] if same else "",
        ffn=ffn,
        position_table=model.position_table or model.context_length,
        vocab_size=model.vocab_size or tokenizer_vocab_size,
    )


def parameters(model: Model) -> int:
    """Trainable weights of a resolved shape: embeddings, blocks without biases, norms (xl: 1,188,136,960)."""
    kv_width = model.hidden // model.heads * model.kv_heads
    attention = 2 * model.hidden * model.hidden + 2 * model.hidden * kv_width
    norms = 2 * model.hidden + (2 * (model.hidden // model.heads) if model.qk_norm else 0)
    block = attention + 3 * model.hidden * model.ffn + norms
    embeddings = model.vocab_size * model.hidden * (1 if model.tied_embeddings else 2)
    return embeddings + model.layers * block + model.hidden
