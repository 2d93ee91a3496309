"""The GGUF file, read back by the gguf package: every tensor is ours up to llama.cpp's order of rows, every key is there."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from made_run import STEP, made_model, make_run
from safetensors.torch import load_file, save_file

from xmodel.errors import UserError
from xmodel.export.gguf import export_gguf, interleaved
from xmodel.model.checkpoint_io import load_model
from xmodel.model.transformer import Transformer, rotary_tables, rotate
from xmodel.recipe.settings import Export

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def their_name(name: str) -> str:
    if name.startswith("model.layers."):
        _, _, layer, rest = name.split(".", 3)
        return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"
    rest = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    return rest[name.removesuffix(".weight")] + ".weight"


def their_rows(name: str, tensor: torch.Tensor, model: Transformer) -> np.ndarray:
    """Row by row: of a head with C rows, llama.cpp has our rows 0, C/2, 1, C/2 + 1, ..."""
    config = model.config
    if config.qk_norm or not name.endswith(("q_proj.weight", "k_proj.weight")):
        return tensor.numpy()
    size = config.hidden // config.heads
    order = [
        head * size + half * size // 2 + i
        for head in range(config.heads if "q_proj" in name else config.kv_heads)
        for i in range(size // 2)
        for half in (0, 1)
    ]
    return tensor.numpy()[order]


def write(run: Path, kind: str = "f32", name: str = "", **more: Any) -> gguf.GGUFReader:
    path = run / f"{name or kind}.gguf"
    export_gguf(run, run / "checkpoints" / STEP, path, Export(licence="mit"), kind=kind, **more)
    return gguf.GGUFReader(path)


def value(reader: gguf.GGUFReader, key: str) -> Any:
    return reader.fields[key].contents()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), model=made_model())


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_every_tensor_is_ours(run: Path, kind: str) -> None:
    model = load_model(run / "checkpoints" / STEP)
    stored = {tensor.name: tensor for tensor in write(run, kind).tensors}
    ours = {their_name(name): their_rows(name, tensor, model) for name, tensor in model.state_dict().items()}
    assert stored.keys() == ours.keys()
    for name, expected in ours.items():
        tensor = stored[name]
        found = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(expected.shape)
        assert tensor.tensor_type.name == ("F32" if expected.ndim == 1 else kind.upper())
        assert tensor.shape.tolist() == list(expected.shape[::-1])  # ggml counts dimensions from the last
        if expected.ndim == 1 or kind == "f32":
            assert np.array_equal(found, expected)
        elif kind == "q8_0":
            blocks = expected.reshape(-1, 32)
            scale = np.abs(blocks).max(axis=1, keepdims=True) / 127
            # Half a step, and the scale itself is rounded to float16.
            assert np.all(np.abs(found.reshape(-1, 32) - blocks) <= scale * (0.5 + 127 * 2**-11) * 1.001)
            assert np.abs(found - expected).max() > 0
        else:
            kinds = {"f16": gguf.GGMLQuantizationType.F16, "bf16": gguf.GGMLQuantizationType.BF16}
            theirs = gguf.dequantize(gguf.quantize(expected, kinds[kind]), kinds[kind])
            assert np.array_equal(found, theirs.reshape(expected.shape))


@pytest.mark.parametrize("shape", [{"qk_norm": True}, {"tied_embeddings": True}, {"kv_heads": 4}])
def test_other_shapes(tmp_path: Path, shape: dict[str, Any]) -> None:
    run = make_run(tmp_path, model=made_model(**shape))
    model = load_model(run / "checkpoints" / STEP)
    reader = write(run)
    stored = {tensor.name: tensor.data for tensor in reader.tensors}
    ours = {their_name(name): their_rows(name, tensor, model) for name, tensor in model.state_dict().items()}
    assert stored.keys() == ours.keys()
    assert all(np.array_equal(stored[name], ours[name]) for name in ours)
    architecture = "qwen3" if shape.get("qk_norm") else "llama"
    assert value(reader, "general.architecture") == architecture
    assert value(reader, f"{architecture}.attention.head_count_kv") == model.config.kv_heads
    assert ("output.weight" in stored) == (not shape.get("tied_embeddings"))


def test_the_rows_turn_as_ours_do() -> None:
    """Rotating neighbours after `interleaved` gives the products of queries and keys that rotating halves gives."""
    heads, size, positions = 3, 8, 5
    draw = torch.Generator().manual_seed(0)
    q_OD, k_OD = (torch.randn(heads * size, 16, generator=draw) for _ in range(2))
    x_TD = torch.randn(positions, 16, generator=draw)

    def ours(weight_OD: torch.Tensor) -> torch.Tensor:
        rows = (x_TD @ weight_OD.T).view(1, positions, heads, size)
        return rotate(rows, rotary_tables(positions, size, 10_000.0))[0]

    def theirs(weight_OD: torch.Tensor) -> torch.Tensor:
        pairs = (x_TD @ interleaved(weight_OD, heads).T).view(positions, heads, size // 2, 2)
        angles = torch.outer(torch.arange(positions), 10_000.0 ** (-2 * torch.arange(size // 2) / size))
        turned = torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angles), angles)[:, None]
        return torch.view_as_real(turned).flatten(2)

    expected, found = (torch.einsum("thc,shc->hts", form(q_OD), form(k_OD)) for form in (ours, theirs))
    assert torch.allclose(found, expected, atol=1e-4)


def test_the_metadata_is_complete(run: Path) -> None:
    reader = write(run, "q8_0", name="metadata")
    model = load_model(run / "checkpoints" / STEP)
    expected = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "my-model",
        "general.license": "mit",
        "general.languages": ["en", "zh"],
        "general.file_type": 7,
        "general.quantization_version": 2,
        "llama.vocab_size": 420,
        "llama.context_length": 64,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 96,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10_000.0,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
    }
    assert {key: value(reader, key) for key in expected} == expected
    assert math.isclose(value(reader, "llama.attention.layer_norm_rms_epsilon"), model.config.norm_eps, rel_tol=1e-6)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert value(reader, "general.size_label") == f"{total / 1000:.0f}K"


def test_ollama_gets_a_modelfile(run: Path, tmp_path: Path) -> None:
    write(run, name="small")
    assert (run / "small.Modelfile").read_text() == (
        'FROM ./small.gguf\nPARAMETER num_ctx 64\nTEMPLATE """{{ .Prompt }}"""\nLICENSE """mit"""\n'
    )
    write(run, name="bytes", unigram="plamo2")
    assert 'TEMPLATE """<s>{{ .Prompt }}"""' in (run / "bytes.Modelfile").read_text()
    chat = make_run(tmp_path, model=made_model())
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    (chat / "tokenizer" / "chat_template.jinja").write_text(template)
    assert value(write(chat), "tokenizer.chat_template") == template
    assert 'PARAMETER stop "<|im_end|>"' in (chat / "f32.Modelfile").read_text()


def test_what_cannot_be_written_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uneven = make_run(tmp_path / "uneven", model=made_model(ffn=72))
    with pytest.raises(UserError, match=r"q8_0: model\.layers\.0\.mlp\.down_proj\.weight has rows of 72 weights"):
        write(uneven, "q8_0")
    assert value(write(uneven, "f16"), "llama.feed_forward_length") == 72
    large = make_run(tmp_path / "large", model=made_model())
    weights = large / "checkpoints" / STEP / "model.safetensors"
    state = load_file(weights)
    state["model.layers.1.mlp.up_proj.weight"][3, 5] = 7e4
    save_file(state, weights)
    with pytest.raises(UserError, match=r"f16: model\.layers\.1\.mlp\.up_proj\.weight holds 7e\+04"):
        write(large, "f16")
    assert not list(large.glob("*.gguf*"))  # nothing half-written
    write(large, "bf16")
    with pytest.raises(UserError, match=r"no config\.json"):
        export_gguf(run, tmp_path, tmp_path / "x.gguf", Export())
    monkeypatch.setattr("xmodel.export.gguf.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'xmodel\[gguf\]'"):
        write(run)
