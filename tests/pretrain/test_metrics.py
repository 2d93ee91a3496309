"""What a run tells while it trains: exact norms, memory, waiting; rows that survive kills; trackers; profiles."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import make_model

from xmodel.errors import UserError
from xmodel.pretrain import trackers
from xmodel.pretrain.metrics import opened_metrics
from xmodel.pretrain.optim import clip_grad_norm, guarded_step, make_optimizer
from xmodel.pretrain.parallel import Place
from xmodel.pretrain.profile import Profiler
from xmodel.pretrain.watch import Watch, by_layer, memory, seconds_between
from xmodel.recipe.pretrain_settings import Pretrain
from xmodel.recipe.settings import Recipe

HERE = Place(0, 1, torch.device("cpu"))
SETTINGS = Pretrain(steps=8, global_batch=2, micro_batch=2, log_every=2, norms_every=4, precision="fp32")


def steps(watch: Watch, model: torch.nn.Module, optimizer: Any, count: int, spoil: int = 0) -> Iterator[int]:
    """Real steps on random tokens, as the loop does them; the gradients of step `spoil` are not finite."""
    torch.manual_seed(0)
    batches = (torch.randint(420, (2, 17)) for _ in range(count))
    for step in range(1, count + 1):
        rows = watch.batch(batches)
        model(rows[:, :-1], targets_BT=rows[:, 1:]).backward()
        if step == spoil:
            next(model.parameters()).grad.fill_(torch.nan)  # type: ignore[union-attr]
        watch.before(step)
        guarded_step(optimizer, clip_grad_norm(model.parameters(), SETTINGS.clip))
        watch.after(step)
        optimizer.zero_grad()
        yield step


def flat(parameters: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().double().flatten() for parameter in parameters])


def test_norms_of_updates_are_those_of_the_weights_before_and_after() -> None:
    model = make_model()
    optimizer, watch = make_optimizer(model, SETTINGS), Watch(model, SETTINGS, HERE)
    before, seen = flat(model.parameters()), []
    for step in steps(watch, model, optimizer, 8):
        after = flat(model.parameters())
        assert watch.copies is None  # no second copy of the weights between steps
        if watch.logged(step):
            figures = watch.figures(1.0)
            assert figures["update_norm"] == pytest.approx((after - before).norm().item(), rel=1e-5)
            assert figures["param_norm"] == pytest.approx(after.norm().item(), rel=1e-6)
            seen.append(step)
        before = after
    assert seen == [2, 4, 6, 8]


def test_a_skipped_step_has_an_update_of_zero() -> None:
    model = make_model()
    optimizer, watch = make_optimizer(model, SETTINGS), Watch(model, SETTINGS, HERE)
    norms = {
        step: watch.figures(1.0)["update_norm"] for step in steps(watch, model, optimizer, 4, spoil=4) if step % 2 == 0
    }
    assert norms[2] > 0
    assert norms[4] == 0


def test_norms_by_layer_make_up_the_whole() -> None:
    model = make_model()
    optimizer, watch = make_optimizer(model, SETTINGS), Watch(model, SETTINGS, HERE)
    rows = {}
    for step in steps(watch, model, optimizer, 8):
        row = watch.layers(step)
        if row is not None:
            whole = watch.figures(1.0)
            rows[step] = row
            assert list(row["param_norm"]) == ["embedding", "0", "1", "norm", "head"]
            for part in ("param_norm", "update_norm"):
                assert sum(norm**2 for norm in row[part].values()) ** 0.5 == pytest.approx(whole[part], rel=1e-5)
    assert list(rows) == [4, 8]


def test_gradients_by_layer_are_those_before_clipping() -> None:
    model = make_model()
    settings = replace(SETTINGS, clip=1e-3, log_every=1, norms_every=1)
    watch, tokens = Watch(model, settings, HERE), torch.arange(34).view(2, 17)
    rows = watch.batch(iter([tokens]))
    model(rows[:, :-1], targets_BT=rows[:, 1:]).backward()
    watch.before(1)
    norm = clip_grad_norm(model.parameters(), settings.clip).item()
    watch.after(1)
    row = watch.layers(1)
    assert row is not None
    assert sum(value**2 for value in row["grad_norm"].values()) ** 0.5 == pytest.approx(norm, rel=1e-5)


def test_every_parameter_is_in_one_group() -> None:
    for tied in (False, True):
        model = make_model(tied=tied)
        grouped = [id(parameter) for group in by_layer(model).values() for parameter in group]
        assert sorted(grouped) == sorted(map(id, model.parameters()))


def test_waiting_for_data_is_a_share_of_the_time() -> None:
    watch = Watch(make_model(), SETTINGS, HERE)

    def slow() -> Iterator[torch.Tensor]:
        while True:
            time.sleep(0.02)
            yield torch.zeros(2, 17, dtype=torch.int64)

    batches = slow()
    for step in (1, 2, 3):
        watch.batch(batches)
        watch.after(step)
    figures = watch.figures(seconds=0.12)
    assert 0.5 <= figures["data_wait"] < 0.9
    assert 0.02 <= figures["step_seconds_median"] <= figures["step_seconds_max"] < 0.1
    assert watch.figures(seconds=1.0)["data_wait"] == 0  # a new interval


def test_memory_is_the_highest_of_this_process() -> None:
    before = memory(torch.device("cpu"))["memory_peak"]
    block = torch.ones(50_000_000)
    assert memory(torch.device("cpu"))["memory_peak"] >= max(before, block.nbytes)


def test_events_of_a_device_count_in_milliseconds() -> None:
    event = SimpleNamespace(elapsed_time=lambda other: 1500.0)
    assert seconds_between(event, event) == 1.5
    assert seconds_between(1.0, 3.5) == 2.5


# ---- metrics.jsonl and trackers --------------------------------------------------------------------------------------


def recipe(*names: Any) -> Recipe:
    return Recipe(name="trial", pretrain=replace(SETTINGS, trackers=list(names)))


class Fake:
    """Records what a tracker's module is called with."""

    def __init__(self) -> None:
        self.inits: list[dict[str, Any]] = []
        self.rows: list[Any] = []
        self.ended = 0

    def init(self, **arguments: Any) -> Fake:
        self.inits.append(arguments)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, figures: dict[str, float], **arguments: Any) -> None:
        self.rows.append((figures, arguments))

    def finish(self) -> None:
        self.ended += 1


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Fake]:
    made = {"wandb": Fake(), "trackio": Fake()}
    found = importlib.util.find_spec
    for name, fake in made.items():
        monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: made.get(name) or found(name))
    return made


