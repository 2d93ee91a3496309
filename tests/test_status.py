"""`xmodel pretrain status`: true to the files, quick, and unnoticed by the run."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from command import TINY

from xmodel import cli as command_line
from xmodel.recipe.load import load_recipe
from xmodel.recipe.settings import Recipe
from xmodel.run import Run, locked
from xmodel.status import last_rows, line, loss_rises, owner, status, told


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "tiny.yaml").write_text(TINY)
    return load_recipe(tmp_path / "tiny.yaml", ["pretrain.steps=1000", "pretrain.save_every=100"])


def train_row(step: int, now: float, **other: Any) -> dict[str, Any]:
    row = {"kind": "train", "step": step, "tokens": 256 * step, "loss": 5 - 0.001 * step, "skipped_steps": 0}
    row |= {"tokens_per_second": 128.0, "mfu_palm": 0.5, "mfu_causal": 0.4, "data_wait": 0.01}
    return row | {"time": now - 2.0 * (400 - step)} | other  # the last of 400 steps was now; two seconds a step


def write_run(folder: Path, rows: list[dict[str, Any]], *, note: str = "running", lock: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "stages").mkdir(exist_ok=True)
    (folder / "stages" / "pretrain.json").write_text(json.dumps({"status": note}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / ".lock").write_text(lock)
    return folder


def ours() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}, since 2026-11-23 18:00:00"


def test_a_run_that_trains(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodel.status._alive", lambda pid: pid == os.getpid())
    now = time.time()
    rows: list[dict[str, Any]] = [{"kind": "start", "step": 0, "time": now - 800}]
    for step in range(10, 401, 10):
        rows.append(train_row(step, now))
        if step % 200 == 0:
            rows += [
                {"kind": "validation", "language": code, "step": step, "loss": 3.0, "bits_per_byte": 0.9, "time": now}
                for code in ("en", "zh")
            ]
    run = write_run(tmp_path / "run", rows, lock=ours())
    for step in (300, 400):
        folder = run / "checkpoints" / f"step-{step:09d}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"x" * 1000)
    found = status(run, recipe)
    assert (found["state"], found["step"], found["steps"]) == ("training", 400, 1000)
    assert found["seconds_left"] == pytest.approx(1200, abs=1)
    assert found["loss"] == pytest.approx(4.6)
    assert found["process"]["alive"] is True
    assert {code: row["step"] for code, row in found["validation"].items()} == {"en": 400, "zh": 400}
    assert found["checkpoint"]["step"] == 400
    assert found["checkpoint_bytes"] == 2000
    assert found["warnings"] == []
    text = told(found)
    assert "400 of 1,000 (40.0%)" in text
    assert "20m00s" in text
    assert line(found).startswith("training: step 400/1,000, loss 4.6000, 128 tokens/s, 20m00s left")
    json.dumps(found)


def test_time_left_is_of_this_process_alone(tmp_path: Path, recipe: Recipe) -> None:
    """A run that stood still for a day between two processes is not a slow run."""
    now = time.time()
    old = [train_row(step, now - 86_400) for step in range(10, 201, 10)]
    new = [train_row(step, now) for step in range(210, 401, 10)]
    rows = [*old, {"kind": "start", "step": 200, "time": now}, *new]
    found = status(write_run(tmp_path / "run", rows, lock=ours()), recipe)
    assert found["seconds_left"] == pytest.approx(1200, abs=1)


def test_what_looks_wrong_is_said(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodel.status._alive", lambda pid: True)
    now = time.time()
    rows = [
        train_row(
            step,
            now - 7200,
            data_wait=0.2,
            skipped_steps=step // 20,
            loss=3.0 + (0.5 if step > 200 else 0) + 0.01 * math.sin(step),
        )
        for step in range(10, 401, 10)
    ]
    found = status(write_run(tmp_path / "run", rows, lock=ours()), recipe)
    text = "\n".join(found["warnings"])
    for words in (
        "no progress: the last log line is 2h00m old, where one comes every 20s",
        "loss rises: 2.9997 -> 3.4999",
        "20%",
        "steps were skipped",
        "400 steps old",
    ):
        assert words in text, words
    monkeypatch.setattr("xmodel.status._alive", lambda pid: False)
    found = status(tmp_path / "run", recipe)
    assert found["state"] == "stopped"
    assert "no process works on it" in found["warnings"][0]


def test_a_disk_without_room_is_said(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", [train_row(400, time.time())])
    (run / "checkpoints" / "step-000000400").mkdir(parents=True)
    (run / "checkpoints" / "step-000000400" / "model.safetensors").write_bytes(b"x" * 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1500))  # type: ignore[attr-defined]
    assert "room for 1.5 checkpoints" in "\n".join(status(run, recipe)["warnings"])


def test_noise_is_no_rise() -> None:
    falling = [5 - 0.01 * index + 0.1 * math.sin(index * 1.7) for index in range(100)]
    assert loss_rises(falling) is None
    assert loss_rises([3 + 0.1 * math.sin(index * 1.7) for index in range(100)]) is None
    assert loss_rises(falling[:39]) is None
    assert loss_rises([*falling, *[falling[-1] + 0.5] * 20]) is not None


def test_the_end_of_a_long_file_is_read_quickly(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with open(path, "w") as stream:
        stream.write(json.dumps({"kind": "start", "step": 0, "time": 0.0}) + "\n")
        for step in range(100_000):
            stream.write(json.dumps(train_row(step, 0.0)) + "\n")
        stream.write('{"kind": "train", "step": 100000, "lo')  # being written
    started = time.perf_counter()
    found = last_rows(path)
    assert time.perf_counter() - started < 0.5
    assert [row["step"] for row in found["train"]] == list(range(99_880, 100_000))
    assert found["start"]["step"] == 0
    assert last_rows(tmp_path / "none") == {"train": [], "start": {}, "validation": {}}


def test_the_lock_names_its_owner_and_is_not_touched(tmp_path: Path, recipe: Recipe) -> None:
    run = Run(tmp_path, recipe)
    assert owner(tmp_path / ".lock") is None
    with locked(run):
        process = owner(tmp_path / ".lock")
        assert process is not None
        assert (process["pid"], process["host"]) == (os.getpid(), socket.gethostname())
    assert owner(tmp_path / ".lock") is None
    (tmp_path / ".lock").write_text("process 1 on another-machine, since 2026-11-23 18:00:00")
    elsewhere = owner(tmp_path / ".lock")
    assert elsewhere is not None
    assert elsewhere["alive"] is None


def test_beside_a_real_training(run_copy: Path) -> None:
    """Not started, alive while it trains, asked for a profile by a second command, done at the end."""

    def command(*arguments: object) -> str:
        written = ["pretrain", *map(str, arguments)]
        return CliRunner().invoke(command_line.cli, written, catch_exceptions=False).stdout

    def state() -> dict[str, Any]:
        return json.loads(command("status", run_copy, "--json"))

    shutil.rmtree(run_copy / "checkpoints")
    (run_copy / "stages" / "pretrain.json").unlink()
    (run_copy / "metrics.jsonl").unlink()
    assert state()["state"] == "not started"
    settings = ["pretrain.steps=200", "pretrain.eval_every=0", "pretrain.save_every=100", "pretrain.norms_every=50"]
    training = subprocess.Popen(
        [sys.executable, "-m", "xmodel", "pretrain", str(run_copy), *settings, "evaluate.limit_during=0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    found = state()
    while found["step"] < 2 and training.poll() is None:
        time.sleep(0.02)
        found = state()
    assert command(run_copy, "--profile", "2") == ""
    errors = training.communicate(timeout=200)[1]
    assert training.returncode == 0, errors
    assert found["state"] == "training"
    assert found["process"]["pid"] == training.pid
    assert found["process"]["alive"]
    ended = state()
    assert (ended["state"], ended["step"], ended["warnings"]) == ("done", 200, [])
    operators = (run_copy / "profile" / "operators.txt").read_text()
    assert re.match(r"Steps \d+ to \d+ on cpu", operators)
    assert "AdamW.step" in operators
    assert (run_copy / "profile" / "trace.json").stat().st_size > 10_000
    rows = [json.loads(text) for text in (run_copy / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "layers"] == [50, 100, 150, 200]
    last = [row for row in rows if row["kind"] == "train"][-1]
    assert last["update_norm"] > 0
    assert last["memory_peak"] > 1e7
    assert 0 <= last["data_wait"] < 1


def test_status_loads_nothing_heavy(finished_run: Path) -> None:
    code = (
        "import sys; sys.argv = ['xmodel', 'pretrain', 'status', sys.argv[1]]\n"
        "from xmodel.cli import cli\ncli.main(standalone_mode=False)\n"
        "print([name for name in ('torch', 'numpy', 'pyarrow') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code, finished_run], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
