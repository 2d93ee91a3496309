"""Kill -9 at random moments, also while a checkpoint is being written, also one rank of two: nothing changes.

benchmarks/chaos.py is the long form.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "chaos.py"


@pytest.mark.slow
def test_killed_at_random_it_ends_as_if_undisturbed(tmp_path: Path) -> None:
    runs = ["1 process", "2 processes, fsdp"]
    command = [sys.executable, str(BENCHMARK), "--kills", "3", "--steps", "20", "--runs", *runs]
    command += ["--out", str(tmp_path / "chaos.json")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "chaos.json").read_text())["runs"]
    assert [row["run"] for row in rows] == runs
    assert all(row["losses_equal"] and row["weights_equal"] for row in rows)
    assert sum(row["kill_all"] + row["kill_one"] + row["terminate_one"] for row in rows) >= 4
