"""HumanEval: nothing is run unless asked; asked, right programs pass and wrong, endless and dishonest ones do not."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="the extra `harness`")

from rows import write_rows
from tiny import make_model

from xmodel.evaluate import harness, paper, run_code
from xmodel.evaluate.harness import score_task
from xmodel.evaluate.results import read_items
from xmodel.evaluate.run_code import passes
from xmodel.evaluate.suites import score_tasks
from xmodel.evaluate.tasks import Prepared, open_task, prepare
from xmodel.inference.subjects import Subject

TEST = "def check(f):\n    assert f(1) == 2\n    assert f(-1) == 0\n"
ANSWERS = {  # -> whether it is right
    "    return value + 1": True,
    "    return value + 2": False,
    "    return value +": False,  # no Python
    "    import sys\n    sys.exit(0)": False,
    "    import os\n    os._exit(0)": False,
    "    print('x' * 10**6)\n    return input() or value + 1": False,  # nobody answers
    "    print(value)\n    return value + 1": True,
}


def rows(folder: Path) -> list[Prepared]:
    made = [
        {"task_id": f"t/{n}", "prompt": "def one_more(value):\n", "test": TEST, "entry_point": "one_more"}
        for n in range(len(ANSWERS))
    ]
    write_rows(folder / "humaneval" / "test.jsonl", made)
    return prepare(paper.select(["humaneval"]), folder)[0]


class Scripted:
    """In the place of a model: writes the answers."""

    truncated = 0

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        return list(ANSWERS)[: len(requests)]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The programs that were carried out."""
    seen: list[str] = []
    original = run_code.passes
    monkeypatch.setattr(run_code, "passes", lambda program: seen.append(program) or original(program))
    run_code._outcome.cache_clear()
    return seen


def test_without_run_code_nothing_is_run_and_no_score_is_given(
    tmp_path: Path, tokenizer, ran: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "lm_eval.tasks.humaneval.utils", raising=False)
    monkeypatch.setitem(sys.modules, "evaluate", None)  # whose import is the first thing that the harness's task does
    ready = rows(tmp_path)
    subject = Subject(make_model(tokenizer.vocab_size, context=1100), tokenizer, True, "tiny", None, {})
    monkeypatch.setattr(harness.SubjectLM, "generate_until", Scripted.generate_until)
    found, missing = score_tasks(subject, ready, [], tmp_path / "out", limit=3)
    assert (found, ran) == ([], [])
    assert missing == ["humaneval: its answers are kept, and not run, so it has no score (--run-code)"]
    assert missing[0] in capsys.readouterr().err
    records = read_items(tmp_path / "out", "humaneval")
    assert [record["output"] for record in records] == list(ANSWERS)[:3]
    assert all(record["right"] is None for record in records)
    assert "lm_eval.tasks.humaneval.utils" not in sys.modules


def test_with_run_code_answers_are_run_without_a_hub(tmp_path: Path, ran: list[str], monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "evaluate", None)
    prepared = rows(tmp_path)[0]._replace(run_code=True)
    found = score_task(Scripted(), prepared, open_task(prepared))  # pyright: ignore[reportArgumentType]
    assert [record["right"] for record in found["items"]] == list(map(float, ANSWERS.values()))
    row = found["results"][0]
    assert (row["metric"], row["value"], row["items"]) == ("pass@1", pytest.approx(2 / 7), 7)
    assert row["stderr"] == pytest.approx((2 / 7 * 5 / 7 / 6) ** 0.5)
    assert len(ran) == len(ANSWERS)  # each once
    assert ran[0] == f"def one_more(value):\n    return value + 1\n{TEST}\ncheck(one_more)"


def test_a_program_has_an_end_and_bounds(tmp_path: Path) -> None:
    started = time.monotonic()
    assert not passes("while True: pass", 0.5)
    assert time.monotonic() - started < 10
    assert not passes("x = bytearray(8 << 30)")
    assert passes("try:\n    x = bytearray(8 << 30)\nexcept MemoryError:\n    pass\nelse:\n    raise ValueError")
    (tmp_path / "mine").touch()
    for forbidden in ("import os\nos.system('true')", "import subprocess\nsubprocess.run(['true'])", "import os\nos.fork()",
                      "import os\nos.kill(os.getppid(), 9)", f"import os\nos.remove({str(tmp_path / 'mine')!r})"):  # fmt: skip
        assert not passes(forbidden), forbidden
    assert (tmp_path / "mine").exists()
    assert passes("import os\nassert not os.listdir('.') and 'HOME' not in os.environ\nopen('a', 'w').write('b')")
    assert passes("assert __name__ == 'builtins'")  # as where `code_eval` runs it: what stands under `main` is not run
    assert not passes("raise KeyboardInterrupt")
    assert json.dumps(passes("# \ud800")) == "true"  # a broken character is no fault of ours
