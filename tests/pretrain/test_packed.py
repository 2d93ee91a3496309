"""Packed and masked batches in training: the same step on any number of ranks, and a resumed run is the same run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import xmodel
from shards import VOCABULARY, write_shards

from xmodel.model.documents import model_inputs
from xmodel.model.transformer import Transformer
from xmodel.pretrain.data import TrainingData, ValidationData, valid_targets
from xmodel.pretrain.loop import pretrain
from xmodel.pretrain.parallel import Place
from xmodel.recipe.load import load_recipe
from xmodel.recipe.settings import Corpus, Model, Phase, Pretrain, Recipe, Source

SHAPE = Model(
    layers=1, heads=2, kv_heads=1, hidden=16, ffn=32, context_length=32, position_table=32, vocab_size=VOCABULARY
)
END = 2
ALONE = Place(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    sizes = np.random.default_rng(0).integers(2, 50, 300).tolist()
    train = {"a": [sizes[:120], sizes[120:160]], "b": [sizes[160:260]], "late": [sizes[260:]], "unused": [[5]]}
    write_shards(folder, train, {"en": [sizes[:30]], "zh": [sizes[30:60]]})
    return folder


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_the_gradient_does_not_depend_on_ranks_and_micro_batches(tokens: Path, packing: str, mask: bool) -> None:
    """Sums over ranks and passes, divided by the valid targets of all, are the mean over the batch's targets."""
    settings, end = Pretrain(global_batch=12, packing=packing, document_mask=mask), END if mask else None  # type: ignore[arg-type]
    data = TrainingData(tokens, [(0, {"a": 0.5, "b": 0.5})], 3, 32, packing)
    model = Transformer(SHAPE)
    model.init_weights(0)
    whole = torch.from_numpy(data.batch(6, settings, 0, 1))
    inputs = model_inputs(whole, end)
    valid = valid_targets(whole, settings, end, ALONE)
    assert int(valid) == int((inputs["targets_BT"] >= 0).sum()) <= 12 * 32
    assert (int(valid) < 12 * 32) == (mask or packing == "best_fit")
    losses = [  # the plain mean over targets, one window at a time
        torch.nn.functional.cross_entropy(
            model(row["tokens_BT"], starts_BT=row.get("starts_BT")).flatten(0, 1), row["targets_BT"].flatten()
        ) * (row["targets_BT"] >= 0).sum()
        for row in (model_inputs(rows, end) for rows in whole.split(1))
        if (row["targets_BT"] >= 0).any()
    ]  # fmt: skip
    mean = sum(losses) / int(valid)
    mean.backward()  # type: ignore[union-attr]
    expected = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    for world, micro in ((1, 12), (1, 3), (2, 2), (4, 3)):
        model.zero_grad()
        ranks = [torch.from_numpy(data.batch(6, settings, rank, world)) for rank in range(world)]
        if packing == "concatenate" and not mask:
            assert valid_targets(ranks[0], settings, end, Place(0, world, torch.device("cpu"))) == valid
        else:
            assert sum(int(valid_targets(rows, settings, end, ALONE)) for rows in ranks) == valid
        for rows in ranks:
            for part in rows.split(micro):
                (model(**model_inputs(part, end)) / valid).backward()
        for parameter, wanted in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-6)


def test_a_source_may_come_in_with_a_phase(tokens: Path) -> None:
    mixture = [(0, {"a": 1.0, "late": 0.0, "unused": 0.0}), (40, {"late": 0.5, "b": 0.5})]
    data = TrainingData(tokens, mixture, 0, 32)
    assert set(data.sources) == {"a", "b", "late"}, "one that is never used may be too short"
    given = {sample.source for sample in data.order.samples(40, 20)}
    assert given == {"late", "b"}
    assert data.epochs(60) == {
        "a": 40 / data.windows["a"], "b": 10 / data.windows["b"], "late": 10 / data.windows["late"]
    }  # fmt: skip


def test_validation_is_as_training(tokens: Path) -> None:
    plain, masked = ValidationData(tokens, 32, 10**6, 4), ValidationData(tokens, 32, 10**6, 4, END)
    for language in ("en", "zh"):
        rows = np.concatenate(plain.windows[language])
        assert plain.tokens[language] == rows[:, 1:].size
        assert masked.tokens[language] == rows[:, 1:].size - (rows[:, :-1] == END).sum()
        assert plain.bytes[language] == masked.bytes[language], "<s> has no bytes"
        (starts, *_) = [inputs["starts_BT"] for inputs in masked.batches(language, 0, 1)]
        assert starts.any()


def recipe(**changes: object) -> Recipe:
    sources = [Source(name="a", weight=0.5), Source(name="b", weight=0.5), Source(name="late"), Source(name="unused")]
    train = Pretrain(steps=6, global_batch=4, micro_batch=2, warmup_steps=1, save_every=3, log_every=1, compile="off")
    for name, value in changes.items():
        setattr(train, name, value)
    train.trackers, train.device, train.phases = [], "cpu", [Phase(4, {"late": 0.5, "b": 0.5})]
    return Recipe(corpus=Corpus(sources=sources), model=SHAPE, pretrain=train)


def test_a_resumed_run_is_the_same_run(tokens: Path, tmp_path: Path) -> None:
    """With everything on, and the plan made anew: weights and losses to the bit, across the change of phase."""
    made = recipe(packing="best_fit", document_mask=True)
    summary = pretrain(made, tokens, tmp_path / "whole", lambda model: [])
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed/checkpoints/step-000000006")
    shutil.rmtree(tokens / "packed-32")
    assert pretrain(made, tokens, tmp_path / "resumed", lambda model: []) == summary
    for name in ("model.safetensors", "optimizer/__0_0.distcp", "state.json"):
        last = "checkpoints/step-000000006"
        assert (tmp_path / "whole" / last / name).read_bytes() == (tmp_path / "resumed" / last / name).read_bytes()
    other = pretrain(recipe(), tokens, tmp_path / "plain", lambda model: [])
    assert other["loss_en"] != summary["loss_en"]


@pytest.mark.slow
def test_two_processes_pack_and_train_as_one(finished_run: Path, tmp_path: Path) -> None:
    """Real torchrun processes: the count of valid targets is agreed on, the loss equal to float tolerance."""
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").unlink()
    (run / "stages/pretrain.json").unlink()
    options = ["pretrain.packing=best_fit", "pretrain.document_mask=true"]
    result = xmodel("pretrain", run, *options, "--processes", 2)
    assert result.returncode == 0, result.stderr
    assert "of them are cut (concatenation: " in result.stderr
    assert not list(run.rglob("*.partial"))
    pretrain(load_recipe(run / "recipe.yaml", options), run / "tokens", tmp_path / "alone", lambda model: [])
    for one, two in zip(validation_rows(tmp_path / "alone"), validation_rows(run), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=2e-3)


def validation_rows(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "validation"]
