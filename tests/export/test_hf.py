"""The exported folder in Hugging Face transformers: the same logits, token ids and text, without code of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from made_run import STEP, TEXTS, make_run
from safetensors.torch import load_file, save_file

from xmodel.errors import MachineError, UserError
from xmodel.export.hf import export_hf
from xmodel.inference.generate import generate
from xmodel.inference.text import encode_prompt
from xmodel.model.checkpoint_io import load_model
from xmodel.recipe.settings import Export
from xmodel.tokenizer.codec import Tokenizer


def export(run: Path, dtype: str = "fp32", shard_size: int = 5_000_000_000) -> Path:
    out = run / f"hf-{dtype}-{shard_size}"
    out.mkdir()
    settings = Export(dtype=dtype, shard_size=shard_size)  # pyright: ignore[reportArgumentType]
    export_hf(run, run / "checkpoints" / STEP, out, settings)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    return export(run)


def hf_model(folder: Path, **arguments):
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **arguments)
    model, info = loaded
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


@pytest.mark.parametrize("tied", [False, True])
def test_the_same_logits(run: Path, exported: Path, tmp_path: Path, tied: bool) -> None:
    if tied:
        run = make_run(tmp_path / "tied", tied=True)
        exported = export(run)
    theirs = hf_model(exported)
    ours = load_model(run / "checkpoints" / STEP)
    assert type(theirs).__name__ == "LlamaForCausalLM"
    assert theirs.dtype == torch.float32
    tokens = torch.randint(0, ours.config.vocab_size, (3, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, logits = ours(tokens), theirs(tokens).logits
    assert float((logits - expected).abs().max() / expected.abs().max()) <= 1e-5


def test_bf16_is_the_rounded_model(run: Path) -> None:
    theirs = hf_model(export(run, "bf16"), dtype="auto").state_dict()
    ours = load_model(run / "checkpoints" / STEP).state_dict()
    assert theirs.keys() == ours.keys()
    for name, tensor in ours.items():
        assert theirs[name].dtype == torch.bfloat16
        assert torch.equal(theirs[name], tensor.bfloat16()), name


def test_shards_are_the_same_model(run: Path, exported: Path) -> None:
    most = 40_000
    sharded = export(run, shard_size=most)
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in sharded.glob("*.safetensors"))
    assert len(files) > 3
    assert files == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    assert set(index["weight_map"].values()) == set(files)
    stored = {file: load_file(sharded / file) for file in files}
    for tensors in stored.values():
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= most
    whole = load_file(exported / "model.safetensors")
    assert index["weight_map"].keys() == whole.keys()
    for name, file in index["weight_map"].items():
        assert torch.equal(stored[file][name], whole[name])
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    theirs, ours = hf_model(sharded), load_model(sharded)
    tokens = torch.arange(48)[None]
    with torch.no_grad():
        expected, logits = ours(tokens), theirs(tokens).logits
    assert float((logits - expected).abs().max() / expected.abs().max()) <= 1e-5


def test_averaged_weights_and_shards_are_read(run: Path, tmp_path: Path) -> None:
    again = make_run(tmp_path / "run")
    checkpoint = again / "checkpoints" / STEP
    state = {name: tensor * 0.5 for name, tensor in load_model(checkpoint).state_dict().items()}
    save_file(state, checkpoint / "average.safetensors")
    exported = load_file(export(again) / "model.safetensors")
    assert all(torch.equal(exported[name], state[name]) for name in state)
    # An export is a checkpoint folder too: what was written in shards is written anew.
    out = tmp_path / "out"
    out.mkdir()
    export_hf(run, export(run, shard_size=30_000), out, Export(dtype="fp32"))
    assert all(
        torch.equal(tensor, load_file(run / "checkpoints" / STEP / "model.safetensors")[name])
        for name, tensor in load_file(out / "model.safetensors").items()
    )


@pytest.mark.parametrize("bos", [True, False])
def test_the_same_token_ids(run: Path, exported: Path, tmp_path: Path, bos: bool) -> None:
    from transformers import AutoTokenizer

    if not bos:
        run = make_run(tmp_path / "no-bos", bos=False)
        exported = export(run)
    ours = Tokenizer.load(run / "tokenizer")
    theirs = AutoTokenizer.from_pretrained(exported)
    assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (ours.bos_id, ours.eos_id, ours.vocab_size)
    for text in TEXTS:
        assert theirs(text).input_ids == [ours.bos_id] * bos + ours.encode(text)
        assert theirs.decode(ours.encode(text), clean_up_tokenization_spaces=False) == text


def test_the_same_greedy_text(run: Path, exported: Path) -> None:
    from transformers import AutoTokenizer

    ours, tokenizer = load_model(run / "checkpoints" / STEP), Tokenizer.load(run / "tokenizer")
    theirs, their_tokenizer = hf_model(exported), AutoTokenizer.from_pretrained(exported)
    for prompt in ("Mira went to", "小林带着", "def f(x):\n    "):
        inputs = their_tokenizer(prompt, return_tensors="pt")
        output = theirs.generate(**inputs, max_new_tokens=24)[0, inputs.input_ids.shape[1] :].tolist()
        ids = encode_prompt(tokenizer, prompt, bos=True)
        mine = list(generate(ours, ids, max_new_tokens=24))
        assert inputs.input_ids[0].tolist() == ids
        assert [token for token in output if token != tokenizer.eos_id] == mine


def test_files_speak_to_old_and_new_readers(exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10_000.0
    assert config["max_position_embeddings"] == 128
    assert "auto_map" not in config
    generation = json.loads((exported / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    assert {path.name for path in exported.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "README.md",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
    }


def test_what_is_not_whole_is_not_exported(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        export_hf(run, tmp_path, tmp_path, Export())
    broken = make_run(tmp_path / "run")
    (broken / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(MachineError, match=r"tokenizer\.json: missing"):
        export(broken)
