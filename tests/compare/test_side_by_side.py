"""The head-to-head: published shapes, true sizes, cells that fail without ending the rest, and what people see of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from tiny import make_model
from transformers import AutoConfig, AutoModelForCausalLM

from xmodel.cli import cli
from xmodel.compare import compare as orchestra
from xmodel.compare import engines, worker
from xmodel.compare.architectures import ARCHITECTURES, OURS, Architecture
from xmodel.compare.compare import Settings, compare
from xmodel.compare.output import draw, tables
from xmodel.errors import MachineError, UserError
from xmodel.inference.batch import Batch
from xmodel.inference.many import generate_many
from xmodel.model.checkpoint_io import save_model

SMALL = {
    "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 256,
    "max_position_embeddings": 64, "ffn_dim": 48, "word_embed_proj_dim": 32,
}  # fmt: skip


def small(name: str) -> Architecture:
    """The architecture with small numbers: key/value heads of its own proportion, everything else as it is."""
    config = dict(ARCHITECTURES[name].config)
    config |= {key: value for key, value in SMALL.items() if key in config}
    if "num_key_value_heads" in config:
        config["num_key_value_heads"] = 4 if name.startswith("smollm2") else 2
    if "head_dim" in config:
        config["head_dim"] = 8
    return Architecture("made small", 0, config)


@pytest.fixture
def small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ARCHITECTURES:
        monkeypatch.setitem(ARCHITECTURES, name, small(name))


def job(name: str, engine: str = "transformers", **changes: Any) -> dict[str, Any]:
    subject = {"name": name, "engine": engine, "architecture": name}
    usual = {"device": "cpu", "dtype": "fp32", "layers": 0, "threads": 0, "compile": False, "seconds": 60}
    return {"subject": subject, **usual, "cells": [[0, [1, 8]], [1, [3, 8]]], "new_tokens": 4} | changes


def rows_of(work: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    worker.measure(work, lambda **row: rows.append(row))
    return rows


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_published_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**ARCHITECTURES[name].config))
    assert sum(p.numel() for p in model.parameters()) == ARCHITECTURES[name].parameters


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.usefixtures("small_ones")
def test_sizes_are_those_of_the_tensors(name: str) -> None:
    opened = engines.open_model(
        job(name)["subject"], device="cpu", dtype="bf16", layers=0, training=False, compiled=False
    )
    facts = opened.facts
    with torch.device("meta"):
        whole: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**ARCHITECTURES[name].config))
    assert facts["parameters"] == sum(p.numel() for p in whole.parameters())  # tied heads are tied
    assert facts["weight_bytes"] == 2 * facts["parameters"]
    ids = torch.randint(256, (3, 10))
    module: Any = opened.module
    with torch.no_grad():
        out = module(ids, use_cache=True)
    assert torch.isfinite(out.logits).all()
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in out.past_key_values.layers)
    assert held == facts["kv_bytes_per_token"] * ids.numel()


@pytest.mark.usefixtures("small_ones")
@pytest.mark.parametrize("engine", ["xmodel", "transformers"])
def test_cells_of_one_model(engine: str) -> None:
    rows = rows_of(job(OURS, engine, cells=[[0, [1, 8]], [1, [3, 8]], [2, [1, 61]]]))
    assert [row["kind"] for row in rows] == ["model", *["begin", "cell"] * 3]
    for row, batch in ((rows[2], 1), (rows[4], 3)):
        assert row["cache"] in (("fixed",) if engine == "xmodel" else ("dynamic", "static"))
        assert row["prefill_tokens_per_second"] == pytest.approx(batch * 8 / row["first_token_seconds"])
        assert row["decode_tokens_per_second"] > 0
        assert row["peak_bytes"] > rows[0]["weight_bytes"]
    assert rows[6]["error"] == "longer than its 64 positions"
    words = {
        "xmodel": "Xmodel-LM's engine, sdpa, decoding in our own kernels",
        "transformers": "transformers' generate",
    }
    assert rows[0]["setting"].startswith(words[engine])


@pytest.mark.usefixtures("small_ones")
def test_what_is_measured_is_what_a_user_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of the batch that generate, chat and serve run, in the kernels that they prepare; the same tokens."""
    opened = engines.open_model(job(OURS, "xmodel")["subject"], device="cpu", dtype="fp32", layers=0, training=False,
                                compiled=False)  # fmt: skip
    module: Any = opened.module
    assert module.decoder is not None
    taken: list[list[int]] = []
    step = Batch.step

    def watched(self: Batch[Any]) -> torch.Tensor:
        taken.append([row.last for row in self.going])
        return step(self)

    monkeypatch.setattr(Batch, "step", watched)
    ids_BT = torch.randint(256, (3, 8), generator=torch.Generator().manual_seed(0))
    assert len(opened.generate(ids_BT, 6, "fixed")) == 6
    rows = [list(row) for row in zip(*taken, strict=True)]  # all but the last token, which no step takes
    assert rows == generate_many(module, ids_BT.tolist(), max_new_tokens=5, stop_ids=())


