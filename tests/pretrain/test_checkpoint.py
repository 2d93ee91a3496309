"""Checkpoints: exact, whole or passed over, few, and never of another shape."""

from __future__ import annotations

import errno
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from xmodel.errors import MachineError, UserError
from xmodel.model.transformer import Transformer
from xmodel.pretrain import checkpoint
from xmodel.pretrain.checkpoint import Checkpointer, load_checkpoint, save_checkpoint
from xmodel.pretrain.checkpoint_files import HERE, checkpoints, newest_checkpoint
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


def test_every_so_many_steps_one_is_kept_for_good(tmp_path: Path) -> None:
    model, optimizer = trained(0)
    for step in (2, 4, 6, 8, 10):
        save_checkpoint(tmp_path, step, model, optimizer, {}, keep=1, for_good=lambda step: step % 4 == 0)
    assert [path.name[-2:] for path in checkpoints(tmp_path)] == ["10", "08", "04"]


def test_the_same_state_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        save_checkpoint(tmp_path / name, 2, *trained(0), {"a": 1}, keep=1)
    one, other = (
        {
            str(file.relative_to(tmp_path / name)): file.read_bytes()
            for file in (tmp_path / name).rglob("*")
            if file.is_file()
        }
        for name in ("one", "other")
    )
    assert one == other


def test_any_state_and_anything_extra_comes_back(tmp_path: Path) -> None:
    """What another optimizer keeps, of any shape and type, and tensors beside it."""
    model, optimizer = trained(0)
    for parameter in model.parameters():
        optimizer.state[parameter] = {"momentum_buffer": parameter.detach() * 2, "count": torch.tensor([3, 4])}
    extra = {"average.model.norm.weight": torch.arange(5.0), "guard.seen": torch.tensor(7)}
    path = save_checkpoint(tmp_path, 2, model, optimizer, {}, keep=1, extra=extra)
    other, other_optimizer = trained(1)
    found = {name: torch.zeros_like(tensor) for name, tensor in extra.items()}
    load_checkpoint(path, other, other_optimizer, found)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert other_optimizer.state[theirs].keys() == {"momentum_buffer", "count"}
        assert torch.equal(other_optimizer.state[theirs]["momentum_buffer"], ours.detach() * 2)
        assert torch.equal(other_optimizer.state[theirs]["count"], torch.tensor([3, 4]))
    assert all(torch.equal(found[name], tensor) for name, tensor in extra.items())
    with pytest.raises(UserError, match=r"has no average\.other; it was saved with other settings"):
        load_checkpoint(path, other, other_optimizer, {"average.other": torch.zeros(1)})


def test_what_is_written_is_the_moment_of_the_call(tmp_path: Path) -> None:
    """Training goes on while a checkpoint is written; two in a row wait for one another."""
    model, optimizer = trained(0)
    saver = Checkpointer(tmp_path, HERE, keep=5)
    for step in range(2, 6):
        saver.save(step, model, optimizer, {"interval": [step, 1.0]})
        advance(model, optimizer, step)
        advance(model, optimizer, step)
    saver.finish()
    assert saver.saved == 5
    again, again_optimizer = trained(0)
    for step in range(2, 6):
        other, other_optimizer = trained(1, steps=0)
        load_checkpoint(tmp_path / f"step-{step:09d}", other, other_optimizer)
        assert equal(again, other)
        advance(again, again_optimizer, step)
        advance(again, again_optimizer, step)


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["room", "weights", "optimizer"])
def test_a_full_disk_costs_a_line_and_no_training(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, optimizer = trained(0)
    saver = Checkpointer(tmp_path, HERE, keep=2)
    saver.save(1, model, optimizer, {})
    saver.finish()

    def full(*_: object, **__: object) -> None:
        raise FULL

    with monkeypatch.context() as patch:
        if where == "room":
            patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000))
        elif where == "weights":
            patch.setattr(checkpoint, "save_weights", full)
        else:
            patch.setattr(checkpoint._Writer, "write_data", full)
        saver.save(2, model, optimizer, {})
        assert saver.wait() == 1
        said = capsys.readouterr().err
        assert said.startswith("pretrain: checkpoint of step 2 was not saved (the disk is full")
        assert said.endswith("); training goes on, and the next one is tried\n")
        assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
        with pytest.raises(MachineError, match=r"checkpoint of step 2 was not saved .* repeat the command"):
            saver.finish()
    saver.save(3, model, optimizer, {})
    saver.finish()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000003", "step-000000001"]
