"""The experiments as commands, on a small finished run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from xmodel.cli import cli
from xmodel.errors import UserError


def run(*arguments: object) -> str:
    """Standard output of a command that goes well."""
    result = CliRunner().invoke(cli, ["evaluate", *map(str, arguments)])
    assert result.exception is None, result.exception
    return result.stdout


def refused(*arguments: object) -> str:
    """The message of a command that refuses; argument mistakes exit with 2 by themselves."""
    result = CliRunner().invoke(cli, ["evaluate", *map(str, arguments)])
    if isinstance(result.exception, UserError):
        return str(result.exception)
    assert result.exit_code == 2, result.exception
    return result.stderr


def test_perplexity_of_the_runs_own_text_is_that_of_its_evaluation(finished_run: Path) -> None:
    """The stage reads up to eval_tokens; with the same limit the command has the same figures."""
    told = json.loads((finished_run / "eval" / "perplexity.json").read_text())
    found = json.loads(run("perplexity", finished_run, "--limit-tokens", 2000, "--json"))
    stage = {(row["language"], row["metric"]): row["value"] for row in told["results"]}
    mine = {(row["language"], row["metric"]): row["value"] for row in found["results"] if "source" not in row}
    assert mine.keys() == stage.keys()
    for key, value in mine.items():
        assert value == pytest.approx(stage[key], rel=1e-5)
    assert found["settings"]["documents"] == "stream"
    assert found["about"]["step"] == 40


def test_perplexity_of_any_text(finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The road was long, but Mira was glad.")
    (tmp_path / "b.txt").write_text("路很长，可是小林很高兴。", encoding="utf-8")
    out = tmp_path / "out.json"
    shown = run(
        "perplexity", finished_run, "--text", tmp_path / "a.txt", tmp_path / "b.txt", "--stride", 16, "--out", out
    )
    assert "window 64, stride 16; every document by itself" in shown
    assert {line.split()[0] for line in shown.splitlines()[3:5]} == {"en", "zh"}
    kept = json.loads(out.read_text())
    assert [item["id"] for item in kept["items"]] == [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    (tmp_path / "empty.txt").write_text(" \n")
    assert "no document with a text in it" in refused("perplexity", finished_run, "--text", tmp_path / "empty.txt")
    assert "--window 65" in refused("perplexity", finished_run, "--text", tmp_path / "a.txt", "--window", 65)
    assert "no such file or folder" in refused("perplexity", finished_run, "--text", tmp_path / "nowhere")
    exported = finished_run / "export" / "hf"
    assert "not a run, so it has no held-out text" in refused("perplexity", exported)
    same = [
        json.loads(run("perplexity", where, "--text", tmp_path / "a.txt", "--dtype", "fp32", "--json"))["results"][0]
        for where in (finished_run, exported)
    ]
    assert same[1]["value"] == pytest.approx(same[0]["value"], rel=1e-2)  # the export is in bf16
    assert same[0]["tokens"] == same[1]["tokens"]


def test_translate(finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "translation.json"
    found = json.loads(run("translate", finished_run, "--shots", "0,1", "--limit", 4, "--json", "--out", out))
    assert {(row["set"], row["shots"], row["metric"]) for row in found["results"]} == {
        (f"translation_{pair}", shots, metric)
        for pair in ("en_zh", "zh_en")
        for shots in (0, 1)
        for metric in ("acc", "chrf", "bleu")
    }
    assert len(json.loads(out.read_text())["outputs"]) == 16
    shown = run("translate", finished_run, "--pairs", "everyday", "--shots", "0", "--limit", 4)
    assert "pairs: everyday; sacrebleu: " in shown
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"zh": "路。"}\n', encoding="utf-8")
    assert f'{pairs}, line 1: a pair needs a text in the field "en"' in refused(
        "translate", finished_run, "--pairs", pairs
    )
    assert "'0,x' is not a list of numbers" in refused("translate", finished_run, "--shots", "0,x")


def test_curve_and_diff(finished_run: Path, tmp_path: Path) -> None:
    shown = run(
        "curve",
        finished_run,
        "--shots",
        "0,1",
        "--limit",
        4,
        "--plot",
        tmp_path / "c.png",
        "--out",
        tmp_path / "a.json",
    )
    assert all(f"\n{name} " in shown for name in ("everyday_en", "everyday_zh", "facts_en", "cloze_zh", "mean_en"))
    assert (tmp_path / "c.png").stat().st_size > 10_000
    run("curve", finished_run, "--shots", "0,1", "--limit", 4, "--step", 32, "--out", tmp_path / "b.json", "--json")
    html, markdown = tmp_path / "d.html", tmp_path / "d.md"
    run("diff", tmp_path / "a.json", tmp_path / "b.json", "--html", html, "--markdown", markdown)
    assert "facts_en" in html.read_text()
    assert "| facts_en |" in markdown.read_text()
    found = json.loads(run("diff", finished_run, finished_run, "--json"))
    assert {row["value"] for row in found["results"]} == {0.0}
    assert {"bits_per_byte", "acc", "acc_norm"} <= {row["metric"] for row in found["results"]}
    assert "they are not the same" in refused("diff", finished_run / "eval" / "sandbox.json", tmp_path / "a.json")
    assert "did you mean facts_en" in refused("curve", finished_run, "--sets", "fact_en", "--shots", "0")
    assert "cannot be drawn" in refused("curve", finished_run, "--plot", tmp_path / "c.bmp")
    exported = run("curve", finished_run / "export" / "hf", "--shots", "0", "--limit", 2)
    assert [line.split()[0] for line in exported.splitlines()[3:5]] == ["everyday_en", "everyday_zh"]


def test_contamination(finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    found = json.loads(run("contamination", finished_run, "--json", "--out", out))
    assert {"everyday_en", "everyday_zh", "facts_en"} <= {row["set"] for row in found["sets"]}
    assert found["documents"] > 100
    assert "items" in json.loads(out.read_text())
    benchmark = tmp_path / "benchmarks" / "boolq"
    benchmark.mkdir(parents=True)
    leaked = first_document(finished_run)
    (benchmark / "validation.jsonl").write_text(json.dumps({"question": leaked[:300]}) + '\n{"question": "a b c"}\n')
    shown = run("contamination", finished_run, "--sets", "everyday_en", "--benchmarks", tmp_path / "benchmarks")
    line = next(line for line in shown.splitlines() if line.startswith("boolq"))
    assert line.split()[1:6] == ["2", "1", "1", "1", "50.0"]
    assert "boolq" not in shown.split("MB/s")[1].splitlines()[0]
    assert "did you mean everyday_en" in refused("contamination", finished_run, "--sets", "everyday_e")
    assert "no training text" in refused("contamination", tmp_path)
    assert "matches nothing" in refused("contamination", finished_run, "--benchmarks", tmp_path / "nowhere")


def first_document(folder: Path) -> str:
    import pyarrow.parquet as pq

    column = pq.read_table(folder / "corpus" / "train" / "world-en.parquet", columns=["text"])["text"]
    return next(text for text in column.to_pylist() if len(text) > 300)


def test_a_contaminated_set_is_scored_with_and_without(finished_run: Path, tmp_path: Path) -> None:
    """A document with two of the questions is put into the training text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    copy = tmp_path / "run"
    for part in ("eval", "corpus/questions", "corpus/train"):
        shutil.copytree(finished_run / part, copy / part)
    rows = [json.loads(line) for line in (copy / "corpus/questions/commonsense_en.jsonl").read_text().splitlines()]
    scored = {item["id"] for item in json.loads((copy / "eval/sandbox.json").read_text())["items"]}
    asked = [row for row in rows if row["split"] == "test" and row["id"] in scored][:2]
    text = "\n".join(row["prompt"] + row["choices"][row["answer"]] for row in asked)
    pq.write_table(pa.table({"id": ["leak"], "text": [text]}), copy / "corpus/train/leak.parquet")
    found = json.loads(run("contamination", copy, "--sets", "commonsense_en", "--json", "--out", tmp_path / "x.json"))
    items = {item["id"]: item for item in json.loads((tmp_path / "x.json").read_text())["items"]}
    long = [row for row in asked if len((row["prompt"] + row["choices"][row["answer"]]).split()) > 8]
    assert long
    assert all(items[row["id"]]["share"] == 1.0 for row in long)
    score = next(row for row in found["scores"] if row["metric"] == "acc" and row["shots"] == 0)
    assert score["all"]["items"] == score["clean"]["items"] + score["contaminated"]["items"]
    assert score["contaminated"]["items"] >= len(long)


