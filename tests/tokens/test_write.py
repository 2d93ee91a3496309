"""The tokens stage: the same bytes for any number of threads and after any kill; what stands is not done again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from handmade import counted, opened, serialised

from xmodel.errors import MachineError
from xmodel.recipe.settings import Tokens as Settings
from xmodel.tokenizer.codec import Tokenizer
from xmodel.tokens import write
from xmodel.tokens.shards import verify

TEXTS = [f"The {'very ' * (i % 23)}old house number {i}.\n第{i}个{'旧' * (i % 7)}房子是红色的。\n" for i in range(1800)]
SHARD = 4000
GROUP = 90


def write_corpus(folder: Path) -> Path:
    for name, texts in {"train/a": TEXTS, "train/b": TEXTS[:700], "validation/zh": TEXTS[::9]}.items():
        path = folder / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": texts, "id": texts}), path, row_group_size=GROUP)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with corpus/, tokenizer/ and the undisturbed tokens/."""
    home = tmp_path_factory.mktemp("home")
    opened(home / "tokenizer", serialised(counted(TEXTS[::5], 300) | {"\n": -4.0}))
    write_corpus(home / "corpus")
    tokenizer = Tokenizer.load(home / "tokenizer")
    write.write_tokens(home / "corpus", tokenizer, Settings(shard_tokens=SHARD, workers=1), home / "tokens")
    assert not list(home.glob(".tokens*")), "the temporary folder is gone"
    return home


def carry_out(home: Path, work: Path, folder: Path, **settings: Any) -> dict[str, Any]:
    chosen = replace(Settings(shard_tokens=SHARD, workers=2), **settings)
    return write.write_tokens(home / "corpus", Tokenizer.load(home / "tokenizer"), chosen, folder, work)


@pytest.mark.parametrize("workers", [0, 2, 5])
def test_any_number_of_threads_gives_the_same_bytes(home, tmp_path, workers):
    manifest = carry_out(home, tmp_path / "work", tmp_path / "tokens", workers=workers)
    assert tree(tmp_path / "tokens") == tree(home / "tokens")
    assert len(manifest["train"]["a"]["shards"]) > 10
    verify(tmp_path / "tokens")


def test_row_groups_do_not_decide_the_shards(home, tmp_path):
    for path in sorted((home / "corpus").rglob("*.parquet")):
        copy = tmp_path / "corpus" / path.relative_to(home / "corpus")
        copy.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pq.read_table(path), copy, row_group_size=1000, compression="none")
    tokenizer = Tokenizer.load(home / "tokenizer")
    write.write_tokens(tmp_path / "corpus", tokenizer, Settings(shard_tokens=SHARD), tmp_path / "tokens")
    assert tree(tmp_path / "tokens") == tree(home / "tokens")


class Stopped(Exception):
    pass


def test_shards_that_stand_are_not_done_again(home, tmp_path, monkeypatch, capsys):
    encode, begun = write._encode, []

    def fails_later(group, **settings):
        begun.append((group.source.path.stem, group.number))
        if group.source.path.stem == "b" and group.number == 4:
            raise Stopped
        return encode(group, **settings)

    monkeypatch.setattr(write, "_encode", fails_later)
    with pytest.raises(Stopped):
        carry_out(home, tmp_path / "work", tmp_path / "tokens", workers=1)
    assert not list((tmp_path / "work").rglob("*.partial")), "nothing half-written"
    standing = {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "train").iterdir()}
    assert len(standing) > 30
    assert ("b", 4) in begun

    begun.clear()
    monkeypatch.setattr(write, "_encode", lambda group, **settings: begun.append(group) or encode(group, **settings))
    carry_out(home, tmp_path / "work", tmp_path / "tokens")
    assert {group.source.path.stem for group in begun} == {"b", "zh"}
    assert min(group.number for group in begun if group.source.path.stem == "b") >= 1
    assert {path: path.stat().st_mtime_ns for path in standing} == standing
    assert tree(tmp_path / "tokens") == tree(home / "tokens")
    told = capsys.readouterr().err
    assert "shards stand already" in told
    assert "MB of text" in told


