"""Model folders that are half there, that do not fit together, or that mean harm: one clear line, and nothing is run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from tiny import make_model, train_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from xmodel.cli import cli
from xmodel.errors import MachineError, UserError, XmodelError
from xmodel.inference.fast import prepare
from xmodel.inference.subjects import open_subject
from xmodel.model.checkpoint_io import save_model
from xmodel.tokenizer.codec import Tokenizer, pieces_fingerprint

Change = Callable[[Path], object]
RECIPE = """
name: tiny
corpus: {sources: [{name: a, reader: sandbox, paths: [en], language: en, documents: 10, weight: 1.0}]}
model: {layers: 2, heads: 4, kv_heads: 2, hidden: 32}
"""


class Code:
    """Runs a command where it is unpickled without care."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole folder of our own family, and one of another, which transformers runs."""
    ours = tmp_path_factory.mktemp("exports") / "ours"
    ours.mkdir()
    train_tokenizer(ours, bos=False)
    other = Path(shutil.copytree(ours, ours.with_name("other")))
    save_model(make_model(420, seed=3), ours)
    config = GPT2Config(vocab_size=420, n_layer=1, n_embd=32, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(other)
    return {"ours": ours, "other": other}


def cut(name: str) -> Change:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def write(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content)


def remove(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names]


def config(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        found = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(found))

    return change


def index(content: Any) -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return change


def another_model(vocab_size: int) -> Change:
    return lambda folder: save_model(make_model(vocab_size), folder)


SHARDS = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
BAD: dict[str, tuple[Change, type[XmodelError], str]] = {
    "no weights": (remove("model.safetensors"), UserError, r"holds no weights \(model\.safetensors, or shards with .* it holds config\.json"),
    "cut weights": (cut("model.safetensors"), MachineError, r"model\.safetensors: damaged"),
    "empty weights": (write("model.safetensors", ""), MachineError, r"model\.safetensors: damaged"),
    "missing shard": (index(SHARDS), MachineError, r"1 of 2 files are missing .*, the first is model-2\.safetensors"),
    "no weight map": (index({}), MachineError, r"index\.json: damaged \(it has no weight_map\)"),
    "map of another kind": (index({"weight_map": ["a"]}), MachineError, r"index\.json: damaged"),
    "index of another kind": (index([]), MachineError, r"index\.json: damaged \(no object\)"),
    "shard elsewhere": (index({"weight_map": {"a": "../model.safetensors"}}), UserError, "which is not a file beside it"),
    "cut config": (cut("config.json"), MachineError, r"config\.json: damaged"),
    "config of another kind": (write("config.json", "[]"), MachineError, r"config\.json: damaged \(no object\)"),
    "unknown architecture": (config(model_type="strange"), UserError, "cannot open it"),
    "code of its own": (config(model_type="strange", auto_map={"AutoConfig": "code.Config"}), UserError, "custom code"),
    "no tokenizer": (remove("tokenizer.model", "tokenizer.json"), UserError, "no tokenizer; a model folder holds"),
    "damaged tokenizer_config": (write("tokenizer_config.json", "[]"), MachineError, r"tokenizer_config\.json: damaged"),
}  # fmt: skip
OURS: dict[str, tuple[Change, type[XmodelError], str]] = {
    "more layers": (config(num_hidden_layers=3), UserError, r"9 tensors of its config\.json are missing, the first is model\.layers\.2"),
    "no number": (config(hidden_size="wide"), UserError, "cannot open it .*hidden_size"),
    "no heads": (config(num_attention_heads=0), UserError, "cannot open it"),
    "published format": (config(model_type="xmodel"), UserError, "`xmodel import official` makes a run of it"),
    "larger tokenizer": (another_model(300), UserError, "420 pieces, the model only 300: they do not belong together"),
    "cut tokenizer.json alone": (lambda f: (remove("tokenizer.model")(f), cut("tokenizer.json")(f)), MachineError, r"tokenizer\.json: damaged"),
}  # fmt: skip
CASES = [(kind, name) for kind in ("ours", "other") for name in BAD] + [("ours", name) for name in OURS]


@pytest.mark.parametrize(("kind", "fault"), CASES)
def test_what_is_wrong_is_said_in_a_line(kind: str, fault: str, exports: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exports[kind], tmp_path / "model"))
    change, error, message = (BAD | OURS)[fault]
    change(folder)
    with pytest.raises(error, match=message) as caught:
        open_subject(str(folder))
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["ours", "other"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_read_without_its_code(kind: str, zipped: bool, exports: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exports[kind], tmp_path / "model"))
    weights, trace = folder / "pytorch_model.bin", tmp_path / "ran"
    whole = open_subject(str(folder))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, weights, _use_new_zipfile_serialization=zipped)
    again = open_subject(str(folder))
    tokens = torch.tensor([whole.tokenizer.encode("Mira 小林")])
    with torch.no_grad():
        assert torch.equal(*(subject.model.head(subject.model.hidden(tokens)) for subject in (whole, again)))
    cut("pytorch_model.bin")(folder)
    with pytest.raises(MachineError, match=r"pytorch_model\.bin: damaged"):
        open_subject(str(folder))
    torch.save(tensors | {"a": Code(trace)}, weights, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"refused: its pickle wants to run [^\n]*system[^\n]*$"):
        open_subject(str(folder))
    assert not trace.exists()