def test_rows_after_the_resumed_step_are_removed(tmp_path: Path) -> None:
    with opened_metrics(tmp_path, recipe(), True) as metrics:
        metrics.begin(-1)
        for step in range(5):
            metrics.write({"kind": "train", "step": step, "loss": 5.0 - step})
    with open(tmp_path / "metrics.jsonl", "a") as stream:
        stream.write('{"kind": "train", "step": 5, "lo')  # killed while it wrote
    with opened_metrics(tmp_path, recipe(), True) as metrics:
        metrics.begin(2)
        metrics.write({"kind": "train", "step": 3, "loss": 2.0})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert all(row["time"] > 1e9 for row in rows)


def test_going_back_in_one_process_ends_what_was_open(tmp_path: Path, fakes: dict[str, Fake]) -> None:
    with opened_metrics(tmp_path, recipe("wandb"), True) as metrics:
        metrics.begin(-1)
        for step in range(4):
            metrics.write({"kind": "train", "step": step, "loss": 1.0})
        metrics.begin(1)
        metrics.write({"kind": "train", "step": 2, "loss": 2.0})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(0, 1.0), (1, 1.0), (2, 2.0)]
    assert len(fakes["wandb"].inits) == fakes["wandb"].ended == 2


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with opened_metrics(tmp_path, recipe("tensorboard"), False) as metrics:
        metrics.begin(-1)
        metrics.write({"kind": "train", "step": 1, "loss": 1.0})
    assert not list(tmp_path.iterdir())


ROW = {"kind": "train", "step": 3, "loss": 2.5, "peak_source": "text is no figure"}
LAYERS = {"kind": "layers", "step": 3, "grad_norm": {"0": 0.5, "head": 0.25}}


