"""Nothing half-written is ever read."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest

from xmodel.errors import MachineError
from xmodel.files import atomic_folder, atomic_write, checksum, read_json, write_json


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"名": 1})
    with pytest.raises(RuntimeError), atomic_write(path) as stream:
        stream.write(b"half")
        raise RuntimeError
    assert read_json(path) == {"名": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_an_error_leaves_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for text in ("one", "two"):
        with atomic_folder(path) as partial:
            (partial / "file").write_text(text)
    with pytest.raises(RuntimeError), atomic_folder(path) as partial:
        (partial / "file").write_text("half")
        raise RuntimeError
    assert (path / "file").read_text() == "two"
    assert os.listdir(tmp_path) == ["folder"]


def _write_for_ever(path: Path) -> None:
    number = 0
    while True:
        number += 1
        with atomic_folder(path) as partial:
            for part in range(3):
                (partial / str(part)).write_text(f"{number}" * 1000)


def test_kill_9_never_leaves_a_mix(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for seed in range(3):
        process = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(path,))
        process.start()
        time.sleep(0.05 + random.Random(seed).random() * 0.1)
        process.kill()
        process.join()
        if path.exists():  # between the two renames there may be none, never a mix
            assert len({(path / str(part)).read_text() for part in range(3)}) == 1


def test_damage_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"half":')
    with pytest.raises(MachineError, match=r"a\.json: damaged"):
        read_json(tmp_path / "a.json")
    with pytest.raises(MachineError, match=r"b\.json: missing"):
        read_json(tmp_path / "b.json")


def test_checksum_is_blake2b_128(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert checksum(tmp_path / "empty") == "cae66941d9efbd404e4d88758ea67670"
