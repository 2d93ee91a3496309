"""One small finished run, made once by the real command line and shared by all test processes."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest
from command import TINY, xmodel

os.environ.setdefault("OMP_NUM_THREADS", "1")  # xdist runs a worker per core
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("RANK", None)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with every stage done. Read only: copy it before changing anything."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "finished"
    with open(shared / "finished.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "report.html").exists():
            folder.mkdir(exist_ok=True)
            (shared / "tiny.yaml").write_text(TINY)
            result = xmodel("run", shared / "tiny.yaml", "--dir", folder)
            assert result.returncode == 0, result.stderr
            (shared / "finished.out").write_text(result.stdout)
    return folder


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    return Path(shutil.copytree(finished_run, tmp_path / "run", symlinks=True))
