"""The run directory: done once, redone when a fingerprint changes, never mixed, never shared by two processes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from xmodel.errors import UserError
from xmodel.recipe.load import load_recipe
from xmodel.run import Run, Stage, carry_out, fingerprints, locked

RECIPE = """
name: toy
corpus:
  sources:
    - {name: world, reader: sandbox, paths: [en], weight: 1.0}
model: {preset: nano, context_length: 64}
pretrain: {steps: 20, warmup_steps: 2, global_batch: 4, micro_batch: 4}
"""


@pytest.fixture
def toy(tmp_path: Path) -> Run:
    (tmp_path / "toy.yaml").write_text(RECIPE)
    return Run(tmp_path / "run", load_recipe(tmp_path / "toy.yaml"))


def stages(log: list[str], tmp_path: Path) -> list[Stage]:
    def write(name: str) -> Any:
        def carry(run: Run, path: Path) -> dict[str, Any]:
            log.append(name)
            (path / "out.txt").write_text(name)
            return {"files": 1}

        return carry

    return [
        Stage("first", "first", (), lambda r: r.seed, write("first"), inputs=lambda r: list(tmp_path.glob("*.txt"))),
        Stage("second", "second", ("first",), lambda r: r.tokenizer.vocab_size, write("second")),
        Stage("train", "checkpoints", ("second",), lambda r: r.pretrain.peak_lr, write("train"), resumable=True),
    ]


ALL = ("first", "second", "train")


def test_done_once(toy: Run, tmp_path: Path) -> None:
    log: list[str] = []
    rows = carry_out(toy, stages(log, tmp_path), ALL)
    assert [row["status"] for row in rows] == ["done"] * 3
    rows = carry_out(toy, stages(log, tmp_path), ALL)
    assert [row["status"] for row in rows] == ["stands"] * 3
    assert log == ["first", "second", "train"]
    assert (toy.folder / "second" / "out.txt").read_text() == "second"
    described = json.loads((toy.folder / "run.json").read_text())
    assert described["versions"]["xmodel"]
    assert len(described["sessions"]) == 2
    assert load_recipe(toy.folder / "recipe.yaml") == toy.recipe


def test_a_lost_output_is_made_again(toy: Run, tmp_path: Path) -> None:
    log: list[str] = []
    carry_out(toy, stages(log, tmp_path), ALL)
    (toy.folder / "second" / "out.txt").unlink()
    (toy.folder / "second").rmdir()
    carry_out(toy, stages(log, tmp_path), ALL)
    assert log == ["first", "second", "train", "second"]


def test_fingerprints_follow_settings_inputs_and_what_is_built_on(toy: Run, tmp_path: Path) -> None:
    flow = stages([], tmp_path)
    before = fingerprints(flow, toy.recipe)
    reseeded = fingerprints(flow, replace(toy.recipe, seed=1))
    assert all(before[name] != reseeded[name] for name in ALL)
    other = replace(toy.recipe, tokenizer=replace(toy.recipe.tokenizer, vocab_size=500))
    changed = fingerprints(flow, other)
    assert [before[name] == changed[name] for name in ALL] == [True, False, False]
    (tmp_path / "input.txt").write_text("new")
    assert fingerprints(flow, toy.recipe)["first"] != before["first"]


def test_a_stage_refuses_to_build_on_what_does_not_stand(toy: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="second builds on first, which does not stand"):
        carry_out(toy, stages([], tmp_path), ("second",))


def test_checkpoints_are_never_thrown_away_by_an_edited_recipe(toy: Run, tmp_path: Path) -> None:
    log: list[str] = []
    carry_out(toy, stages(log, tmp_path), ALL)
    for edited in (
        replace(toy.recipe, pretrain=replace(toy.recipe.pretrain, peak_lr=1e-3)),
        replace(toy.recipe, seed=5),  # an early stage: refused before it is rebuilt
    ):
        with pytest.raises(UserError, match=r"made with other settings.*(peak_lr|seed)"):
            carry_out(replace(toy, recipe=edited), stages(log, tmp_path), ALL)
    assert log == ["first", "second", "train"]
    assert load_recipe(toy.folder / "recipe.yaml") == toy.recipe
    edited = replace(toy.recipe, pretrain=replace(toy.recipe.pretrain, peak_lr=1e-3))
    carry_out(replace(toy, recipe=edited), stages(log, tmp_path), ALL, redo="train")
    assert log == ["first", "second", "train", "train"]
    with pytest.raises(UserError, match=r"--redo teach: no such stage; the stages are first, second, train"):
        carry_out(toy, stages(log, tmp_path), ALL, redo="teach")


def test_settings_that_do_not_decide_the_outcome_may_change(toy: Run, tmp_path: Path) -> None:
    from xmodel.stages import STAGES

    other = replace(toy.recipe, pretrain=replace(toy.recipe.pretrain, log_every=1, save_every=7, micro_batch=2))
    assert fingerprints(STAGES, other) == fingerprints(STAGES, toy.recipe)
    longer = replace(toy.recipe, pretrain=replace(toy.recipe.pretrain, steps=21))
    assert fingerprints(STAGES, longer)["pretrain"] != fingerprints(STAGES, toy.recipe)["pretrain"]


def test_a_failed_stage_leaves_nothing_and_is_done_again(toy: Run, tmp_path: Path) -> None:
    log: list[str] = []
    flow = stages(log, tmp_path)
    broken = [replace(flow[0], carry_out=lambda run, path: (path / "half").write_text("x") and 1 / 0), *flow[1:]]
    with pytest.raises(ZeroDivisionError):
        carry_out(toy, broken, ALL)
    assert not (toy.folder / "first").exists()
    assert not list(toy.folder.glob("*.partial"))
    carry_out(toy, flow, ALL)
    assert log == ["first", "second", "train"]


HOLD = """
import sys
from pathlib import Path
from typing import Any
from xmodel.run import Run, locked
with locked(Run(Path(sys.argv[1]), None)):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", None)  # type: ignore[arg-type]
    command = [sys.executable, "-c", HOLD, str(run.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"process {holder.pid} on .* is working on this run"), locked(run):
            pass
        holder.kill()  # a lock dies with its process, however it dies
    with locked(run):
        pass
