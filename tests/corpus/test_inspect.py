"""What `xmodel corpus stats|sample|why` say of a finished corpus."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner

from xmodel.cli import cli
from xmodel.errors import UserError

RECIPE = """\
name: looked-at
corpus:
  dirt: 0.2
  sources:
    - {{name: world-en, reader: sandbox, paths: [en, parallel], weight: 0.5, documents: 600}}
    - {{name: lines, paths: ["lines*.jsonl"], language: en, weight: 0.5}}
  validation: [{{name: own, paths: [own.jsonl]}}]
  holdout: 0.1
  keep_dropped: {kept}
model: {{preset: nano}}
"""


@pytest.fixture(scope="module", params=["false", "true"])
def run(request, tmp_path_factory) -> Path:
    """A finished corpus, without and with the text of what was dropped."""
    folder = tmp_path_factory.mktemp("looked-at")
    texts = [f"The lighthouse keeper lit lamp number {number}." for number in range(60)]
    for number in range(2):
        lines = [{"id": f"{'ab'[number]}{n}", "text": text} for n, text in enumerate(texts[30 * number :][:35])]
        (folder / f"lines{number}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "own.jsonl").write_text(json.dumps({"id": "v", "text": texts[7].upper()}) + "\n")
    with open(folder / "lines1.jsonl", "a") as stream:
        stream.write(json.dumps({"id": "noise", "text": "#$%^&*~`{}|" * 9}) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE.format(kept=request.param))
    result = CliRunner().invoke(cli, ["corpus", str(folder / "recipe.yaml"), "--dir", str(folder / "run")])
    assert result.exit_code == 0, result.exception
    return folder / "run"


def ask(*arguments: object) -> list | dict:
    result = CliRunner().invoke(cli, ["corpus", *map(str, arguments), "--json"], catch_exceptions=False)
    return json.loads(result.stdout)


def test_stats_sum_up(run):
    funnel, found = json.loads((run / "corpus" / "funnel.json").read_text()), ask("stats", run)
    by_source = {}
    for row in found["stages"]:
        by_source.setdefault(row["source"], []).append(row)
    for name, rows in by_source.items():
        entry = funnel["sources"].get(name, funnel["total"])
        assert rows[0]["in"] == entry["read"]
        assert rows[-1]["out"] == entry["kept"]
        for before, after in pairwise(rows):
            assert before["out"] == after["in"]
        for row in rows:
            assert all(row["in"][unit] - row["dropped"][unit] == row["out"][unit] for unit in ("documents", "bytes"))
    for name, entry in funnel["sources"].items():
        reasons = {}
        for row in found["reasons"]:
            if row["source"] == name:
                amount = reasons.setdefault(row["reason"], {"documents": 0, "bytes": 0})
                amount["documents"] += row["documents"]
                amount["bytes"] += row["bytes"]
        assert reasons == entry["dropped"]
        own = [row for row in found["languages"] if row["source"] == name]
        for step in ("read", "validation", "kept"):
            assert sum(row[step] for row in own) == entry[step]["documents"]
    assert [row["stage"] for row in by_source["total"]] == [
        "filters", "decontamination", "validation sources", "exact duplicates", "near duplicates", "held out",
    ]  # fmt: skip
    shown = CliRunner().invoke(cli, ["corpus", "stats", str(run)]).stdout
    assert "exact duplicates" in shown
    assert found["tokens"] == {}


def test_samples_show_what_a_rule_drops(run):
    rows = ask("sample", run, "--count", 2)
    reasons = [row["reason"] for row in rows]
    assert reasons == sorted(reasons)
    assert {"symbols", "duplicate", "contaminated", "in_validation"} <= set(reasons)
    assert max(map(reasons.count, reasons)) == 2
    assert all(row["text"] for row in rows)
    rows = ask("sample", run, "symbols", "--source", "lines")
    assert [(row["id"], row["text"]) for row in rows] == [("noise", "#$%^&*~`{}|" * 9)]
    with pytest.raises(
        UserError, match=r"symbol: nothing was dropped for that; reasons met are boilerplate, .*symbols"
    ):
        ask("sample", run, "symbol")
    with pytest.raises(UserError, match="--source lime: no such source; the sources are own, world-en, lines"):
        ask("sample", run, "--source", "lime")


def test_why_tells_the_story_of_a_document(run):
    (noise,) = ask("why", run, "noise")
    assert (noise["outcome"], noise["reason"], noise["stage"]) == ("dropped", "symbols", "filters")
    failed = {row["rule"]: row for row in noise["quantities"] if row["fails"]}
    assert failed["max_symbol_share"]["value"] > failed["max_symbol_share"]["threshold"] == 0.3
    (copy,) = ask("why", run, "b2")  # the 33rd text once more
    assert (copy["reason"], copy["stage"]) == ("duplicate", "exact duplicates")
    assert copy["equals"] == {"source": "lines", "id": "a32", "text": copy["text"]}
    assert not any(row["fails"] for row in copy["quantities"])
    (known,) = ask("why", run, "a7")
    assert (known["reason"], known["equals"]["id"]) == ("in_validation", "v")
    assert known["equals"]["text"] == known["text"].upper()
    assert [row["outcome"] for row in ask("why", run, "v")] == ["validation"]
    shown = CliRunner().invoke(cli, ["corpus", "why", str(run), "b2"]).stdout
    assert "b2 (lines, en): dropped as duplicate (exact duplicates)\n  equals a32 (lines): The lighthouse" in shown
    with pytest.raises(UserError, match="nobody: no document of the corpus has this id"):
        ask("why", run, "nobody")


def test_a_run_without_a_corpus_is_told_so(tmp_path, run):
    (tmp_path / "recipe.yaml").write_bytes((run / "recipe.yaml").read_bytes())
    with pytest.raises(UserError, match=r"has no finished corpus; `xmodel corpus .*` makes it"):
        ask("stats", tmp_path)
