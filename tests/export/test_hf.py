"""The exported folder in Hugging Face transformers: the same logits, token ids and text, without code of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_model, train_tokenizer

from xmodel.errors import MachineError, UserError
from xmodel.export.hf import export_hf
from xmodel.inference.engine import encode_prompt, generate
from xmodel.model.checkpoint_io import load_model, save_model
from xmodel.recipe.settings import Export
from xmodel.tokenizer.codec import Tokenizer

TEXTS = (
    "Mira went to Oslo.",
    " two  spaces,\ttabs\n\n\nand lines \r\n",
    "小林带着17个红苹果去了绿色的山。",
    "def f(x):\n    return x ** 2  # 平方 🙂 𝄞 \u00e9 e\u0301",
    "<s> is not a token here, nor is </s> or <0x0A>",
    "",
)


def make_run(folder: Path, bos: bool = True, tied: bool = False) -> Path:
    """As much of a run as an export needs."""
    tokenizer = train_tokenizer_into(folder / "tokenizer", bos)
    checkpoint = folder / "checkpoints" / "step-000000040"
    checkpoint.mkdir(parents=True)
    save_model(make_model(tokenizer.vocab_size, tied=tied), checkpoint)
    return folder


def train_tokenizer_into(folder: Path, bos: bool) -> Tokenizer:
    folder.mkdir(parents=True)
    return train_tokenizer(folder, bos)


def export(run: Path, dtype: str = "fp32") -> Path:
    out = run / f"hf-{dtype}"
    out.mkdir()
    export_hf(run, run / "checkpoints" / "step-000000040", out, Export(dtype=dtype))  # pyright: ignore[reportArgumentType]
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
    ours = load_model(run / "checkpoints" / "step-000000040")
    assert type(theirs).__name__ == "LlamaForCausalLM"
    assert theirs.dtype == torch.float32
    tokens = torch.randint(0, ours.config.vocab_size, (3, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, logits = ours(tokens), theirs(tokens).logits
    assert float((logits - expected).abs().max() / expected.abs().max()) <= 1e-5


def test_bf16_is_the_rounded_model(run: Path) -> None:
    theirs = hf_model(export(run, "bf16"), dtype="auto").state_dict()
    ours = load_model(run / "checkpoints" / "step-000000040").state_dict()
    assert theirs.keys() == ours.keys()
    for name, tensor in ours.items():
        assert theirs[name].dtype == torch.bfloat16
        assert torch.equal(theirs[name], tensor.bfloat16()), name


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

    ours, tokenizer = load_model(run / "checkpoints" / "step-000000040"), Tokenizer.load(run / "tokenizer")
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
