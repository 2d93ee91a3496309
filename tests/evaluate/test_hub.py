"""The hub, by its real clients against a small one on loopback: rows are fetched, models opened, faults told in a line."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="the extra `harness`")
pytest.importorskip("uvicorn", reason="the extra `serve`")
pytest.importorskip("starlette", reason="the extra `serve`")

import pyarrow as pa
import pyarrow.parquet as pq
from fake_hub import TOKEN, Files, commands, fake_hub
from rows import FILES, N
from tiny import make_model, train_tokenizer

from xmodel.errors import MachineError, Unreachable, UserError, hub_fault
from xmodel.evaluate import paper
from xmodel.evaluate.tasks import prepare
from xmodel.model.checkpoint_io import save_model


def data_set(**splits: str) -> Files:
    """A data set of Parquet files with a card that says which split lies where, as on the hub."""
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    files: Files = {}
    for split, file in splits.items():
        lines += [f"  - split: {split}", f"    path: data/{split}-*"]
        stream = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([FILES[file](number) for number in range(N)]), stream)
        files[f"data/{split}-00000-of-00001.parquet"] = stream.getvalue()
    return {"README.md": "\n".join([*lines, "---", ""]).encode(), **files}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(folder)
    save_model(make_model(tokenizer.vocab_size, context=512), folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()} | {"onnx/config.json": b"{}"}


@pytest.fixture(scope="module")
def said(model: Files, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the commands say by name, their folder as "rows", and the paths that were asked for."""
    folder = tmp_path_factory.mktemp("hub")
    rows, out = folder / "rows", folder / "out"
    repositories = {f"models/me/{name}": model for name in ("tiny", "broken", "slow")} | {
        "models/me/old": {"config.json": b"{}", "pytorch_model.bin": b"?"},
        "datasets/baber/piqa": data_set(train="piqa/validation", validation="piqa/validation"),
        "datasets/allenai/sciq": data_set(test="sciq/test"),
        "datasets/cambridgeltl/xcopa": data_set(test="xcopa_zh/test"),
        "datasets/Rowan/hellaswag": data_set(validation="hellaswag/validation"),
    }
    fetch = ["evaluate", "fetch", rows, "--suite"]
    score = ["evaluate", "hf:me/tiny", "--suite", "piqa", "--json", "--out", out]
    open_: dict[str, list[Any]] = {
        name: ["evaluate", "perplexity", f"hf:me/{name}", "--text", __file__]
        for name in ("gone", "secret", "broken", "slow", "two/slashes", "old", "nowhere")
    }
    calls: dict[str, list[Any]] = {
        "fetched": [*fetch, "piqa", "--json"],
        "again": [*fetch, "piqa", "--json"],
        "local": [*score, "--benchmarks", rows],
        "stock": [*score[:-1], folder / "stock"],  # the same rows, which the harness loads from the hub by itself
        "": ["token", ""],
        "refused": [*fetch, "xcopa_zh,sciq"],
        "waiting": [*fetch, "hellaswag,piqa,winogrande"],
        **{name: call for name, call in open_.items() if name != "nowhere"},
        " ": ["endpoint", "http://127.0.0.1:9"],  # nobody listens there
        "nowhere": open_["nowhere"],
    }
    with fake_hub(repositories) as hub:
        hub.private |= {"models/me/tiny", "datasets/baber/piqa", "datasets/cambridgeltl/xcopa", "models/me/secret"}
        hub.faults |= {"me/broken": 503, "me/slow/resolve": 0.2, "allenai/sciq": 503, "Rowan/hellaswag": 0.2}
        told = commands(hub, folder / "home", *calls.values(), token=TOKEN)
    names = [name for name in calls if name.strip()]
    return dict(zip(names, told, strict=True)) | {"rows": rows, "asked": hub.asked}


def test_rows_and_models_of_a_hub(said: dict[str, Any]) -> None:
    assert json.loads(said["fetched"]["out"]) == {"written": 1, "failed": []}
    assert json.loads(said["again"]["out"]) == {"written": 0, "failed": []}
    (prepared,), missing = prepare(paper.select(["piqa"]), said["rows"])
    assert (prepared.splits, missing) == ({"validation": [FILES["piqa/validation"](number) for number in range(N)]}, [])
    local, stock = (json.loads(said[name]["out"]) for name in ("local", "stock"))
    assert local["about"]["where"] == "hf:me/tiny"
    assert local["tasks"][0]["items"] == N
    figures = [[(row["metric"], row["value"], row["items"]) for row in each["tasks"]] for each in (local, stock)]
    assert figures[0] == figures[1]
    assert not any("onnx" in path for path in said["asked"])
    assert any(path.endswith("/pytorch_model.bin") for path in said["asked"])  # of a model without safetensors


def test_what_the_hub_refuses_or_fails_to_give_is_said_in_one_line(said: dict[str, Any]) -> None:
    absent = "the hub does not have it, or not for you (where it is private or gated: `hf auth login`, or HF_TOKEN)"
    for name, code, kind, message in (
        ("gone", 2, "UserError", absent),
        ("secret", 2, "UserError", absent),
        ("two/slashes", 2, "UserError", "a name on the hub is OWNER/NAME"),
        ("broken", 1, "MachineError", "the hub answered 503"),
        ("slow", 1, "Unreachable", "the hub did not answer in time"),
        ("nowhere", 1, "Unreachable", "the hub cannot be reached"),
    ):
        expected = {"code": code, "kind": kind, "message": f"hf:me/{name}: no such file or folder here, and {message}"}
        assert said[name] == expected | {"out": "", "err": ""}
    assert said["refused"]["message"].splitlines() == [
        f"{said['rows']}: 0 files written, and some sets could not be had:",
        "  sciq: the hub answered 503",
        f"  xcopa_zh: {absent}",
    ]
    assert said["waiting"]["message"].splitlines()[1:] == [
        "  hellaswag: the hub did not answer in time",
        "  the sets behind it were not asked for",
    ]


def test_faults_by_their_chain() -> None:
    from huggingface_hub import errors

    def wrapped(inner: Exception) -> Exception:
        try:
            try:
                raise inner
            except Exception:
                raise FileNotFoundError("Couldn't find any data file") from None
        except FileNotFoundError as outer:
            return outer

    assert isinstance(hub_fault(wrapped(errors.OfflineModeIsEnabled("x"))), Unreachable)
    datasets_own = ConnectionError("Couldn't reach 'baber/piqa' on the Hub (OfflineModeIsEnabled)")
    for offline in (errors.OfflineModeIsEnabled("x"), datasets_own):
        assert "OFFLINE forbids" in str(hub_fault(wrapped(offline)))
    assert isinstance(hub_fault(wrapped(TimeoutError())), Unreachable)
    assert isinstance(hub_fault(wrapped(ConnectionRefusedError())), Unreachable)
    refused: Any = errors.HfHubHTTPError.__new__(errors.HfHubHTTPError)
    for status, kind in ((404, UserError), (403, UserError), (500, MachineError)):
        refused.response = type("Answer", (), {"status_code": status})()
        assert type(hub_fault(wrapped(refused))) is kind
    assert hub_fault(ValueError("a row that is no row")) is None
