"""Models of others as runs: the same logits and ids as their own code, whole or not at all, and no code of theirs run."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import yaml
from click.testing import CliRunner
from command import TINY
from safetensors.torch import load_file, save_file
from tiny import make_model, texts
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from xmodel.cli import cli
from xmodel.cli.importing import sample_texts
from xmodel.errors import MachineError, UserError
from xmodel.files import read_json
from xmodel.model.checkpoint_io import load_model, save_model
from xmodel.model.transformer import Transformer
from xmodel.pretrain.checkpoint import load_checkpoint
from xmodel.pretrain.checkpoint_files import damage, seal
from xmodel.pretrain.optim import make_optimizer
from xmodel.recipe.load import load_recipe
from xmodel.recipe.settings import Pretrain
from xmodel.tokenizer.codec import Tokenizer

SHARED = next((parent / "shared" for parent in Path(__file__).parents if (parent / "shared").is_dir()), None)
STEP = Path("checkpoints") / "step-000000000"
PIECES = 512
SHAPE: dict[str, Any] = {
    "vocab_size": PIECES, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 96, "rms_norm_eps": 1e-5, "initializer_range": 0.3,
}  # fmt: skip


def command(*arguments: object) -> str:
    """A command of `xmodel` in this process; what it writes."""
    result = CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.output


def import_(*arguments: object) -> dict[str, Any]:
    return json.loads(command("import", *arguments, "--json").splitlines()[-1])


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model in the style of the published one: dummy prefix, collapsed spaces, bytes."""
    out = tmp_path_factory.mktemp("spm") / "xmodel_32000.model"
    writer, english = io.BytesIO(), [text for text in sample_texts() if text.isascii()]
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter([line for text in [*texts(), *english] for line in text.split("\n")]), model_writer=writer,
        vocab_size=PIECES, byte_fallback=True, split_digits=True, normalization_rule_name="identity", minloglevel=2,
        character_coverage=0.9999, num_threads=1,
    )  # fmt: skip
    out.write_bytes(writer.getvalue())
    return out


def llama(seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SHAPE | {"tie_word_embeddings": False} | changes)).eval()


def official(folder: Path, spm: Path, **config: Any) -> Any:
    """A folder in the published format, and transformers' Llama of the same weights."""
    folder.mkdir()
    model = llama()
    state = dict(model.state_dict())
    for layer in range(SHAPE["num_hidden_layers"]):
        state[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(SHAPE | {"model_type": "xmodel"} | config))
    shutil.copy(spm, folder)
    return model


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def some_tokens() -> Tensor:
    return torch.randint(PIECES, (2, 40), generator=torch.Generator().manual_seed(1))


def test_the_published_format(tmp_path: Path, spm: Path) -> None:
    peer = official(tmp_path / "theirs", spm)
    found = import_("official", tmp_path / "theirs", "--out", tmp_path / "run")
    run = tmp_path / "run"
    assert found["parameters"] == sum(p.numel() for p in peer.parameters())
    assert found["dtype"] == "float32"
    assert damage(run / STEP) is None
    ours = load_model(run / STEP)
    with torch.no_grad():
        assert relative(ours(some_tokens()), peer(some_tokens()).logits) <= 1e-5
    assert not [name for name in load_file(run / STEP / "model.safetensors") if "inv_freq" in name]
    own = sentencepiece.SentencePieceProcessor(model_file=str(spm))
    tokenizer = Tokenizer.load(run / "tokenizer")
    for text in ("Mira went to Oslo.", "小林带着17个红苹果", "two  spaces\tand\nlines"):
        assert tokenizer.encode(text) == own.encode(text)
    recipe = load_recipe(run / "recipe.yaml")
    assert (recipe.tokens.bos, recipe.model.context_length, recipe.export.licence) == (True, 96, "apache-2.0")
    assert read_json(run / "run.json")["imported"]["format"] == "official"


def test_logits_equal_the_published_modelling_code(tmp_path: Path, spm: Path) -> None:
    folder = SHARED / "golden" / "official-model" if SHARED else None
    if folder is None or not folder.is_dir():
        pytest.skip("the published code's outputs are not here")
    for name in ("a", "b"):
        rows = read_json(folder / name / "config.json")["vocab_size"]
        if rows != PIECES:
            with pytest.raises(UserError, match=f"{PIECES} pieces, but the model's embedding has {rows} rows"):
                import_("official", folder / name, "--tokenizer", spm, "--out", tmp_path / name)
            import_(
                "hf", as_llama(folder / name, tmp_path / f"hf-{name}"), "--tokenizer", spm, "--out", tmp_path / name
            )
        else:
            import_("official", folder / name, "--tokenizer", spm, "--out", tmp_path / name)
        model, expected = load_model(tmp_path / name / STEP), load_file(folder / name / "expected.safetensors")
        with torch.no_grad():
            assert relative(model(expected["input_ids"]), expected["logits"]) <= 1e-5


