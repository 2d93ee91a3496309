"""The options of the training loop through the loop itself: exact resume, averages, growing batches, branches."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import TIMELESS

from xmodel.errors import UserError
from xmodel.model.checkpoint_io import load_model
from xmodel.pretrain.average import in_place_of_weights, start_average, update_average
from xmodel.pretrain.data import TrainingData
from xmodel.pretrain.loop import pretrain
from xmodel.recipe.load import load_recipe
from xmodel.recipe.settings import Pretrain

ALL = [
    *("pretrain.optimizer=muon", "pretrain.z_loss=1e-3", "pretrain.average=ema", "pretrain.average_decay=0.8"),
    *("pretrain.schedule=wsd", "pretrain.decay_steps=4", "pretrain.batch_warmup=[2]", "pretrain.batch_warmup_steps=3"),
    *(
        "model.qk_norm=true",
        "model.width_base=16",
        "pretrain.steps=12",
        "pretrain.save_every=5",
        "pretrain.eval_every=7",
    ),
]
WSD = ["pretrain.schedule=wsd", "pretrain.save_every=5", "pretrain.eval_every=0", "pretrain.keep=1", "pretrain.clip=0"]


def train(finished: Path, folder: Path, *changes: str, die: bool = False) -> dict[str, Any]:
    """A run of the finished run's recipe and tokens, with changes; with `die` it dies at its second evaluation."""
    folder.mkdir(exist_ok=True)
    recipe = load_recipe(finished / "recipe.yaml", changes)
    shutil.copytree(finished / "tokens", folder / "tokens", dirs_exist_ok=True)
    shutil.copy(finished / "recipe.yaml", folder / "recipe.yaml")
    evaluations = []

    def score(model: object) -> list[dict[str, Any]]:
        evaluations.append(1)
        if die and len(evaluations) == 2:
            raise InterruptedError
        return []

    return pretrain(recipe, folder / "tokens", folder, score)


def trace(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key not in TIMELESS} for row in rows if row["kind"] != "start"]


def weights(folder: Path, step: int) -> dict[str, bytes]:
    checkpoint = folder / "checkpoints" / f"step-{step:09d}"
    return {str(path.relative_to(checkpoint)): path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}


def test_all_options_together_resume_bit_for_bit(finished_run: Path, tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train(finished_run, straight, *ALL)
    with pytest.raises(InterruptedError):
        train(finished_run, killed, *ALL, die=True)
    assert not (killed / "checkpoints" / "step-000000012").exists()
    train(finished_run, killed, *ALL)
    assert trace(killed) == trace(straight)
    assert weights(killed, 12) == weights(straight, 12)

    # tokens in the metrics are those that were read: three steps of 2 sequences, then 4 each
    tokens = {row["step"]: row["tokens"] for row in trace(straight) if row["kind"] == "train"}
    assert [tokens[step] for step in (1, 2, 3, 4, 12)] == [64 * n for n in (2, 4, 6, 10, 42)]

    # what is evaluated and exported is the average; what goes on are the weights
    newest = straight / "checkpoints" / "step-000000012"
    average, raw = load_model(newest), load_model(newest, average=False)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(average.state_dict()[name], load_file(newest / "average.safetensors")[name])
    assert torch.equal(raw.state_dict()[name], load_file(newest / "model.safetensors")[name])
    assert not torch.equal(average.state_dict()[name], raw.state_dict()[name])
    held_out = [row for row in trace(straight) if row["kind"] == "validation" and row["step"] == 12]
    assert {row["language"] for row in held_out} == {"en", "zh"}


def test_validation_during_training_is_the_averages(finished_run: Path, tmp_path: Path) -> None:
    """A decay of (next to) nothing makes the average the weights: the same figures as without; a large one, others."""
    changes = ["pretrain.steps=6", "pretrain.warmup_steps=0", "pretrain.eval_every=0"]
    without = train(finished_run, tmp_path / "a", *changes)
    same = train(finished_run, tmp_path / "b", *changes, "pretrain.average=ema", "pretrain.average_decay=0")
    other = train(finished_run, tmp_path / "c", *changes, "pretrain.average=ema", "pretrain.average_decay=0.9")
    assert same == without
    assert other["loss_en"] != without["loss_en"]
    last = [row for row in trace(tmp_path / "c") if row["kind"] == "train"][-1]
    assert last["loss"] == [row for row in trace(tmp_path / "a") if row["kind"] == "train"][-1]["loss"]


def test_the_average_is_the_recursion() -> None:
    model, settings = torch.nn.Linear(3, 2), Pretrain(average="ema", average_decay=0.6)
    average = start_average(model, settings)
    expected = {name: p.detach().double() for name, p in model.named_parameters()}
    for step in range(1, 21):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(step)))
        update_average(average, model, step, settings)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = {n: decay * expected[n] + (1 - decay) * p.detach().double() for n, p in model.named_parameters()}
    own = {name: p.detach().clone() for name, p in model.named_parameters()}
    with in_place_of_weights(average, model):
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.detach().double(), expected[name], rtol=1e-5, atol=1e-6)
    assert all(torch.equal(p, own[name]) for name, p in model.named_parameters())
    assert start_average(model, Pretrain()) == {}