def test_wandb_goes_on_with_the_same_run(
    tmp_path: Path, fakes: dict[str, Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    for last_step in (-1, 2):  # a run, and its resume
        with opened_metrics(tmp_path, recipe("wandb"), True) as metrics:
            metrics.begin(last_step)
            metrics.write(ROW)
            metrics.write(LAYERS)
    first, second = fakes["wandb"].inits
    assert first == second
    assert first["resume"] == "allow"
    assert re.fullmatch("[0-9a-f]{8}", first["id"])
    assert first["id"] == json.loads((tmp_path / "trackers.json").read_text())["id"]
    assert first["project"] == "xmodel"
    assert first["config"]["pretrain"]["peak_lr"] == SETTINGS.peak_lr
    assert "mode" not in first  # WANDB_MODE=offline decides
    figures = [row for row, _ in fakes["wandb"].rows]
    assert figures[0] == {"train/loss": 2.5, "step": 3}
    assert figures[1] == {"layers/grad_norm/0": 0.5, "layers/grad_norm/head": 0.25, "step": 3}
    assert fakes["wandb"].ended == 2


def test_trackio_knows_a_run_by_its_name(tmp_path: Path, fakes: dict[str, Fake]) -> None:
    for last_step in (-1, 2):
        with opened_metrics(tmp_path, recipe("wandb", "trackio"), True) as metrics:
            metrics.begin(last_step)
            metrics.write(ROW)
    first, second = fakes["trackio"].inits
    assert first["name"] == second["name"]
    assert first["name"].endswith(fakes["wandb"].inits[0]["id"])
    assert first["resume"] == "allow"
    assert fakes["trackio"].rows[0] == ({"train/loss": 2.5}, {"step": 3})


def test_trackers_are_ended_when_training_fails(tmp_path: Path, fakes: dict[str, Fake]) -> None:
    with pytest.raises(ZeroDivisionError), opened_metrics(tmp_path, recipe("wandb"), True) as metrics:
        metrics.begin(-1)
        _ = 1 / 0
    assert fakes["wandb"].ended == 1


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_tracker_is_one_line_on_every_rank(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for writes in (True, False):
        with (
            pytest.raises(UserError, match=f"pip install {name}, or take it off"),
            opened_metrics(tmp_path, recipe(name), writes),
        ):
            pass


def test_tensorboard_is_passed_over_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert trackers.installed(["tensorboard"]) == []
    assert "pip install tensorboard" in capsys.readouterr().err


def test_tensorboard_gets_every_figure(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with opened_metrics(tmp_path, recipe("tensorboard"), True) as metrics:
        metrics.begin(-1)
        metrics.write(ROW)
        metrics.write({"kind": "validation", "language": "zh", "step": 3, "loss": 1.5})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "validation/zh/loss"}
    assert [(event.step, event.value) for event in events.Scalars("validation/zh/loss")] == [(3, 1.5)]


# ---- profile ---------------------------------------------------------------------------------------------------------


def test_a_profile_is_made_of_the_steps_that_were_asked_for(tmp_path: Path) -> None:
    profiler = Profiler(tmp_path, HERE, last_step=20)
    (tmp_path / "profile.request").write_text("2\n")
    for step in range(1, 10):
        torch.ones(64, 64) @ torch.ones(64, 64) if step in (6, 7) else torch.ones(8).cumsum(0)
        profiler.step(step, look=step % 3 == 0)  # seen at step 3; 4 and 5 warm up
    assert profiler.running is None
    assert not (tmp_path / "profile.request").exists()
    operators = (tmp_path / "profile" / "operators.txt").read_text()
    assert operators.startswith("Steps 6 to 7 on cpu")
    assert "aten::mm" in operators
    assert "aten::cumsum" not in operators
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    assert sum(event.get("name") == "aten::mm" for event in trace["traceEvents"]) == 2
    assert not list((tmp_path / "profile").glob("*.partial"))


@pytest.mark.parametrize(("asked", "said"), [("many", "not a number of steps"), ("5", "too few steps are left")])
def test_a_request_that_cannot_be_met_is_said_and_forgotten(asked: str, said: str, tmp_path: Path, capsys: Any) -> None:
    profiler = Profiler(tmp_path, HERE, last_step=5)
    (tmp_path / "profile.request").write_text(asked)
    profiler.step(4, look=True)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "profile.request").exists()
    assert profiler.running is None


def test_a_score_is_named_by_its_set() -> None:
    row = {"kind": "score", "suite": "sandbox", "set": "facts_en", "language": "en", "step": 3, "time": 1.0}
    figures = {"accuracy": 0.5, "gold_bpb": 1.25}
    named = {"score/facts_en/accuracy": 0.5, "score/facts_en/gold_bpb": 1.25}
    assert dict(trackers.scalars(row | figures)) == named
    assert dict(trackers.scalars({"kind": "validation", "language": "zh", "loss": 2.0})) == {"validation/zh/loss": 2.0}