def test_a_suite_of_a_run_is_scored_with_and_without_what_it_was_trained_on(run_copy: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra `harness`")
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [
        f"Why did the {n}th old fisherman leave his boat number {n * n} at the harbour in winter {n}?" for n in range(6)
    ]
    rows = [
        {"question": text, "choices": {"text": ["ice", "sun"], "label": ["A", "B"]}, "answerKey": "A"} for text in texts
    ]
    (tmp_path / "rows" / "arc_easy").mkdir(parents=True)
    (tmp_path / "rows" / "arc_easy" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.table({"id": ["leak"], "text": [texts[2] + " ice"]}), run_copy / "corpus/train/leak.parquet")
    arguments = (run_copy, "--suite", "arc_easy", "--benchmarks", tmp_path / "rows", "--json")
    found = json.loads(run(*arguments))
    row = next(row for row in found["results"] if (row["set"], row["metric"]) == ("arc_easy", "acc"))
    assert (row["contaminated"], row["searched"], row["clean"]["items"], row["items"]) == (1, 6, 5, 6)
    assert (run_copy / "evaluations" / "contamination.json").is_file()
    assert "contamination" in [table["title"] for table in json.loads(next(run_copy.rglob("tables.json")).read_text())]
    without = json.loads(run(*arguments, "--no-contamination", "--out", tmp_path / "out"))
    assert "clean" not in without["results"][0]
    assert "--contamination needs --suite" in refused(run_copy, "--no-contamination")