def test_growing_batches_read_every_sample_once(finished_run: Path) -> None:
    """Steps of every size, on any number of ranks, follow one another in the one order of samples."""
    recipe = load_recipe(finished_run / "recipe.yaml")
    given = {source.name: source.weight for source in recipe.corpus.sources}
    data = TrainingData(finished_run / "tokens", [(0, given)], seed=3, sequence_length=64)
    train = Pretrain(global_batch=12, batch_warmup=[4, 8], batch_warmup_steps=2)
    rows = [data.batch(step, train, 0, 1) for step in range(1, 7)]
    assert [len(each) for each in rows] == [4, 4, 8, 8, 12, 12]
    plain = [data.batch(step, Pretrain(global_batch=12), 0, 1) for step in range(1, 5)]
    assert np.array_equal(np.concatenate(rows), np.concatenate(plain))
    for step in (1, 3, 6):
        parts = [data.batch(step, train, rank, 4) for rank in range(4)]
        assert np.array_equal(np.stack(parts, 1).reshape(-1, 65), rows[step - 1])


def test_a_longer_run_branches_off_before_the_decay(finished_run: Path, tmp_path: Path) -> None:
    """Bit for bit the run that had been that long from the start."""
    short = [*WSD, "pretrain.steps=12", "pretrain.decay_steps=4"]
    longer = [*WSD, "pretrain.steps=20", "pretrain.decay_steps=5", "pretrain.decay_shape=linear"]
    longer += ["pretrain.phases=[{from_step: 16, weights: {world-zh: 1}}]"]  # other text for the decay
    train(finished_run, tmp_path / "short", *short)
    (tmp_path / "short" / "recipe.yaml").write_text(_dumped(finished_run, short))
    kept = tmp_path / "short" / "checkpoints" / "step-000000008"
    assert kept.is_dir()  # though only the newest checkpoint is kept
    train(finished_run, tmp_path / "straight", *longer)
    train(finished_run, tmp_path / "branch", *longer, f"pretrain.branch_from={kept}")
    rows = [row for row in trace(tmp_path / "straight") if row["step"] > 8]
    assert trace(tmp_path / "branch") == rows
    assert weights(tmp_path / "branch", 20) == weights(tmp_path / "straight", 20)

    def refusal(*changes: str, base: list[str] = longer, checkpoint: Path = kept) -> str:
        with pytest.raises(UserError) as error:
            train(finished_run, tmp_path / "refused", *base, f"pretrain.branch_from={checkpoint}", *changes)
        assert not (tmp_path / "refused" / "metrics.jsonl").exists()
        return str(error.value)

    assert "made other steps up to 8 (seed: 3 -> 4)" in refusal("seed=4")
    assert "(pretrain.weight_decay: 0.1 -> 0.2)" in refusal("pretrain.weight_decay=0.2")
    assert "(learning rate of step 1: 0.0006 -> 0.0008)" in refusal("pretrain.peak_lr=4e-3")
    assert "(batch of step 1: 4 -> 2)" in refusal("pretrain.global_batch=2")
    early = "pretrain.phases=[{from_step: 8, weights: {world-zh: 1}}]"
    assert "(corpus.sources or pretrain.phases: other weights)" in refusal(early)
    assert "learning rate of step 6" in refusal(base=[*WSD, "pretrain.schedule=cosine"])
    assert "of which nothing is left" in refusal("pretrain.steps=8", "pretrain.decay_steps=2", "pretrain.phases=[]")
    assert "is not a checkpoint" in refusal(checkpoint=tmp_path / "short" / "checkpoints")
    (kept / "model.safetensors").write_bytes(b"cut")
    assert "is damaged (model.safetensors has 3 bytes" in refusal()


def _dumped(finished: Path, changes: list[str]) -> str:
    from xmodel.recipe.dump import dump_recipe

    return dump_recipe(load_recipe(finished / "recipe.yaml", changes))
