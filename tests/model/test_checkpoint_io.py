"""Model folders: read by transformers, read from transformers, and refused with a clear line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from xmodel.errors import MachineError, UserError
from xmodel.model.checkpoint_io import load_model, save_model
from xmodel.model.config import to_hf
from xmodel.model.transformer import Transformer
from xmodel.recipe.settings import Model

SHAPE = Model(layers=2, heads=4, kv_heads=2, hidden=32, ffn=48, vocab_size=99, context_length=32, position_table=32)
TIED = replace(SHAPE, tied_embeddings=True)
TOKENS = torch.arange(60).view(2, 30) % 99


def saved(folder: Path, shape: Model = SHAPE) -> Transformer:
    model = Transformer(shape)
    model.init_weights(1)
    save_model(model, folder)
    return model


@pytest.mark.parametrize("shape", [SHAPE, TIED], ids=["untied", "tied"])
@torch.no_grad()
def test_transformers_loads_our_folder(tmp_path: Path, shape: Model) -> None:
    model = saved(tmp_path, shape)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    peer, report = loaded
    assert isinstance(peer, LlamaForCausalLM)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    torch.testing.assert_close(peer(TOKENS).logits, model(TOKENS), rtol=1e-5, atol=1e-6)
    ours = load_model(tmp_path)
    assert not ours.training
    assert ours.config == model.config
    assert torch.equal(ours(TOKENS), model(TOKENS))


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_sharded_folder_written_by_transformers_loads(tmp_path: Path, tied: bool) -> None:
    peer = LlamaForCausalLM(LlamaConfig(**to_hf(TIED if tied else SHAPE)))
    peer.save_pretrained(tmp_path, max_shard_size="12KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    torch.testing.assert_close(load_model(tmp_path)(TOKENS), peer(TOKENS).logits, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_bfloat16_folder_and_model(tmp_path: Path) -> None:
    model = Transformer(SHAPE)
    model.init_weights(1)
    save_model(model, tmp_path, torch.bfloat16)
    assert all(t.dtype == torch.bfloat16 for t in load_file(tmp_path / "model.safetensors").values())
    loaded = load_model(tmp_path, dtype=torch.bfloat16)
    assert loaded.rotary.dtype == torch.float32
    assert loaded.compute_dtype == torch.bfloat16
    logits = loaded(TOKENS)
    assert logits.dtype == torch.bfloat16
    peer = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    torch.testing.assert_close(logits.float(), peer(TOKENS).logits.float(), rtol=0.05, atol=0.02)


def rewrite(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    state = load_file(folder / "model.safetensors")
    for name, tensor in change.items():
        state.pop(name, None)
        if tensor is not None:
            state[name] = tensor
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_unfit_tensors_are_named(tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    saved(tmp_path)
    rewrite(tmp_path, {name: torch.zeros(8, 32)})
    with pytest.raises(UserError, match=rf"{name} has shape \[8, 32\], but config\.json makes it \[16, 32\]"):
        load_model(tmp_path)
    rewrite(tmp_path, {name: None})
    with pytest.raises(UserError, match=f"missing, the first is {name}"):
        load_model(tmp_path)
    rewrite(tmp_path, {name: torch.zeros(16, 32), "model.layers.2.input_layernorm.weight": torch.ones(32)})
    with pytest.raises(UserError, match=r"model\.layers\.2\.input_layernorm\.weight has no place in the 2-layer model"):
        load_model(tmp_path)


def test_rotary_frequencies_of_old_checkpoints_are_passed_over(tmp_path: Path) -> None:
    model = saved(tmp_path)
    rewrite(tmp_path, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert torch.equal(load_model(tmp_path)(TOKENS), model(TOKENS))


def test_folders_that_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        load_model(tmp_path)
    saved(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MachineError, match="damaged"):
        load_model(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match=r"holds no weights \(model\.safetensors, or shards"):
        load_model(tmp_path)
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(MachineError, match=r"files are missing .*, the first is model-00001-of-00001\.safetensors"):
        load_model(tmp_path)
