"""Several ranks train as one: DDP and FSDP2, other world sizes on resume, faults of one rank. Real processes, gloo."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

DRIVER = Path(__file__).with_name("ranks.py")
ALONE = {"world": 1, "settings": {}}
STOPPED = {"stop": True, "codes": [75]}


def carry_out(folder: Path, *runs: dict[str, Any]) -> str:
    """The runs one after another; `folder` of a run is below `folder`. Returns all that was said."""
    job = {"tokens": str(folder / "tokens"), "runs": [run | {"folder": str(folder / run["folder"])} for run in runs]}
    (folder / "job.json").write_text(json.dumps(job))
    command = [sys.executable, str(DRIVER), str(folder / "job.json")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr
    return result.stderr + result.stdout


def trace(folder: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if row["kind"] == "train"]


def batches(folder: Path) -> dict[int, list[str]]:
    """Digests of the rows of every batch that was read, over all ranks; reading ahead may repeat one."""
    found: dict[int, set[str]] = {}
    for file in folder.glob("batches-*.jsonl"):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            found.setdefault(row["batch"], set()).update(row["rows"])
    return {number: sorted(rows) for number, rows in found.items()}


def weights(folder: Path) -> dict[str, Any]:
    return load_file(sorted((folder / "checkpoints").glob("step-*"))[-1] / "model.safetensors")


def close(one: Path, other: Path) -> None:
    for (step, loss), (same, theirs) in zip(trace(one), trace(other), strict=True):
        assert step == same
        assert theirs == pytest.approx(loss, rel=2e-5), step
    theirs = weights(other)
    for name, tensor in weights(one).items():
        assert (tensor - theirs[name]).abs().max() < 2e-4, name


CHAINS = {
    "ddp": [(1, "ddp"), (2, "ddp"), (4, "ddp"), (3, "ddp"), (1, "ddp")],
    "fsdp": [(1, "ddp"), (2, "fsdp"), (4, "fsdp"), (3, "fsdp"), (1, "ddp")],
    "across": [(2, "zero2"), (3, "ddp"), (2, "zero2")],
}


@pytest.mark.slow
def test_world_size_and_parallelism_may_change_at_every_resume(tmp_path: Path) -> None:
    """Batches identical, the loss to float tolerance: each chain is stopped and goes on as something else."""
    runs = [ALONE | {"folder": "alone"}]
    for name, chain in CHAINS.items():
        for place, (world, parallel) in enumerate(chain):
            last = place == len(chain) - 1
            stop = {} if last else STOPPED
            runs.append({"folder": name, "world": world, "settings": {"parallel": parallel}} | stop)
    said = carry_out(tmp_path, *runs)
    assert said.count("goes on from step-") == 10
    assert len(trace(tmp_path / "alone")) == 16
    for name in CHAINS:
        assert batches(tmp_path / name) == batches(tmp_path / "alone")
        close(tmp_path / "alone", tmp_path / name)


def test_what_is_not_finite_on_one_rank_is_skipped_by_all(tmp_path: Path) -> None:
    """Of four ranks' passes one is spoilt: a loss that is NaN, or an infinite one whose gradients are finite."""
    faults = {"4": "nan", "7": "inf"}  # passes of the last rank: 0 is the dry run, then 3 a step
    runs = [
        {"folder": name, "world": 4, "faults": faults, "settings": {"steps": 5, "parallel": name}}
        for name in ("ddp", "fsdp", "zero2")
    ]
    carry_out(tmp_path, *runs)
    for name in ("ddp", "fsdp", "zero2"):
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert [row["skipped_steps"] for row in rows if row["kind"] == "train"][-1] == 2
        assert all(tensor.isfinite().all() for tensor in weights(tmp_path / name).values())
        close(tmp_path / "ddp", tmp_path / name)


def test_after_spikes_it_goes_back_and_leaves_out_the_data_since(tmp_path: Path) -> None:
    """Steps 9 and 10 are spikes: back to step 8, and on with what would have been step 11. Killed or not."""
    settings = {
        "steps": 14,
        "save_every": 4,
        "spike_sigma": 6.0,
        "spike_window": 4,
        "spike_rewind": 2,
        "global_batch": 4,
    }
    faults = {str(4 * step + index): "spike" for step in (8, 9) for index in range(1, 5)}
    run = {"world": 1, "settings": settings | {"eval_every": 11}, "faults": faults}
    after = {"world": 1, "settings": settings | {"eval_every": 11}}
    said = carry_out(
        tmp_path,
        run | {"folder": "whole"},
        run | {"folder": "stopped"} | STOPPED,  # at step 12: the pass numbers of the spikes are behind it
        after | {"folder": "stopped"},
    )
    assert "steps were skipped in a row up to step 10; back to 8, without the data since" in said
    for name in ("whole", "stopped"):
        folder = tmp_path / name
        state = json.loads((folder / "checkpoints" / "step-000000014" / "state.json").read_text())
        assert state["left_out"] == [[8, 2]]
        read = [json.loads(line)["batch"] for line in (folder / "batches-0.jsonl").read_text().splitlines()]
        assert set(read) == set(range(16))
        assert [step for step, _ in trace(folder)] == list(range(1, 15))
    assert trace(tmp_path / "whole") == trace(tmp_path / "stopped")
    theirs = weights(tmp_path / "stopped")
    assert all(tensor.equal(theirs[name]) for name, tensor in weights(tmp_path / "whole").items())


def test_a_rank_that_hangs_is_given_up_after_a_while(tmp_path: Path) -> None:
    settings = {"steps": 100_000, "timeout_minutes": 0.1, "warmup_steps": 1}
    said = carry_out(tmp_path, {"folder": "run", "world": 2, "settings": settings, "hang": True})
    assert '{"code": 1}' in said
    assert (
        "MachineError: rank 0: another training process died, or did not answer for pretrain.timeout_minutes = 0.1"
        in said
    )
    assert "Traceback" not in said
