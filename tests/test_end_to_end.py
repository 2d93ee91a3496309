"""The main job through the real command line: a run from text to report, repeated, killed, stopped, and misused."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import TINY, xmodel
from tiny import TIMELESS

OUTPUTS = ("corpus", "tokenizer", "tokens", "checkpoints", "eval", "export", "report.html")


def tree(folder: Path, *parts: str) -> dict[str, bytes]:
    """Every file's bytes under the given parts of a run directory."""
    files = [file for part in parts for file in sorted((folder / part).rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_a_run_leaves_everything_it_promises(finished_run: Path) -> None:
    for name in (*OUTPUTS, "recipe.yaml", "run.json", "metrics.jsonl"):
        assert (finished_run / name).exists(), name
    table = (finished_run.parent / "finished.out").read_text()
    assert "held-out bits/byte (zh)" in table
    assert "chance 25.0" in table
    rows = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if row["kind"] == "train"]
    assert steps == list(range(1, 41))
    losses = [row["loss"] for row in rows if row["kind"] == "validation" and row["language"] == "en"]
    assert len(losses) == 3
    assert losses[-1] < losses[0] - 1
    assert not list(finished_run.rglob("*.partial"))


def test_the_second_time_every_stage_stands(run_copy: Path) -> None:
    before = tree(run_copy, *OUTPUTS[:-1])
    result = xmodel("run", run_copy, "--json")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert {row["status"] for row in answer["stages"]} == {"stands"}
    assert answer["scores"]
    assert tree(run_copy, *OUTPUTS[:-1]) == before


def test_the_same_recipe_gives_the_same_run(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    result = xmodel("run", tmp_path / "tiny.yaml", "--dir", tmp_path / "again")
    assert result.returncode == 0, result.stderr
    parts = ("corpus", "tokenizer", "tokens", "checkpoints")
    assert tree(tmp_path / "again", *parts) == tree(finished_run, *parts)


def trace(folder: Path) -> list[tuple[object, ...]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["kind"] != "start"]  # one for every process that trained
    return [tuple((key, value) for key, value in row.items() if key not in TIMELESS) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_kill_9_at_random_moments_changes_nothing(finished_run: Path, tmp_path: Path, seed: int) -> None:
    """Bit-identical losses and weights after several kills, from whatever was on disk at that moment."""
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").unlink()
    (run / "stages" / "pretrain.json").unlink()
    random_ = random.Random(seed)
    kills = 0
    while kills < 3:
        process = subprocess.Popen(
            [sys.executable, "-m", "xmodel", "pretrain", str(run)], stderr=subprocess.PIPE, text=True
        )
        rows = sum(1 for _ in open(run / "metrics.jsonl")) if (run / "metrics.jsonl").exists() else 0
        target = rows + random_.randint(1, 12)
        while process.poll() is None:  # wait for a random row of the metrics, then for a random instant
            if (run / "metrics.jsonl").exists() and sum(1 for _ in open(run / "metrics.jsonl")) >= target:
                time.sleep(random_.random() * 0.05)
                break
            time.sleep(0.005)
        process.kill()
        process.communicate()
        kills += 1
    result = xmodel("pretrain", run)
    assert result.returncode == 0, result.stderr
    assert trace(run) == trace(finished_run)
    assert tree(run, "checkpoints") == tree(finished_run, "checkpoints")


def test_sigterm_saves_and_exits_75_and_the_same_command_goes_on(finished_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").unlink()
    process = subprocess.Popen(
        [sys.executable, "-m", "xmodel", "pretrain", str(run)], stderr=subprocess.PIPE, text=True
    )
    while not (run / "metrics.jsonl").exists() or '"kind": "train"' not in (run / "metrics.jsonl").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "which is saved; the same command goes on" in errors
    assert "Traceback" not in errors
    result = xmodel("pretrain", run)
    assert result.returncode == 0, result.stderr
    assert trace(run) == trace(finished_run)


@pytest.mark.slow
def test_a_run_killed_in_every_stage_ends_as_if_undisturbed(finished_run: Path, tmp_path: Path) -> None:
    """Kill -9 shortly after each stage has begun; each time the same command goes on."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    command = [sys.executable, "-m", "xmodel", "run", str(tmp_path / "tiny.yaml"), "--dir", str(tmp_path / "run")]
    for stage in ("corpus", "tokenizer", "tokens", "pretrain", "evaluate", "export", "report"):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(f"{stage}: starts"):
                time.sleep(random.Random(stage).random() * 0.3)
                break
        process.kill()
        process.communicate()
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    parts = ("corpus", "tokenizer", "tokens", "checkpoints")
    assert tree(tmp_path / "run", *parts) == tree(finished_run, *parts)
    assert trace(tmp_path / "run") == trace(finished_run)
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_a_damaged_newest_checkpoint_is_passed_over_aloud(run_copy: Path) -> None:
    newest = sorted((run_copy / "checkpoints").glob("step-*"))[-1]
    weights = newest / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(bytes(data))
    undamaged = trace(run_copy)
    (run_copy / "stages" / "pretrain.json").unlink()
    result = xmodel("pretrain", run_copy)
    assert result.returncode == 0, result.stderr
    assert f"checkpoint {newest.name} is damaged (model.safetensors does not have its checksum)" in result.stderr
    assert trace(run_copy) == undamaged


@pytest.mark.slow
def test_two_processes_train_as_one_though_one_is_killed(finished_run: Path, tmp_path: Path) -> None:
    """Real torchrun processes over gloo, FSDP2: the same batches, the loss to float tolerance, one writer. When one is
    killed both are started again, and go on by themselves."""
    psutil = pytest.importorskip("psutil")
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").unlink()
    settings = ["pretrain.parallel=fsdp", "pretrain.max_restarts=1"]
    command = [sys.executable, "-m", "xmodel", "pretrain", str(run), *settings, "--processes", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").read_text().count('"train"') < 18:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    workers = [child for child in psutil.Process(process.pid).children(recursive=True) if "--worker" in child.cmdline()]
    ranks = [child for child in workers if "torch.distributed.run" not in child.cmdline()]
    assert len(ranks) == 2
    ranks[1].kill()
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors
    assert errors.count("pretrain: goes on from step-") == 1, errors
    for one, other in zip(trace(finished_run), trace(run), strict=True):
        for (key, value), (_, theirs) in zip(one, other, strict=True):
            if isinstance(value, float) and not key.startswith("accuracy") and not key.endswith("stderr"):
                assert theirs == pytest.approx(value, rel=2e-3), (key, one, other)


def test_generate_streams_and_is_repeatable(finished_run: Path) -> None:
    options = ["--max-new-tokens", "12", "--temperature", "0.9", "--top-k", "40", "--seed", "5"]
    first = xmodel("generate", finished_run, "中国的首都是", *options)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("中国的首都是")
    assert "\ufffd" not in first.stdout
    assert xmodel("generate", finished_run, "中国的首都是", *options).stdout == first.stdout


MISTAKES = [  # what was changed in the recipe, what the one line must say
    (("pretrain.peak_lrr: 3e-3",), "did you mean pretrain.peak_lr"),
    (("tokenizer.vocab_size=70000",), "65,?536"),
    (("tokenizer.vocab_size=20000",), "vocab_size"),
    (("corpus.sources.world-en.weight=0.5",), "1.1"),
    (("corpus.sources.world-en.reader=jsonl", "corpus.sources.world-en.paths=[nowhere/*.jsonl]"), "nowhere"),
    (("model.context_length=100k",), "world-"),
    (("pretrain.micro_batch=3",), "micro_batch"),
]


@pytest.mark.parametrize(("overrides", "expected"), MISTAKES, ids=[case[0][0].split("=")[0] for case in MISTAKES])
def test_a_mistake_gets_one_clear_line_and_loses_nothing(
    overrides: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    import re

    (tmp_path / "tiny.yaml").write_text(TINY)
    result = xmodel(
        "run", tmp_path / "tiny.yaml", "--dir", tmp_path / "run", *[o.replace(": ", "=") for o in overrides]
    )
    assert result.returncode == 2, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert re.search(expected, last), result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.rglob("*.partial"))


def test_help_of_every_command_has_examples() -> None:
    import click

    from xmodel.cli import cli

    def walk(command: click.Command, path: list[str]) -> None:
        if isinstance(command, click.Group):
            for name, child in command.commands.items():
                walk(child, [*path, name])
        if not command.hidden and path:
            text = command.get_help(click.Context(command))
            assert f"xmodel {path[0]}" in text, path
            assert "Examples:" in text, path

    walk(cli, [])


def test_a_mistyped_command_is_answered_with_the_right_one() -> None:
    result = xmodel("pretrian")
    assert result.returncode == 2
    assert "Did you mean 'pretrain'?" in result.stderr


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs root to mount a small disk")
def test_a_full_disk_is_one_line_and_nothing_is_half_written(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("this sandbox does not allow mounts")
    try:
        (tmp_path / "tiny.yaml").write_text(TINY)
        result = xmodel("run", tmp_path / "tiny.yaml", "--dir", disk / "run")
        assert result.returncode == 1, result.stderr
        assert "disk is full" in result.stderr.strip().splitlines()[-1]
        assert "Traceback" not in result.stderr
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        result = xmodel("corpus", tmp_path / "tiny.yaml", "--dir", disk / "run")
        assert result.returncode == 0, result.stderr
        assert not list(disk.rglob("*.partial"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