def test_a_tokenizer_that_leaves_rows_unused_is_mentioned(
    exports: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(exports["ours"], tmp_path / "model"))
    for rows, said in ((448, False), (900, True)):  # padded to a multiple, or another vocabulary altogether
        another_model(rows)(folder)
        open_subject(str(folder))
        assert ("they may not belong together" in capsys.readouterr().err) == said


def test_a_run_whose_tokenizer_was_made_anew(exports: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    checkpoint = run / "checkpoints" / "step-000000010"
    shutil.copytree(exports["ours"], run / "tokenizer")
    checkpoint.mkdir(parents=True)
    (run / "recipe.yaml").write_text(RECIPE)
    save_model(make_model(420), checkpoint)
    (checkpoint / "manifest.json").write_text("{}")
    state = {"tokenizer": pieces_fingerprint(Tokenizer.load(run / "tokenizer"))}
    (checkpoint / "state.json").write_text(json.dumps(state))
    assert open_subject(str(run)).run == run
    (checkpoint / "state.json").write_text(json.dumps({"tokenizer": "of another"}))
    for where in (run, checkpoint):
        with pytest.raises(UserError, match=r"trained on tokens of another tokenizer \(of another\)"):
            open_subject(str(where))


def test_names_of_nothing(exports: dict[str, Path], tmp_path: Path) -> None:
    for where, message in (
        (exports["ours"].with_name("our"), r"no such folder; did you mean .*ours\?$"),
        (exports["ours"] / "model.safetensors", "a file; a model is opened by its folder, .*ours$"),
        (tmp_path, "neither a run directory"),
        (f"hf:{tmp_path / 'x'}", "no such folder; a model on the hub is written hf:OWNER/NAME"),
        ("hf:", "'hf:' names no model"),
        ("", "'' names no model"),
    ):
        with pytest.raises(UserError, match=message):
            open_subject(str(where))


def test_int8_where_it_cannot_be(exports: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="weights int8: only for models of our own family"):
        prepare(open_subject(str(exports["other"])).model, "int8")


@pytest.mark.parametrize("command", ["chat"])
def test_commands_take_every_kind_of_folder(command: str, exports: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    checkpoint = run / "checkpoints" / "step-000000010"
    shutil.copytree(exports["ours"], run / "tokenizer")
    (run / "recipe.yaml").write_text(RECIPE + "tokens: {bos: false}\n")
    shutil.copytree(exports["ours"], checkpoint)
    (checkpoint / "manifest.json").write_text("{}")

    def say(where: object, *options: str) -> str:
        words = ["Mira went"] if command == "generate" else ["--raw"]
        arguments = [command, str(where), *words, "--temperature", "0", "--max-new-tokens", "6", *options]
        result = CliRunner().invoke(cli, arguments, input="Mira went\n", catch_exceptions=False, standalone_mode=False)
        if result.exception:
            raise result.exception
        return result.stdout.removeprefix("Mira went")

    said = {say(where) for where in (run, checkpoint, exports["ours"], f"hf:{exports['ours']}")}
    assert len(said) == 1
    assert say(exports["other"])
    with pytest.raises(UserError, match="weights int8"):
        say(exports["other"], "--weights", "int8")
    with pytest.raises(UserError, match="no checkpoint of step 3"):
        say(run, "--step", "3")
