"""Our model settings to and from Hugging Face's `config.json` of LlamaForCausalLM, or Qwen3ForCausalLM with QK-norm.

Plain dictionaries, no torch.
"""

from __future__ import annotations

from typing import Any

from xmodel.errors import UserError
from xmodel.recipe.settings import Model


def to_hf(model: Model, *, bos_id: int = 1, eos_id: int = 2) -> dict[str, Any]:
    """The `config.json` that makes a checkpoint folder a LlamaForCausalLM; with `qk_norm`, a Qwen3ForCausalLM.

    Both spellings of the rotary base are written: `rope_parameters` is read by transformers 5, `rope_theta` by
    transformers 4 and by most inference engines. `context_length` is ours; engines pass over it.
    """
    return {
        "architectures": ["Qwen3ForCausalLM" if model.qk_norm else "LlamaForCausalLM"],
        "model_type": "qwen3" if model.qk_norm else "llama",
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden,
        "intermediate_size": model.ffn,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.hidden // model.heads,
        "max_position_embeddings": model.position_table or model.context_length,
        "context_length": model.context_length,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_base},
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tied_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "use_cache": True,
    }


def from_hf(config: dict[str, Any]) -> Model:
    """The settings of a Llama or Qwen3 `config.json`; what it leaves out has transformers' default.

    Raises:
        UserError: a field is missing, or asks for something that this model does not do (biases, scaled rotary
            positions, another activation, a head size that is not hidden / heads).
    """

    def refuse(what: str) -> UserError:
        return UserError(f"config.json: {what}; this software runs plain Llama shapes only")

    def number(key: str, default: Any = None, kind: type[int] | type[float] = int) -> Any:
        value = config.get(key, default)
        if value is None:
            raise UserError(f"config.json: {key!r} is missing; it should be the config.json of a Llama checkpoint")
        try:
            found = kind(value)
        except (TypeError, ValueError):
            found = 0
        if found <= 0:
            raise UserError(f"config.json: {key} is {value!r}; it has to be a number above 0")
        return found

    hidden, heads, layers, ffn, vocab_size = (
        number(key)
        for key in ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size")
    )
    kv_heads = number("num_key_value_heads") if config.get("num_key_value_heads") else heads
    if heads % kv_heads:
        raise refuse(f"{heads} heads that share {kv_heads} key-value heads")
    qwen3 = config.get("model_type") == "qwen3"
    head_size = config.get("head_dim", 128 if qwen3 else None)
    if hidden % heads or head_size not in (None, hidden // heads):
        raise refuse(f"head_dim {head_size} with hidden_size {hidden} and {heads} heads")
    if config.get("hidden_act", "silu") != "silu":
        raise refuse(f"hidden_act {config['hidden_act']!r}")
    for bias in ("attention_bias", "mlp_bias", "use_sliding_window"):
        if config.get(bias):
            raise refuse(f"{bias} true")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise refuse(f"rotary positions of type {rope_type!r}")
    positions = number("max_position_embeddings", 2048)
    return Model(
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        hidden=hidden,
        ffn=ffn,
        context_length=number("context_length", positions),
        position_table=positions,
        vocab_size=vocab_size,
        rope_base=float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
        norm_eps=number("rms_norm_eps", 1e-6, float),
        init_std=float(config.get("initializer_range", 0.02)),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qk_norm=qwen3,
    )
