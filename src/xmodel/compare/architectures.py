"""The architectures that are compared by name: their published configurations, as facts. No torch.

Source of each: the config.json of the named repository on the Hugging Face hub. The parameter counts are those of the
published checkpoints, a tied head counted once; a test builds every shape and counts.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Architecture(NamedTuple):
    """A published model.

    Attributes:
        source: the repository whose config.json this is.
        parameters: of the published checkpoint.
        config: what makes the shape, as transformers spells it; `model_type` names the class.
    """

    source: str
    parameters: int
    config: dict[str, Any]


OURS = "xmodel-lm"
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _llama(
    layers: int, hidden: int, ffn: int, heads: int, kv_heads: int, vocab: int, positions: int, tied: bool, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": positions,
        "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-5,
    } | more


def _rope(base: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": base}}


ARCHITECTURES = {
    OURS: Architecture(
        "XiaoduoAILab/Xmodel_LM",
        1_188_136_960,
        _llama(24, 2048, 5632, 32, 4, 32_000, 32_768, False, **_rope(10_000.0)),
    ),
    "tinyllama-1.1b": Architecture(
        "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
        1_100_048_384,
        _llama(22, 2048, 5632, 32, 4, 32_000, 2048, False, **_rope(10_000.0)),
    ),
    "qwen2.5-1.5b": Architecture(
        "Qwen/Qwen2.5-1.5B",
        1_543_714_304,
        _llama(28, 1536, 8960, 12, 2, 151_936, 131_072, True, **_rope(1e6), model_type="qwen2", rms_norm_eps=1e-6),
    ),
    "llama-3.2-1b": Architecture(
        "meta-llama/Llama-3.2-1B",
        1_235_814_400,
        _llama(16, 2048, 8192, 32, 8, 128_256, 131_072, True, head_dim=64, rope_parameters=LLAMA3_ROPE),
    ),
    "smollm2-1.7b": Architecture(
        "HuggingFaceTB/SmolLM2-1.7B",
        1_711_376_384,
        _llama(24, 2048, 8192, 32, 32, 49_152, 8192, True, **_rope(130_000.0)),
    ),
    "pythia-1.4b": Architecture(
        "EleutherAI/pythia-1.4b",
        1_414_647_808,
        {
            "model_type": "gpt_neox",
            "num_hidden_layers": 24,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_attention_heads": 16,
            "vocab_size": 50_304,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
            "layer_norm_eps": 1e-5,
            "use_parallel_residual": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25},
        },
    ),
    "opt-1.3b": Architecture(
        "facebook/opt-1.3b",
        1_315_758_080,
        {
            "model_type": "opt",
            "num_hidden_layers": 24,
            "hidden_size": 2048,
            "ffn_dim": 8192,
            "num_attention_heads": 32,
            "vocab_size": 50_272,
            "max_position_embeddings": 2048,
            "word_embed_proj_dim": 2048,
            "do_layer_norm_before": True,
            "activation_function": "relu",
            "tie_word_embeddings": True,
        },
    ),
}


def kv_values_per_token(config: dict[str, Any]) -> int:
    """Numbers that a key/value cache holds for each token of a sequence, over all layers."""
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    return 2 * config["num_hidden_layers"] * kv_heads * head_size
