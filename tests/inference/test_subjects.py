"""What can be evaluated, and what is said about the rest."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import make_model, train_tokenizer

from xmodel.errors import MachineError, UserError
from xmodel.files import checksum, write_json
from xmodel.inference.subjects import open_subject
from xmodel.model.checkpoint_io import save_model

RECIPE = """
name: tiny
corpus: {sources: [{name: a, reader: sandbox, paths: [en], language: en, documents: 10, weight: 1.0}]}
model: {layers: 2, heads: 4, kv_heads: 2, hidden: 32}
tokens: {bos: BOS}
"""


def checkpoint(run: Path, step: int) -> Path:
    folder = run / "checkpoints" / f"step-{step:09d}"
    folder.mkdir(parents=True)
    save_model(make_model(420, seed=step), folder)
    names = ("config.json", "model.safetensors")
    write_json(
        folder / "manifest.json",
        {name: {"bytes": (folder / name).stat().st_size, "checksum": checksum(folder / name)} for name in names},
    )
    return folder


@pytest.fixture
def run(tmp_path: Path, tokenizer_folder: Path) -> Path:
    folder = tmp_path / "my run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(RECIPE.replace("BOS", "false"))
    shutil.copytree(tokenizer_folder, folder / "tokenizer")
    for step in (10, 20):
        checkpoint(folder, step)
    return folder


def same(model, seed: int) -> bool:
    return torch.equal(model.head_weight, make_model(420, seed=seed).head_weight)


def test_a_run_its_steps_and_its_checkpoints(run: Path) -> None:
    newest = open_subject(str(run))
    assert same(newest.model, 20)
    assert (newest.name, newest.run, newest.bos) == ("my-run-step-000000020", run.resolve(), False)
    weights = run / "checkpoints" / "step-000000020" / "model.safetensors"
    assert newest.about["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert newest.about["step"] == 20
    assert newest.about["dtype"] == "float32"
    json.dumps(newest.about)
    assert same(open_subject(str(run), step=10).model, 10)
    one = open_subject(str(run / "checkpoints" / "step-000000010"), dtype="bf16")
    assert (one.run, one.model.compute_dtype, one.about["step"]) == (run.resolve(), torch.bfloat16, 10)
    (run / "recipe.yaml").write_text(RECIPE.replace("BOS", "true"))
    assert open_subject(str(run)).bos


def test_damaged_checkpoints(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = run / "checkpoints" / "step-000000020" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    assert same(open_subject(str(run)).model, 10)
    assert "does not have its checksum" in "".join(capsys.readouterr())
    with pytest.raises(MachineError, match="damaged"):
        open_subject(str(run), step=20)
    with pytest.raises(MachineError, match="damaged"):
        open_subject(str(weights.parent))


def test_an_exported_folder(tmp_path: Path) -> None:
    folder = tmp_path / "export" / "hf"
    folder.mkdir(parents=True)
    train_tokenizer(folder, bos=False)
    save_model(make_model(420, seed=3), folder)
    for where in (str(folder), f"hf:{folder}"):
        subject = open_subject(where)
        assert same(subject.model, 3)
        assert (subject.run, subject.bos, subject.about["where"]) == (None, False, where)
        assert subject.tokenizer.decode(subject.tokenizer.encode("Mira 小林")) == "Mira 小林"
        assert subject.name.endswith("-hf")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda run: str(run) + "x", UserError, "no such folder; did you mean .*my run"),
        (lambda run: str(run / "tokenizer"), UserError, "neither a run directory"),
        (lambda run: shutil.rmtree(run / "checkpoints") or str(run), MachineError, "no whole checkpoint"),
        (lambda run: save_model(make_model(300), run / "tokenizer") or str(run / "tokenizer"), UserError, "420 pieces"),
    ],
)
def test_what_cannot_be_opened(run: Path, change, error, message: str) -> None:
    with pytest.raises(error, match=message):
        open_subject(change(run))


def test_settings_that_make_no_sense(run: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint of step 15; the nearest are 10, 20"):
        open_subject(str(run), step=15)
    with pytest.raises(UserError, match="dtype 'fp8'"):
        open_subject(str(run), dtype="fp8")
    for device in ("gpu", "cpu:3", "meta", "mps"):
        with pytest.raises(UserError, match=f"device '{device}': it has to be auto, cpu, cuda"):
            open_subject(str(run), device=device)
    with pytest.raises(UserError, match="has no checkpoint of a step"):
        open_subject(str(run / "checkpoints" / "step-000000010" / ".." / ".." / "tokenizer"), step=3)
