"""Counts of the published model, and config.json both ways."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, Qwen3Config

from xmodel.errors import UserError
from xmodel.model.config import from_hf, to_hf
from xmodel.model.counts import flops_per_token, parameters
from xmodel.model.transformer import Transformer
from xmodel.recipe import presets
from xmodel.recipe.settings import Model

REFERENCE = Model(
    layers=24, heads=32, kv_heads=4, hidden=2048, ffn=5632, vocab_size=32000, context_length=4096, position_table=32768
)


def test_reference_has_the_published_number_of_parameters() -> None:
    assert parameters(REFERENCE) == {
        "total": 1_188_136_960,
        "embedding": 131_072_000,
        "non_embedding": 1_057_064_960,
        "matmul": 1_122_500_608,
    }
    with torch.device("meta"):
        assert sum(p.numel() for p in Transformer(REFERENCE).parameters()) == 1_188_136_960


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_counts_equal_the_model(tied: bool, qk_norm: bool) -> None:
    shape = Model(layers=3, heads=6, kv_heads=2, hidden=48, ffn=100, vocab_size=77, context_length=8)
    shape = replace(shape, tied_embeddings=tied, qk_norm=qk_norm)
    assert presets.parameters(shape) == parameters(shape)["total"]
    counts, model = parameters(shape), Transformer(shape)
    assert counts["total"] == sum(p.numel() for p in model.parameters())
    assert counts["total"] == counts["embedding"] + counts["non_embedding"]
    matrices = sum(p.numel() for p in model.model.layers.parameters() if p.dim() == 2)
    assert counts["matmul"] == matrices + model.head_weight.numel()


def test_flops_of_the_reference() -> None:
    n = 1_122_500_608
    assert flops_per_token(REFERENCE, 4096) == (
        6 * n + 12 * 24 * 2048 * 4096,
        6 * n + 6 * 24 * 2048 * 4096,
    )


def test_qk_norm_is_a_qwen3() -> None:
    shape = replace(REFERENCE, qk_norm=True)
    theirs = Qwen3Config(**to_hf(shape))
    assert to_hf(shape)["architectures"] == ["Qwen3ForCausalLM"]
    assert theirs.head_dim == 64
    assert from_hf(to_hf(shape)) == shape
    assert replace(from_hf(theirs.to_dict()), context_length=4096) == shape
    without = {key: value for key, value in to_hf(shape).items() if key != "head_dim"}
    with pytest.raises(UserError, match="head_dim 128 with hidden_size 2048 and 32 heads"):
        from_hf(without)  # 128 is what Qwen3 has when nothing is said
    with pytest.raises(UserError, match="use_sliding_window true"):
        from_hf(to_hf(shape) | {"use_sliding_window": True})


def test_config_goes_to_hugging_face_and_back() -> None:
    shape = replace(REFERENCE, rope_base=5e5, tied_embeddings=True, norm_eps=1e-6)
    assert from_hf(to_hf(shape)) == shape
    theirs = LlamaConfig(**to_hf(shape, bos_id=7, eos_id=8))
    assert theirs.to_dict()["rope_parameters"]["rope_theta"] == 5e5
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.max_position_embeddings) == (7, 8, 32768)
    assert theirs.tie_word_embeddings
    assert theirs.head_dim == 64
    again = from_hf(theirs.to_dict())
    assert replace(again, context_length=shape.context_length) == shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"head_dim": 100}, "head_dim 100"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "llama3"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
    ],
)
def test_other_architectures_are_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_hf(to_hf(REFERENCE) | change)


def test_missing_field_is_named() -> None:
    config = to_hf(REFERENCE)
    del config["hidden_size"]
    with pytest.raises(UserError, match="'hidden_size' is missing"):
        from_hf(config)