def as_llama(folder: Path, out: Path) -> Path:
    """The same weights under the model type of transformers, where no tokenizer of their exact size is at hand."""
    out.mkdir()
    shutil.copy(folder / "pytorch_model.bin", out)
    (out / "config.json").write_text(json.dumps(read_json(folder / "config.json") | {"model_type": "llama"}))
    return out


@pytest.mark.parametrize("kind", ["safetensors", "sharded", "bin", "bf16", "tied", "qwen3"])
def test_llamas_of_transformers(kind: str, tmp_path: Path, spm: Path) -> None:
    folder = tmp_path / "theirs"
    if kind == "qwen3":
        torch.manual_seed(0)
        peer: Any = Qwen3ForCausalLM(Qwen3Config(**SHAPE | {"head_dim": 12, "tie_word_embeddings": False})).eval()
    else:
        peer = llama(tie_word_embeddings=kind == "tied")
    if kind == "bf16":
        peer = peer.bfloat16()
    if kind == "bin":
        folder.mkdir()
        peer.config.save_pretrained(folder)
        names = list(peer.state_dict())
        parts = [names[: len(names) // 2], names[len(names) // 2 :]]
        shards = [f"pytorch_model-{number}-of-2.bin" for number in (1, 2)]
        for part, shard in zip(parts, shards, strict=True):
            torch.save({name: peer.state_dict()[name].clone() for name in part}, folder / shard)
        index = {name: shard for part, shard in zip(parts, shards, strict=True) for name in part}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    else:
        peer.save_pretrained(folder, **({"max_shard_size": "60KB"} if kind == "sharded" else {}))
    assert len(list(folder.glob("*.safetensors"))) == {"bin": 0}.get(kind, 1) or kind == "sharded"
    shutil.copy(spm, folder / "tokenizer.model")
    found = import_("hf", folder, "--out", tmp_path / "run", "--context-length", 64)
    assert found["context_length"] == 64
    ours = load_model(tmp_path / "run" / STEP)
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        assert relative(ours(some_tokens()), again(some_tokens()).logits) <= 1e-5
    stored = load_file(tmp_path / "run" / STEP / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16 if kind == "bf16" else torch.float32}
    assert ("lm_head.weight" in stored) == (kind != "tied")


def test_a_run_is_generated_from_exported_and_trained_further(tmp_path: Path, spm: Path) -> None:
    peer = official(tmp_path / "theirs", spm)
    import_("official", tmp_path / "theirs", "--out", tmp_path / "run")
    moved = Path(
        os.replace(tmp_path / "run", tmp_path / "moved") or tmp_path / "moved"
    )  # nothing in it names where it lies
    assert command("generate", moved, "Mira went to", "--max-new-tokens", 8).startswith("Mira went to")

    command("export", "hf", moved, "--out", tmp_path / "hf", "--dtype", "fp32")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    with torch.no_grad():
        assert torch.equal(again(some_tokens()).logits, peer(some_tokens()).logits)
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "imported into Xmodel-LM" in card
    assert "from scratch" not in card
    assert "## Training" not in card

    with pytest.raises(UserError, match=r"has no corpus and no stages; [^\n]*$"):
        command("run", moved)
    recipe = yaml.safe_load(TINY)
    del recipe["tokenizer"], recipe["model"]
    recipe |= {"extends": str(moved / "recipe.yaml"), "name": "further", "model": {"context_length": 64}}
    recipe["pretrain"] |= {"steps": 6, "peak_lr": 1e-3, "save_every": 3, "eval_every": 6, "warmup_steps": 1}
    recipe["evaluate"] = {"limit_during": 0}
    (tmp_path / "further.yaml").write_text(yaml.safe_dump(recipe))
    further = tmp_path / "further"
    for stage in ("corpus", "tokenizer", "tokens", "pretrain"):
        said = command(stage, tmp_path / "further.yaml", "--dir", further)
    assert "begins with the weights of" in said
    rows = [json.loads(line) for line in (further / "metrics.jsonl").read_text().splitlines()]
    before = [row["loss"] for row in rows if row["kind"] == "validation" and row["step"] == 0]
    after = [row["loss"] for row in rows if row["kind"] == "validation" and row["step"] == 6]
    assert sum(after) < sum(before)
    start = load_file(moved / STEP / "model.safetensors")
    end = load_file(further / "checkpoints" / "step-000000006" / "model.safetensors")
    share = [((end[name] - tensor).norm() / tensor.norm()).item() for name, tensor in start.items()]
    assert 0 < max(share) < 0.1  # these weights, six steps on; weights drawn anew would be a share of about 1.4 away

    with pytest.raises(UserError, match=r"rope_base 10000\.0 -> 500000\.0"):
        command("pretrain", further, "model.rope_base=5e5", "--redo", "pretrain")


def test_a_checkpoint_without_optimizer_goes_on_in_its_own_folder(tmp_path: Path) -> None:
    given, path = make_model(seed=1), tmp_path / "step-000000000"
    path.mkdir()
    save_model(given, path)
    seal(path, 0, "pieces")
    model = Transformer(given.config)
    model.init_weights(2)
    optimizer = make_optimizer(model, Pretrain())
    average = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    state = load_checkpoint(path, model, optimizer, {"guard.skipped": torch.zeros(1)}, average, "pieces")
    assert (state["step"], state["left_out"]) == (0, [])
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, given.state_dict()[name])
        assert torch.equal(average[name], parameter)
    assert not optimizer.state
    with pytest.raises(UserError, match="another tokenizer"):
        load_checkpoint(path, model, optimizer, {}, average, "others")


class Code:
    """Runs a command where it is unpickled without care."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", ["zip", "legacy"])
def test_a_pickle_with_code_is_refused_and_not_run(protocol: str, tmp_path: Path, spm: Path) -> None:
    official(tmp_path / "theirs", spm)
    trace = tmp_path / "ran"
    state = {"model.norm.weight": Code(f"touch {trace}")}
    torch.save(state, tmp_path / "theirs" / "pytorch_model.bin", _use_new_zipfile_serialization=protocol == "zip")
    with pytest.raises(UserError, match=r"refused: its pickle wants to run [^\n]*system[^\n]*$"):
        import_("official", tmp_path / "theirs", "--out", tmp_path / "run")
    assert not trace.exists()
    assert not list(tmp_path.glob("run*"))


def _cut(folder: Path) -> None:
    data = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(data[: len(data) // 2])


def _plain_pickle(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))


def _changed(**changes: Tensor | None):
    def change(folder: Path) -> None:
        state = torch.load(folder / "pytorch_model.bin", weights_only=True)
        for name, tensor in changes.items():
            state.pop(name, None)
            if tensor is not None:
                state[name] = tensor
        torch.save(state, folder / "pytorch_model.bin")

    return change


def _config(**changes: Any):
    def change(folder: Path) -> None:
        config = read_json(folder / "config.json") | changes
        (folder / "config.json").write_text(
            json.dumps({key: value for key, value in config.items() if value is not None})
        )

    return change


NORM, HEAD = "model.norm.weight", "lm_head.weight"
BAD = {
    "cut off": (_cut, MachineError, r"pytorch_model\.bin: damaged"),
    "no state dict": (_plain_pickle, (UserError, MachineError), r"pytorch_model\.bin: "),
    "no config": (lambda folder: (folder / "config.json").unlink(), UserError, r"no config\.json"),
    "damaged config": (lambda folder: (folder / "config.json").write_text("{"), MachineError, r"config\.json: damaged"),
    "no weights": (lambda folder: (folder / "pytorch_model.bin").unlink(), UserError, "holds no weights"),
    "no tokenizer": (lambda folder: (folder / "xmodel_32000.model").unlink(), UserError, "--tokenizer names one"),
    "damaged tokenizer": (lambda folder: (folder / "xmodel_32000.model").write_bytes(b"no model"), UserError, "truncated, or not a SentencePiece model"),
    "tensor missing": (_changed(**{NORM: None}), UserError, r"1 tensors of its config\.json are missing, the first is model\.norm\.weight"),
    "tensor unknown": (_changed(extra=torch.ones(2)), UserError, "tensor extra has no place"),
    "tensor of another shape": (_changed(**{NORM: torch.ones(47)}), UserError, r"has shape \[47\], but config\.json makes it \[48\]"),
    "quantised": (_changed(**{HEAD: torch.ones(PIECES, 48, dtype=torch.int8)}), UserError, "is int8; import takes"),
    "not finite": (_changed(**{NORM: torch.full((48,), torch.nan)}), MachineError, "not finite"),
    "a Llama": (_config(model_type="llama"), UserError, "`xmodel import hf`"),
    "another shape": (_config(num_hidden_layers=3), UserError, "are missing, the first is model.layers.2"),
    "other tokenizer": (_config(vocab_size=500), UserError, "512 pieces, but the model's embedding has 500 rows"),
    "scaled positions": (_config(rope_scaling={"type": "linear", "factor": 2}), UserError, "rotary positions of type"),
    "large vocabulary": (_config(vocab_size=151_936), UserError, "at most 65,536"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_what_is_wrong_is_said_and_leaves_nothing(fault: str, tmp_path: Path, spm: Path) -> None:
    official(tmp_path / "theirs", spm)
    change, kind, message = BAD[fault]
    change(tmp_path / "theirs")
    with pytest.raises(kind, match=message) as error:
        import_("official", tmp_path / "theirs", "--out", tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("run*"))


def test_other_folders(tmp_path: Path, spm: Path) -> None:
    official(tmp_path / "theirs", spm)
    with pytest.raises(UserError, match=r"no such folder; did you mean .*theirs"):
        import_("official", tmp_path / "thairs", "--out", tmp_path / "run")
    with pytest.raises(UserError, match="`xmodel import official` takes it"):
        import_("hf", tmp_path / "theirs", "--out", tmp_path / "run")
    _config(model_type="gpt_neox")(tmp_path / "theirs")
    with pytest.raises(UserError, match="model_type 'gpt_neox'; import takes"):
        import_("hf", tmp_path / "theirs", "--out", tmp_path / "run")
    with pytest.raises(UserError, match="exists already"):
        import_("hf", tmp_path / "theirs", "--out", tmp_path / "theirs")
    with pytest.raises(UserError, match="has to be from 8 to the model's 96 positions"):
        _config(model_type="xmodel")(tmp_path / "theirs")
        import_("official", tmp_path / "theirs", "--out", tmp_path / "run", "--context-length", 97)


def test_a_missing_shard_and_a_cut_off_one(tmp_path: Path, spm: Path) -> None:
    folder = tmp_path / "theirs"
    llama().save_pretrained(folder, max_shard_size="60KB")
    shutil.copy(spm, folder / "tokenizer.model")
    shards = sorted(folder.glob("*.safetensors"))
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[:-100])
    with pytest.raises(MachineError, match=rf"{shards[1].name}: damaged"):
        import_("hf", folder, "--out", tmp_path / "run")
    shards[1].unlink()
    with pytest.raises(MachineError, match=rf"files are missing .* the first is {shards[1].name}"):
        import_("hf", folder, "--out", tmp_path / "run")
    index = read_json(folder / "model.safetensors.index.json")
    index["weight_map"][NORM] = "../outside.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="which is not a file beside it"):
        import_("hf", folder, "--out", tmp_path / "run")
    assert not list(tmp_path.glob("run*"))


def test_our_own_export_comes_back_the_same(tmp_path: Path, tokenizer_folder: Path) -> None:
    """An exported folder has tokenizer.json and our tokenizer.model: the exact one of ours is taken."""
    folder = tmp_path / "export"
    shutil.copytree(tokenizer_folder, folder)
    model = make_model(420)
    save_model(model, folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    import_("hf", folder, "--out", tmp_path / "run")
    again = load_model(tmp_path / "run" / STEP)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert again.config == model.config
    assert load_recipe(tmp_path / "run" / "recipe.yaml").export.licence == "mit"
    assert type(Tokenizer.load(tmp_path / "run" / "tokenizer")) is Tokenizer
    mixed = {name: tensor.bfloat16() if tensor.dim() == 2 else tensor for name, tensor in model.state_dict().items()}
    save_file(mixed, folder / "model.safetensors")
    import_("hf", folder, "--out", tmp_path / "mixed")
    stored = load_file(tmp_path / "mixed" / STEP / "model.safetensors")
    assert all(
        torch.equal(tensor, stored[name]) and tensor.dtype == stored[name].dtype for name, tensor in mixed.items()
    )