@pytest.mark.usefixtures("small_ones")
def test_layers_are_cut_and_both_engines_have_one_shape() -> None:
    whole, cut = (rows_of(job(OURS, "xmodel", layers=layers, cells=[]))[0] for layers in (0, 1))
    assert (whole["layers"], cut["layers"]) == (2, 1)
    assert cut["kv_bytes_per_token"] * 2 == whole["kv_bytes_per_token"]
    theirs = rows_of(job(OURS, "transformers", layers=1, cells=[]))[0]
    assert {key: cut[key] for key in ("parameters", "weight_bytes")} == {
        key: theirs[key] for key in ("parameters", "weight_bytes")
    }


@pytest.mark.usefixtures("small_ones")
@pytest.mark.parametrize(
    ("name", "engine"), [(OURS, "xmodel"), (OURS, "transformers"), ("pythia-1.4b", "transformers")]
)
def test_a_training_step_trains(name: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    inner = engines.open_model

    def watched(*arguments: Any, **named: Any) -> engines.Opened:
        opened = inner(*arguments, **named)

        def loss(ids: torch.Tensor) -> torch.Tensor:
            value = opened.loss(ids)
            seen.append(value.item())
            return value

        return opened._replace(loss=loss)

    monkeypatch.setattr(worker, "open_model", watched)
    rows = rows_of(job(name, engine, dtype="bf16", train={"micro_batch": 2, "length": 16}))
    assert rows[-1]["step_tokens_per_second"] > 0
    assert rows[0]["weight_bytes"] == 4 * rows[0]["parameters"]  # float32 weights below bf16 products
    assert seen[-1] < seen[0]


@pytest.mark.usefixtures("small_ones")
def test_out_of_memory_is_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = engines.open_model

    def greedy(*arguments: Any, **named: Any) -> engines.Opened:
        opened = inner(*arguments, **named)

        def generate(ids: torch.Tensor, new: int, cache: str) -> list[float]:
            if len(ids) == 1:
                torch.empty(1 << 50)
            return opened.generate(ids, new, cache)

        return opened._replace(generate=generate)

    monkeypatch.setattr(worker, "open_model", greedy)
    rows = rows_of(job(OURS, "xmodel"))
    assert rows[2]["error"] == "out of memory"
    assert rows[4]["decode_tokens_per_second"] > 0
    monkeypatch.setattr(worker, "open_model", lambda *a, **n: inner(*a, **n)._replace(generate=lambda *a: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        rows_of(job(OURS, "xmodel"))


def test_the_peak_is_of_the_cell() -> None:
    held = torch.ones(50_000_000)
    with_it = worker._peak("cpu")
    del held
    worker._forget_peak("cpu")
    without = worker._peak("cpu")
    assert with_it is not None
    assert without is not None
    assert with_it - without > 150_000_000


SUBJECTS = [{"name": name, "engine": "transformers", "architecture": name} for name in ("a", "b")]
SETTINGS = Settings(device="cpu", dtype="bf16", cells=((1, 8), (64, 8)), new_tokens=4, rounds=3)
FACTS = {"kind": "model", "parameters": 10, "weight_bytes": 20, "kv_bytes_per_token": 2048, "weights": "random",
         "setting": "told", "layers": 2, "threads": 2, "device": "cpu"}  # fmt: skip


def cell(number: int, speed: float) -> dict[str, Any]:
    return {"kind": "cell", "cell": number, "cache": "dynamic", "first_token_seconds": 1 / speed,
            "prefill_tokens_per_second": 8 * speed, "decode_tokens_per_second": speed, "peak_bytes": 1000}  # fmt: skip


def test_a_killed_process_costs_its_cell_and_rounds_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[tuple[str, list[int]]] = []

    def process(work: dict[str, Any], seconds: float, take: Any) -> tuple[int, bool, str]:
        name, cells = work["subject"]["name"], [number for number, _ in work["cells"]]
        jobs.append((name, cells))
        take(dict(FACTS))
        for number in cells:
            take({"kind": "begin", "cell": number})
            if (name, number) == ("b", 1):
                return -9, False, ""
            take(cell(number, float(len(jobs))))
        return 0, False, ""

    monkeypatch.setattr(orchestra, "_process", process)
    found = compare(SUBJECTS, SETTINGS)
    assert [name for name, _ in jobs] == ["a", "b", "b", "a", "a", "b"]
    a, b = found["subjects"]
    assert b["cells"][1] == {"batch": 64, "context": 8, "error": "out of memory"}
    assert b["cells"][0]["decode_tokens_per_second"]["rounds"] == [2.0, 3.0, 6.0]
    assert a["cells"][0]["decode_tokens_per_second"] == {
        "median": 4.0,
        "least": 1.0,
        "most": 5.0,
        "rounds": [1.0, 4.0, 5.0],
    }
    assert a["kv_bytes_at"] == {"12": 12 * 2048}
    shown = tables(found | {"settings": found["settings"] | {"layers": 2}})
    assert "out of memory" in shown
    assert "a (cut to 2 layers)" in shown
    assert "not a claim" in shown
    assert "1.20×" in tables(found)  # the median of 2/1, 3/4 and 6/5; of the medians it would be 0.75


def test_time_and_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(work: dict[str, Any], seconds: float, take: Any) -> tuple[int, bool, str]:
        take(dict(FACTS))
        take(cell(0, 1.0))
        return -9, True, ""

    monkeypatch.setattr(orchestra, "_process", slow)
    found = compare(SUBJECTS[:1], SETTINGS._replace(rounds=1))
    assert found["subjects"][0]["cells"][1]["error"] == "no time left"
    assert "decode_tokens_per_second" in found["subjects"][0]["cells"][0]
    found = compare(SUBJECTS, SETTINGS._replace(seconds=0.0, train=(1, 8)))
    assert {one["error"] for one in found["subjects"][0]["cells"]} == {"no time left"}
    assert found["subjects"][1]["train"] == {"error": "no time left"}
    assert "no time left" in tables(found)

    def unable(work: dict[str, Any], seconds: float, take: Any) -> tuple[int, bool, str]:
        take({"kind": "failed", "error": "transformers cannot open it: no such type"})
        return 0, False, ""

    monkeypatch.setattr(orchestra, "_process", unable)
    assert "cannot open it" in tables(compare(SUBJECTS, SETTINGS))
    monkeypatch.setattr(orchestra, "_process", lambda work, seconds, take: (1, False, "KeyError: 'x'"))
    with pytest.raises(MachineError, match="a in transformers: the measuring process failed \\(KeyError: 'x'\\)"):
        compare(SUBJECTS, SETTINGS)


def command(*arguments: object) -> str:
    result = CliRunner().invoke(cli, ["compare", *map(str, arguments)], catch_exceptions=False, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_the_command_on_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    save_model(make_model(420), folder)
    shown = command(
        folder, "--context", 16, "--new-tokens", 4, "--rounds", 1, "--dtype", "fp32", "--threads", 1,
        "--out", tmp_path / "found.json", "--plot", tmp_path / "found.png",
    )  # fmt: skip
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(one["name"], one["engine"], one["weights"]) for one in found["subjects"]] == [
        ("mine", "xmodel", "its own"),
        ("mine", "transformers", "its own"),
    ]
    assert len({one["parameters"] for one in found["subjects"]}) == 1
    assert all("decode_tokens_per_second" in one["cells"][0] for one in found["subjects"])
    assert found["versions"]["transformers"]
    assert "cpu, fp32, 1 thread; median of 1 round" in shown
    assert "mine" in shown
    assert (tmp_path / "found.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UserError, match=r"\.gif: cannot be drawn"):
        draw(found, tmp_path / "found.gif")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pythia-1.4"], "pythia-1.4: no architecture of the table, and no folder; did you mean pythia-1.4b"),
        (["mamba"], "the architectures are xmodel-lm, tinyllama-1.1b"),
        ([OURS, OURS], "named twice"),
        (["--plot", "x.gif"], r"x\.gif: cannot be drawn"),
        (["--train", "4"], "expected BATCHxLENGTH, as in 4x2048"),
        (["--compile", "--device", "cpu"], "leave it out on a CPU"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        command(*arguments)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither a run \(recipe\.yaml\) nor a model folder"):
        command(tmp_path)
