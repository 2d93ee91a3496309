"""The step of the loop itself: no waiting for the device, options that change how but not what, data read ahead."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny import texts, train_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode

from xmodel.console import read_json_lines
from xmodel.errors import UserError
from xmodel.pretrain import loop
from xmodel.pretrain.data import TrainingData, prefetched
from xmodel.pretrain.parallel import Place
from xmodel.recipe.settings import Corpus, Model, Pretrain, Recipe, Source, Tokens
from xmodel.tokens.write import write_tokens

# What makes the host wait for a GPU: reading a value, and what has a size that depends on values.
WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique", "aten::_unique2")
SHAPE = Model(layers=2, heads=4, kv_heads=2, hidden=32, ffn=48, context_length=32, position_table=32, vocab_size=420)
SETTINGS = Pretrain(
    steps=8, global_batch=4, micro_batch=2, warmup_steps=2, eval_every=0, eval_tokens=64, save_every=100, log_every=100
)
RECIPE = Recipe(
    model=SHAPE,
    corpus=Corpus(sources=[Source(name="text", weight=1.0)]),
    pretrain=replace(SETTINGS, device="cpu", compile="off", trackers=[]),
)


@pytest.fixture(scope="module")
def tokens_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("step")
    tokenizer = train_tokenizer(root / "tokenizer")
    for name, rows in (("train/text", texts()), ("validation/en", texts()[::9])):
        path = root / f"corpus/{name}.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table({"id": [str(i) for i in range(len(rows))], "text": rows}), path)
    (root / "tokens").mkdir()
    write_tokens(root / "corpus", tokenizer, Tokens(), root / "tokens")
    return root / "tokens"


def train(folder: Path, tokens_folder: Path, **changes: Any) -> list[dict[str, Any]]:
    recipe = replace(RECIPE, pretrain=replace(RECIPE.pretrain, **changes))
    folder.mkdir(exist_ok=True)
    loop.pretrain(recipe, tokens_folder, folder, lambda model: [])
    return read_json_lines(folder / "metrics.jsonl")


def losses(rows: list[dict[str, Any]]) -> list[float]:
    return [row["loss"] for row in rows if row["kind"] == "train"]


class Waits(TorchDispatchMode):
    """Notes the operators by which the host would wait, while `watching`."""

    def __init__(self) -> None:
        super().__init__()
        self.watching, self.operators, self.waits = False, 0, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += self.watching
        if self.watching and func.name().split(".")[0] in WAITING:
            self.waits.append(func.name())
        return func(*args, **(kwargs or {}))


def between_steps(monkeypatch: pytest.MonkeyPatch, enter: Callable[[], None], leave: Callable[[], None]) -> None:
    """Call `enter` when step 3 begins and `leave` when step 7 does, none of which logs, evaluates or saves."""
    real = loop.learning_rate

    def learning_rate(step: int, settings: Pretrain) -> float:
        if step == 3:
            enter()
        if step == 7:
            leave()
        return real(step, settings)

    monkeypatch.setattr(loop, "learning_rate", learning_rate)


def test_no_step_waits_for_the_device(tokens_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU by inspection: no operator that hands a value to the host runs in a step."""
    waits = Waits()
    between_steps(monkeypatch, lambda: setattr(waits, "watching", True), lambda: setattr(waits, "watching", False))
    with waits:
        train(tmp_path / "run", tokens_folder)
    assert waits.operators > 4 * 100
    assert waits.waits == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_step_waits_for_the_gpu(tokens_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    between_steps(
        monkeypatch,
        lambda: torch.cuda.set_sync_debug_mode("error"),
        lambda: torch.cuda.set_sync_debug_mode("default"),
    )
    try:
        train(tmp_path / "run", tokens_folder, device="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_watch_sees_a_wait() -> None:
    with Waits() as waits:
        waits.watching = True
        torch.ones(()).item()
        assert not torch.zeros(3).nonzero().numel()
    assert waits.waits == ["aten::_local_scalar_dense", "aten::nonzero"]


def test_options_of_memory_do_not_change_the_run(tokens_folder: Path, tmp_path: Path) -> None:
    """Activation checkpointing and a found micro-batch: the same losses, and what was chosen is in the metrics."""
    plain = train(tmp_path / "plain", tokens_folder, log_every=1, micro_batch=4)
    found = train(tmp_path / "found", tokens_folder, log_every=1, micro_batch=0)
    full = train(tmp_path / "full", tokens_folder, log_every=1, micro_batch=4, activation_checkpointing="full")
    assert losses(plain) == losses(found) == losses(full)
    assert len(losses(plain)) == 8
    starts = [next(row for row in rows if row["kind"] == "start") for rows in (plain, found, full)]
    assert [row["micro_batch"] for row in starts] == [4, 4, 4]
    assert [row["activation_checkpointing"] for row in starts] == ["none", "none", "full"]
    assert {row["attention"] for row in starts} == {"blocked"}
    assert gc.isenabled()


def test_what_the_device_cannot_do_is_refused(tokens_folder: Path, tmp_path: Path) -> None:
    for change, message in (({"precision": "fp8"}, "precision: fp8"), ({"attention": "cudnn"}, "attention: cudnn")):
        with pytest.raises(UserError, match=message):
            train(tmp_path / "run", tokens_folder, **change)


def test_batches_come_in_order_and_one_ahead(tokens_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = TrainingData(tokens_folder, [(0, {"text": 1.0})], 0, SHAPE.context_length)
    place = Place(0, 1, torch.device("cpu"))
    with prefetched(data, SETTINGS, place, 5) as batches:
        rows = list(batches)
    assert len(rows) == 3
    for step, found in zip((6, 7, 8), rows, strict=True):
        np.testing.assert_array_equal(found.numpy(), data.batch(step, SETTINGS, 0, 1))
    real, asked = data.batch, []

    def noted(step: int, *arguments: Any) -> np.ndarray:
        asked.append(step)
        return real(step, *arguments)

    monkeypatch.setattr(data, "batch", noted)
    with prefetched(data, SETTINGS, place, 0) as batches:
        next(batches)
        for _ in range(1000):  # the next one is read before it is asked for
            if asked == [1, 2]:
                break
            time.sleep(0.01)
        assert asked == [1, 2]


def test_a_fault_of_the_reader_reaches_the_loop(tokens_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = TrainingData(tokens_folder, [(0, {"text": 1.0})], 0, SHAPE.context_length)
    monkeypatch.setattr(data, "batch", lambda *arguments: 1 / 0)
    with prefetched(data, SETTINGS, Place(0, 1, torch.device("cpu")), 0) as batches, pytest.raises(ZeroDivisionError):
        next(batches)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_are_the_same(tokens_folder: Path) -> None:
    data = TrainingData(tokens_folder, [(0, {"text": 1.0})], 0, SHAPE.context_length)
    with prefetched(data, SETTINGS, Place(0, 1, torch.device("cuda", 0)), 0) as batches:
        for step, rows_BT in enumerate(batches):
            assert rows_BT.dtype == torch.int64
            np.testing.assert_array_equal(rows_BT.cpu().numpy(), data.batch(step + 1, SETTINGS, 0, 1))
