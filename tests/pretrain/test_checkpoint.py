"""Checkpoints: exact, whole or passed over, few, and never of another shape."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from xmodel.errors import UserError
from xmodel.model.transformer import Transformer
from xmodel.pretrain.checkpoint import load_checkpoint, save_checkpoint
from xmodel.pretrain.checkpoint_files import checkpoints, newest_checkpoint
from xmodel.pretrain.optim import make_optimizer
from xmodel.recipe.settings import Model, Pretrain

SHAPE = Model(layers=1, heads=2, kv_heads=1, hidden=16, ffn=32, context_length=16, position_table=16, vocab_size=64)


def trained(seed: int, steps: int = 2) -> tuple[Transformer, torch.optim.Optimizer]:
    model = Transformer(SHAPE)
    model.init_weights(seed)
    optimizer = make_optimizer(model, Pretrain(peak_lr=1e-2))
    for step in range(steps):
        advance(model, optimizer, step)
    return model, optimizer


def advance(model: Transformer, optimizer: torch.optim.Optimizer, step: int) -> None:
    tokens = torch.randint(0, 64, (2, 17), generator=torch.Generator().manual_seed(step))
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    optimizer.step()
    optimizer.zero_grad()


def equal(one: Transformer, other: Transformer) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def test_going_on_is_bit_identical(tmp_path: Path) -> None:
    model, optimizer = trained(0)
    save_checkpoint(tmp_path, 2, model, optimizer, {"interval": [0.1 + 0.2, 2.0]}, keep=3)
    other, other_optimizer = trained(1, steps=0)
    state = load_checkpoint(tmp_path / "step-000000002", other, other_optimizer)
    assert state == {"step": 2, "interval": [0.1 + 0.2, 2.0]}
    for step in range(2, 5):
        advance(model, optimizer, step)
        advance(other, other_optimizer, step)
    assert equal(model, other)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    model, optimizer = trained(0)
    for step in (1, 2, 3, 10):
        save_checkpoint(tmp_path, step, model, optimizer, {}, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000010", "step-000000003"]


@pytest.mark.parametrize("fault", ["flip", "cut", "remove", "manifest"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, optimizer = trained(0)
    for step in (1, 2):
        save_checkpoint(tmp_path, step, model, optimizer, {}, keep=2)
    newest = tmp_path / "step-000000002"
    victim = random.Random(fault).choice(
        sorted(file for file in newest.rglob("*") if file.is_file() and file.name != "manifest.json")
    )
    if fault == "flip":
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 0x10
        victim.write_bytes(bytes(data))
    elif fault == "cut":
        victim.write_bytes(victim.read_bytes()[:-1])
    elif fault == "remove":
        victim.unlink()
    else:
        (newest / "manifest.json").write_text("{")
    assert newest_checkpoint(tmp_path) == tmp_path / "step-000000001"
    assert "step-000000002 is damaged" in capsys.readouterr().err


def test_leftovers_of_a_kill_are_never_read_and_go_away(tmp_path: Path) -> None:
    model, optimizer = trained(0)
    (tmp_path / "step-000000005.partial").mkdir()
    (tmp_path / "step-000000005.partial" / "model.safetensors").write_bytes(b"half")
    assert newest_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, 1, model, optimizer, {}, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


def test_another_shape_is_refused(tmp_path: Path) -> None:
    model, optimizer = trained(0)
    path = save_checkpoint(tmp_path, 1, model, optimizer, {}, keep=2)
    other = Transformer(replace(SHAPE, hidden=32))
    with pytest.raises(UserError, match=r"another shape \(hidden 16 -> 32\)"):
        load_checkpoint(path, other, make_optimizer(other, Pretrain()))


def test_it_is_a_llama(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model, optimizer = trained(0)
    path = save_checkpoint(tmp_path, 1, model, optimizer, {}, keep=2)
    llama = transformers.LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokens = torch.arange(12).reshape(1, 12)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), llama(tokens).logits, rtol=1e-5, atol=1e-5)
