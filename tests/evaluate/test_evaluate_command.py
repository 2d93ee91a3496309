"""`xmodel evaluate --suite`, `tasks`, `layout`, `fetch`: from the command line to files and tables."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="the extra `harness`")

from click.testing import CliRunner, Result
from command import xmodel
from rows import write_benchmarks
from tiny import make_model, train_tokenizer

from xmodel.cli.main import cli as group
from xmodel.errors import UserError
from xmodel.evaluate import harness, sizes
from xmodel.evaluate.results import read_items, read_results
from xmodel.evaluate.suites import run_suites
from xmodel.model.checkpoint_io import save_model
from xmodel.recipe.settings import Evaluate


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    tokenizer = train_tokenizer(folder)
    save_model(make_model(tokenizer.vocab_size, context=512), folder)
    return folder


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments, **keywords):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(group, ["evaluate", *map(str, arguments)], catch_exceptions=True)


def test_a_suite_from_the_command_to_its_files(model_folder: Path, benchmarks: Path, tmp_path: Path) -> None:
    files = ("--out", tmp_path / "out", "--html", tmp_path / "page.html", "--markdown", tmp_path / "page.md")
    result = call(model_folder, "--suite", "chinese", "winogrande", "--benchmarks", benchmarks, *files)
    assert result.exit_code == 0, result.output
    assert re.search(r"^Xmodel-LM-1\.1B +26\.24 +60\.60 +36\.02 +40\.95$", result.stdout, re.MULTILINE)
    assert re.search(r"^  ± standard error( +[\d.]+){4}$", result.stdout, re.MULTILINE)
    contents = {content["task"]: content for content in read_results(tmp_path / "out")}
    assert set(contents) == {"arc_zh", "xcopa_zh", "xnli_zh", "winogrande"}
    rows = {row["metric"]: row for row in contents["arc_zh"]["results"]}
    assert set(rows) == {"acc", "acc_norm", "gold_bpb"}
    assert set(rows["acc"]) >= {
        "suite", "set", "language", "shots", "metric", "value", "stderr", "chance", "items", "seconds",
    }  # fmt: skip
    items = read_items(tmp_path / "out", "arc_zh")
    assert len(items) == rows["acc"]["items"] == 8
    assert rows["acc"]["value"] == sum(item["right"] for item in items) / 8
    assert all(len(item["logprobs"]) == 4 and item["picked"] in range(4) for item in items)
    assert contents["arc_zh"]["about"]["sha256"]
    assert "mean_chinese" in (tmp_path / "page.md").read_text()
    assert "40.95" in (tmp_path / "page.html").read_text()


def test_an_interrupted_evaluation_goes_on(
    model_folder: Path, benchmarks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (model_folder, "--suite", "chinese", "--benchmarks", benchmarks, "--out", tmp_path, "--json")
    original, seen = harness.score_task, []

    def interrupted(lm, prepared, *rest, **more):
        seen.append(prepared.name)
        if prepared.name == "xcopa_zh":
            raise KeyboardInterrupt
        return original(lm, prepared, *rest, **more)

    monkeypatch.setattr(harness, "score_task", interrupted)
    assert call(*arguments).exit_code != 0
    assert seen == ["arc_zh", "xcopa_zh"]
    assert [content["task"] for content in read_results(tmp_path)] == ["arc_zh"]

    monkeypatch.setattr(harness, "score_task", lambda lm, prepared, *rest, **more: (
        seen.append(prepared.name) or original(lm, prepared, *rest, **more)
    ))  # fmt: skip
    seen.clear()
    second = call(*arguments)
    assert second.exit_code == 0, second.output
    assert seen == ["xcopa_zh", "xnli_zh"]
    assert "arc_zh: stands" in second.stderr
    answer = json.loads(second.stdout)
    assert [row["set"] for row in answer["tasks"] if row["metric"] == "acc"] == ["arc_zh", "xcopa_zh", "xnli_zh"]
    assert answer["results"][-1]["set"] == "mean_chinese"
    assert answer["results"][-1]["partial"]
    seen.clear()
    limited = call(*arguments, "--limit", 3)  # other settings: scored anew
    assert limited.exit_code == 0
    assert seen == ["arc_zh", "xcopa_zh", "xnli_zh"]


def test_fewer_rows_than_the_benchmark_has_are_partial(
    model_folder: Path, benchmarks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sizes.SIZES, "xcopa_zh", {"": 8})
    arguments = (model_folder, "--suite", "chinese", "--benchmarks", benchmarks)
    answer = json.loads(call(*arguments, "--out", tmp_path, "--json").stdout)
    rows = {row["set"]: row for row in answer["results"] if row["metric"] in ("acc", "mean")}
    assert {name: row.get("partial", False) for name, row in rows.items()} == {
        "arc_zh": True, "xcopa_zh": False, "xnli_zh": True, "mean_chinese": True,
    }  # fmt: skip
    assert [row.get("benchmark_items") for row in rows.values()] == [1170, 8, 2490, None]
    shown = call(*arguments, "--out", tmp_path).stdout  # what stands is marked as well
    assert re.search(r"^exported\d*( +[\d.]+†?){4}$", shown, re.MULTILINE)
    assert "Questions scored: ARC-zh 8 of 1,170, XNLI-zh 8 of 2,490.\n" in shown
    assert re.search(r"xcopa_zh +0 +acc .* 8$", shown, re.MULTILINE)
    assert re.search(r"arc_zh +0 +acc .* 8 of 1,170$", shown, re.MULTILINE)


def test_another_split_than_the_benchmark_s_is_said_below_the_table(model_folder: Path, tmp_path: Path) -> None:
    rows = write_benchmarks(tmp_path / "rows", "xcopa_zh") / "xcopa_zh"
    (rows / "test.jsonl").rename(rows / "validation.jsonl")
    arguments = (model_folder, "--suite", "xcopa_zh", "--benchmarks", tmp_path / "rows", "--out", tmp_path / "out")
    row = json.loads(call(*arguments, "--json").stdout)["results"][0]
    assert (row["partial"], row["note"]) == (True, "scored on validation (the benchmark is scored on test)")
    assert "benchmark_items" not in row  # that is of the other split
    assert "\nXCOPA-zh: scored on validation (the benchmark is scored on test).\n" in call(*arguments).stdout


def test_what_cannot_be_scored_is_said_and_the_rest_is(benchmarks: Path, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    tokenizer = train_tokenizer(tmp_path / "small")
    save_model(make_model(tokenizer.vocab_size, context=64), tmp_path / "small")
    result = call(tmp_path / "small", "--suite", "triviaqa,piqa,mmlu", "--benchmarks", benchmarks, "--limit", 2, "--json",
                  "--out", tmp_path / "out")  # fmt: skip
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert any(
        "triviaqa: writes up to 256 tokens, and the model's context holds 64" in line for line in answer["missing"]
    )
    assert any(line.startswith("mmlu: 55 of 57 tasks") for line in answer["missing"])
    assert {row["set"] for row in answer["tasks"]} == {"piqa", "mmlu_anatomy", "mmlu_virology"}
    assert "mmlu_anatomy: 8 requests longer than the context lost their beginning" in result.stderr
    assert next(c for c in read_results(tmp_path / "out") if c["task"] == "mmlu_anatomy")["truncated"] == 8


def test_an_answer_longer_than_the_context_costs_only_its_task(benchmarks: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    tokenizer = train_tokenizer(tmp_path / "tiny")
    save_model(make_model(tokenizer.vocab_size, context=8), tmp_path / "tiny")
    arguments = (tmp_path / "tiny", "--suite", "xnli_zh,winogrande,xcopa_zh", "--benchmarks", benchmarks, "--json")
    result = call(*arguments, "--limit", 2, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    lost = {line.split(":")[0] for line in answer["missing"]}
    assert "xnli_zh" in lost  # whole sentences are its answers
    assert all("is longer than the context, 8" in line for line in answer["missing"])
    assert lost.isdisjoint(row["set"] for row in answer["tasks"])
    assert lost | {row["set"] for row in answer["tasks"]} == {"xnli_zh", "winogrande", "xcopa_zh"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("MODEL", "--suite", "chineze"), "no suite or task is called 'chineze'; did you mean chinese"),
        (("MODEL", "--suite", "mmlu_anatmy"), "did you mean mmlu_anatomy"),
        (("MODEL", "--suite", "sandbx"), "did you mean sandbox"),
        (("MODEL", "--suite", "chinese", "--benchmarks", "nowhere"), "nowhere: no such folder"),
        (("MODEL", "--suite", "sandbox"), "only a run has such questions"),
        (("nowhere", "--suite", "piqa", "--benchmarks", "ROWS"), "nowhere: no such folder"),
        (("MODEL",), "--suite, as in --suite paper"),
        (("MODEL", "--limit", "3"), "--limit needs --suite"),
        (("MODEL", "--suite", "mmlu", "--benchmarks", "ROWS", "--shots", "9"), "6 rows are too few for 9 examples"),
    ],
)
def test_mistakes(model_folder: Path, benchmarks: Path, arguments: tuple, message: str) -> None:
    places = {"MODEL": str(model_folder), "ROWS": str(benchmarks)}
    result = call(*(places.get(argument, argument) for argument in arguments))
    mistake = result.exception
    assert mistake.code == 2 if isinstance(mistake, SystemExit) else isinstance(mistake, UserError)
    assert message in f"{result.stderr} {mistake}"


def test_a_row_that_is_wrong_stops_before_anything_is_scored(model_folder: Path, tmp_path: Path) -> None:
    write_benchmarks(tmp_path, "xnli_zh")
    write_benchmarks(tmp_path, "arc_zh")
    path = tmp_path / "xnli_zh" / "validation.jsonl"
    path.write_text(path.read_text() + '{"premise": "a", "hypothesis": "b", "label": 3}\n')
    result = xmodel("evaluate", model_folder, "--suite", "chinese", "--benchmarks", tmp_path, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert f"{path}, line 9: label is 3; it has to be one of 0, 1, 2" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_recipe_may_name_the_paper_s_suites(model_folder: Path, benchmarks: Path, tmp_path: Path) -> None:
    from xmodel.inference.subjects import open_subject

    subject = open_subject(str(model_folder))
    wanted = Evaluate(suites=["chinese"], limit=4, benchmarks=str(benchmarks))
    found = run_suites(
        subject.model, subject.tokenizer, tmp_path, wanted, subject.bos, subject=subject, folder=tmp_path
    )
    assert list(found) == ["chinese"]
    assert [row["set"] for row in found["chinese"]["results"] if row["metric"] in ("acc", "mean")] == [
        "arc_zh", "xcopa_zh", "xnli_zh", "mean_chinese",
    ]  # fmt: skip
    assert all(row["items"] in (4, 12) for row in found["chinese"]["results"])
    assert len(read_results(tmp_path)) == 3


def test_tasks_and_layout() -> None:
    assert re.search(r"^problem-solving +mmlu +5 +acc +57$", call("tasks").stdout, re.MULTILINE)
    rows = json.loads(call("tasks", "--json").stdout)
    assert "mmlu_anatomy" in next(row["tasks"] for row in rows if row["name"] == "mmlu")
    printed = call("layout").stdout
    assert "arc_zh/   arc_zh (0-shot)" in printed
    assert "cais/mmlu" in printed


def test_fetch_says_what_could_not_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(path, name=None, **options):
        raise ConnectionError("no hub")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    result = call("fetch", tmp_path, "--suite", "piqa,boolq", "--json")
    assert json.loads(result.stdout)["failed"] == [
        "boolq: the hub cannot be reached",
        "the sets behind it were not asked for",
    ]
    assert "some sets could not be had" in str(result.exception)