def test_work_for_other_inputs_is_thrown_away(home, tmp_path):
    few = 40_000
    carry_out(home, tmp_path / "work", tmp_path / "0", shard_tokens=few)
    carry_out(home, tmp_path / "work", tmp_path / "1", shard_tokens=few, bos=False)
    assert tree(tmp_path / "0") != tree(tmp_path / "1")
    carry_out(home, tmp_path / "work", tmp_path / "2", shard_tokens=few)
    assert tree(tmp_path / "0") == tree(tmp_path / "2")

    tokenizer, settings = Tokenizer.load(home / "tokenizer"), Settings(shard_tokens=few)
    shard = tmp_path / "work/train/a-00000.bin"
    for fingerprint, redone in (("", False), ("other", True)):
        made = shard.stat().st_mtime_ns
        folder = tmp_path / f"fingerprint{fingerprint}"
        write.write_tokens(home / "corpus", tokenizer, settings, folder, tmp_path / "work", fingerprint)
        assert (shard.stat().st_mtime_ns > made) == redone
        assert tree(folder) == tree(tmp_path / "0")

    write_corpus(tmp_path / "corpus")
    texts = [text.upper() for text in TEXTS[:700]]
    pq.write_table(pa.table({"text": texts}), tmp_path / "corpus/train/b.parquet", row_group_size=GROUP)
    write.write_tokens(tmp_path / "corpus", tokenizer, settings, tmp_path / "again", tmp_path / "work", "other")
    write.write_tokens(tmp_path / "corpus", tokenizer, settings, tmp_path / "fresh")
    assert tree(tmp_path / "again") == tree(tmp_path / "fresh")


class Plain:
    """The interface that every tokenizer has, and no more."""

    vocab_size, bos_id, eos_id = 256, 7, 9
    pieces = [bytes([n]) for n in range(256)]  # noqa: RUF012
    piece_bytes = np.ones(256, np.uint16)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.uint16) for text in texts]


def test_any_other_tokenizer_will_do(home, tmp_path):
    tokenizer: Any = Plain()
    manifest = write.write_tokens(home / "corpus", tokenizer, Settings(), tmp_path / "tokens")
    (shard,) = manifest["train"]["b"]["shards"]
    ids = np.fromfile(tmp_path / "tokens" / shard["file"], "<u2")
    text = b"".join(b"\x07" + text.encode() + b"\x09" for text in TEXTS[:700])
    assert ids.astype(np.uint8).tobytes() == text


def test_without_hard_links(home, tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refused)
    carry_out(home, tmp_path / "work", tmp_path / "tokens")
    assert tree(tmp_path / "tokens") == tree(home / "tokens")


def test_a_damaged_corpus_is_named(home, tmp_path):
    write_corpus(tmp_path / "corpus")
    path = tmp_path / "corpus/train/b.parquet"
    whole = path.read_bytes()
    tokenizer = Tokenizer.load(home / "tokenizer")
    for damaged in (whole[:-20], b"", whole[:4] + bytes(4000) + whole[4004:]):
        path.write_bytes(damaged)
        with pytest.raises(MachineError, match=r"b\.parquet: damaged .* run the corpus stage again"):
            write.write_tokens(tmp_path / "corpus", tokenizer, Settings(), tmp_path / "tokens")


SLOWLY = """
import sys, time
from pathlib import Path
from xmodel.recipe.settings import Tokens
from xmodel.tokenizer.codec import Tokenizer
from xmodel.tokens import write

home, here, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
encode, whole = write._encode, write._write_shard
write._encode = lambda group, **settings: time.sleep(0.01) or encode(group, **settings)
write._write_shard = lambda *arguments: whole(*arguments) or time.sleep(0.005)
tokenizer = Tokenizer.load(home / "tokenizer")
tokenizer.encode("ready")
print("ready", flush=True)
settings = Tokens(shard_tokens=4000, workers=workers)
write.write_tokens(home / "corpus", tokenizer, settings, here / "tokens", here / "work")
"""


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_kill_9_at_random_moments_changes_nothing(home, tmp_path, workers):
    chance = random.Random(workers)
    stood, code = [], None
    for attempt in range(4):
        command = [sys.executable, "-c", SLOWLY, home, tmp_path, str(workers)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            if attempt < 3:
                notes = chance.randint(0, 6) + (stood[-1] if stood else 0)
                while child.poll() is None and len(list((tmp_path / "work").rglob("*.json"))) < notes:
                    time.sleep(0.001)
                time.sleep(chance.uniform(0, 0.02))
                child.kill()
            code = child.wait(timeout=120)
        assert code in (0, -signal.SIGKILL)
        stood.append(len(list((tmp_path / "work").rglob("*.json"))))
        if code == 0:
            break
    assert code == 0
    assert stood == sorted(stood)
    assert tree(tmp_path / "tokens") == tree(home / "tokens")
