"""Benchmarks from local files: the harness's own prompts, every mistake with file and line, nothing from a network."""

from __future__ import annotations

import gzip
import json
import socket
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="the extra `harness`")

import pyarrow as pa
import pyarrow.parquet as pq
from rows import FILES, N, write_benchmarks, write_rows

from xmodel.errors import UserError
from xmodel.evaluate.local_rows import DATA, GLUE, data_of
from xmodel.evaluate.paper import BENCHMARKS, definitions, select
from xmodel.evaluate.tasks import Prepared, definition_digest, fetch, layout, open_task, prepare, rows_digest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"))


def one(name: str, folder: Path, shots: int | None = None) -> Prepared:
    ready, missing = prepare(select([name]), folder, shots)
    assert (len(ready), missing) == (1, [])
    return ready[0]


def prompts(task, shots: int) -> list[tuple]:
    task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(1234)
    task.build_all_requests()
    return [instance.args for instance in task.instances]


@pytest.mark.parametrize(
    ("name", "file", "splits"),
    [
        ("arc_easy", "arc/arc_easy.yaml", {"test": "arc_easy/test"}),
        ("winogrande", "winogrande/default.yaml", {"validation": "winogrande/validation"}),
        ("hellaswag", "hellaswag/hellaswag.yaml", {"validation": "hellaswag/validation"}),
        ("gsm8k", "gsm8k/gsm8k.yaml", {"train": "gsm8k/train", "test": "gsm8k/test"}),
        ("mrpc", "glue/mrpc/default.yaml", {"train": "glue/mrpc_train", "validation": "glue/mrpc_validation"}),
        ("xcopa_zh", "xcopa/default_zh.yaml", {"test": "xcopa_zh/test"}),
        ("xnli_zh", "xnli/xnli_zh.yaml", {"validation": "xnli_zh/validation"}),
        ("ceval-valid_law", "ceval/ceval-valid_law.yaml", {"val": "ceval/law_val", "dev": "ceval/law_dev"}),
    ],
)
def test_requests_are_those_of_the_harness_s_own_overlay(
    folder: Path, tmp_path: Path, name: str, file: str, splits: dict, monkeypatch
) -> None:
    """The golden way: a YAML that includes the stock one, read by the harness, its rows read by `datasets`."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    from lm_eval.tasks import TaskManager

    stock = next(path for task, path in definitions(owner(name)).items() if task == name)
    assert str(stock).endswith(file)
    files = {split: str(folder / f"{path}.jsonl") for split, path in splits.items()}
    everywhere = {key: next(iter(files.values())) for key in ("train", "validation", "test")} | files
    overlay = f"include: {stock}\ntask: overlay\ndataset_path: json\ndataset_name: null\n"
    (tmp_path / "overlay.yaml").write_text(overlay + f"dataset_kwargs: {json.dumps({'data_files': everywhere})}\n")
    manager = TaskManager(include_defaults=False, include_path=str(tmp_path))
    shots = owner(name).shots
    golden = prompts(manager.load(["overlay"])["tasks"]["overlay"], shots)
    ours = prompts(open_task(one(name, folder)), shots)
    assert ours == golden
    assert len(ours) >= N


def owner(name: str):
    return next(benchmark for benchmark in BENCHMARKS if name in definitions(benchmark))


def test_every_documented_example_is_a_row_that_the_harness_takes(tmp_path: Path) -> None:
    seen = set()
    for benchmark in BENCHMARKS:
        tasks = definitions(benchmark)
        name = next(iter(tasks))
        if benchmark.data == "glue":
            continue
        row = json.loads(DATA[benchmark.data].example)
        subset = {"bbh": "boolean_expressions", "mmlu": "anatomy", "ceval": "law", "cmmlu": "arts"}.get(benchmark.data)
        name = next((task for task in tasks if subset and task.split("_continuation")[0].endswith(subset)), name)
        stem = "test" if subset != "law" else "val"
        for split in (stem, "validation"):
            file = {"bbh": subset}.get(benchmark.data, split)
            write_rows(tmp_path / benchmark.data / f"{file}.jsonl", [row, row])
        prepared = one(name, tmp_path, shots=0)
        task = open_task(prepared)
        assert len(task.task_docs) == 2
        assert task.doc_to_text(task.task_docs[0]) is not None
        seen.add(benchmark.data)
    assert seen == set(DATA)
    for subset, (texts, _) in GLUE.items():
        assert set(texts) < set(json.loads(data_of("glue", subset).example))
    printed = layout()
    assert all(f"\n{benchmark.data}/ " in printed for benchmark in BENCHMARKS)
    assert max(map(len, printed.splitlines())) < 260


def test_files_of_other_kinds_and_of_all_subjects_are_the_same(folder: Path, tmp_path: Path) -> None:
    golden = one("mmlu_virology", folder, 2)
    assert len(golden.splits["test"]) == N // 2
    rows = [json.loads(line) for line in (folder / "mmlu" / "test.jsonl").read_text().splitlines()]
    dev = [json.loads(line) for line in (folder / "mmlu" / "dev.jsonl").read_text().splitlines()]
    (tmp_path / "mmlu").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mmlu" / "test.parquet")
    with gzip.open(tmp_path / "mmlu" / "dev.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in dev)
    assert one("mmlu_virology", tmp_path, 2).splits == golden.splits
    own = tmp_path / "own"
    for split, all_rows in (("test", rows), ("dev", dev)):
        write_rows(own / f"mmlu/virology_{split}.jsonl", [row for row in all_rows if row["subject"] == "virology"])
    assert one("mmlu_virology", own, 2).splits == golden.splits


def test_prepared_hellaswag_is_hellaswag(folder: Path, tmp_path: Path) -> None:
    raw = open_task(one("hellaswag", folder))
    fields = [{"query": doc["query"], "choices": doc["choices"], "label": int(doc["label"])} for doc in raw.task_docs]
    write_rows(tmp_path / "hellaswag" / "validation_prepared.jsonl", fields)
    assert prompts(open_task(one("hellaswag", tmp_path)), 0) == prompts(raw, 0)


def change(**fields):
    return lambda row: row | fields


def without(field: str):
    return lambda row: {key: value for key, value in row.items() if key != field}


@pytest.mark.parametrize(
    ("name", "file", "spoil", "message"),
    [
        ("arc_easy", "arc_easy/test", without("question"), "the field question is missing"),
        (
            "arc_easy",
            "arc_easy/test",
            change(answerKey="F"),
            "answerKey is 'F'; it has to be one of 'A', 'B', 'C', 'D'",
        ),
        ("arc_easy", "arc_easy/test", change(choices={"text": [], "label": []}), "list of texts, and not empty"),
        ("arc_easy", "arc_easy/test", change(choices={"text": ["a"], "label": ["A", "B"]}), "differ in length"),
        ("openbookqa", "openbookqa/test", change(choices={"text": ["a", " "], "label": ["A", "B"]}), "choice 2 is ' '"),
        ("boolq", "boolq/validation", change(label=2), "label is 2; it has to be one of 0, 1"),
        ("boolq", "boolq/validation", change(label=True), "label is True"),
        ("xnli_zh", "xnli_zh/validation", change(label="1"), "label is '1'; it has to be one of 0, 1, 2"),
        ("xnli_zh", "xnli_zh/validation", change(premise=""), "premise is empty"),
        ("piqa", "piqa/validation", change(sol2=""), "choice 2 is ''"),
        ("hellaswag", "hellaswag/validation", change(label="9"), "label is '9'"),
        ("winogrande", "winogrande/validation", change(sentence="no gap"), "sentence has no gap _"),
        ("winogrande", "winogrande/validation", change(answer=1), "answer is 1; it has to be one of '1', '2'"),
        ("mmlu_anatomy", "mmlu/test", change(answer=4), "answer is 4; it has to be one of 0, 1, 2, 3"),
        ("mmlu_anatomy", "mmlu/test", without("subject"), "the field subject is missing"),
        ("arc_zh", "arc_zh/test", change(answer="E"), "answer is 'E'"),
        ("arc_zh", "arc_zh/test", change(option_b=""), "option_c|one before it is not"),
        ("xcopa_zh", "xcopa_zh/test", change(question="why"), "it has to be 'cause' or 'effect'"),
        ("gsm8k", "gsm8k/train", change(answer="4"), "answer has no ####"),
        ("triviaqa", "triviaqa/validation", change(answer={"aliases": []}), "not empty"),
        ("mrpc", "glue/mrpc_validation", change(sentence2=None), "the field sentence2 is missing"),
    ],
)
def test_a_row_that_is_wrong(tmp_path: Path, name: str, file: str, spoil, message: str) -> None:
    write_benchmarks(tmp_path, file.split("/")[0])
    path = tmp_path / f"{file}.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows[2] = spoil(rows[2])
    write_rows(path, rows)
    with pytest.raises(UserError, match=message) as caught:
        prepare(select([name]), tmp_path)
    assert str(caught.value).startswith(f"{path}, line 3: ")


def test_a_line_that_is_no_json_and_a_folder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa" / "validation.jsonl").write_text('\n{"goal": \n')
    with pytest.raises(UserError, match=r"validation\.jsonl, line 2: not JSON"):
        prepare(select(["piqa"]), tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        prepare(select(["piqa"]), tmp_path / "nowhere")


def test_what_is_missing_is_listed_and_the_rest_is_prepared(tmp_path: Path) -> None:
    write_benchmarks(tmp_path, "mmlu")
    write_benchmarks(tmp_path, "piqa")
    ready, missing = prepare(select(["commonsense", "mmlu"]), tmp_path)
    assert [prepared.name for prepared in ready] == ["piqa", "mmlu_anatomy", "mmlu_virology"]
    assert len(missing) == 9
    assert any(line.startswith("boolq: no ") and "boolq/validation.jsonl" in line for line in missing)
    assert any(line.startswith("mmlu: 55 of 57 tasks (abstract_algebra, ") for line in missing)


def test_splits_that_stand_in_are_noted(folder: Path, tmp_path: Path) -> None:
    assert one("mrpc", folder).notes == ()
    write_rows(tmp_path / "sciq" / "validation.jsonl", [FILES["sciq/test"](n) for n in range(N)])
    assert one("sciq", tmp_path).notes == ("scored on validation (the benchmark is scored on test)",)
    write_rows(tmp_path / "glue" / "mrpc_validation.jsonl", [FILES["glue/mrpc_validation"](n) for n in range(N)])
    write_rows(tmp_path / "mmlu" / "anatomy_test.jsonl", [FILES["mmlu/test"](n) for n in range(N)])
    for name in ("mrpc", "mmlu_anatomy"):
        prepared = one(name, tmp_path)
        assert "examples from" in prepared.notes[0]
        task = open_task(prepared)
        for doc in task.task_docs:  # no question stands among its own examples
            context = task.fewshot_context(doc, num_fewshot=5)
            assert context.count(task.doc_to_text(doc)) == 1
    with pytest.raises(UserError, match=r"8 rows are too few for 8 examples \(mrpc\)"):
        prepare(select(["mrpc"]), tmp_path, shots=8)
    with pytest.raises(UserError, match="its definition holds 3 examples, not 4"):
        prepare(select(["bbh_fewshot_boolean_expressions"]), folder, shots=4)


def test_digests_tell_what_changed(folder: Path, tmp_path: Path) -> None:
    prepared = one("gsm8k", folder)
    assert definition_digest(prepared) == definition_digest(one("gsm8k", folder))
    assert definition_digest(prepared) != definition_digest(one("piqa", folder))
    write_benchmarks(tmp_path, "gsm8k")
    assert rows_digest(prepared) == rows_digest(one("gsm8k", tmp_path))
    with open(tmp_path / "gsm8k" / "train.jsonl", "a") as stream:
        stream.write(json.dumps(FILES["gsm8k/train"](40)) + "\n")
    assert rows_digest(prepared) != rows_digest(one("gsm8k", tmp_path))


def test_fetch_fills_a_folder_that_is_then_read(folder: Path, tmp_path: Path, monkeypatch) -> None:
    asked = []

    def load_dataset(path: str, name: str | None, **options):
        asked.append((path, name))
        if path == "baber/piqa":
            raise OSError("a broken file")
        return {
            split: [FILES[file](n) for n in range(N)]
            for file, split in {
                ("openai/gsm8k", "main"): {"gsm8k/test": "test", "gsm8k/train": "train"},
                ("nyu-mll/glue", "mrpc"): {"glue/mrpc_train": "train", "glue/mrpc_validation": "validation"},
                ("cais/mmlu", "anatomy"): {"mmlu/test": "test", "mmlu/dev": "dev"},
                ("SaylorTwift/bbh", "dyck_languages"): {"bbh/dyck_languages": "test"},
                ("facebook/xnli", "zh"): {"xnli_zh/validation": "validation"},
            }[path, name].items()
        }

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    names = ["gsm8k", "mrpc", "mmlu_anatomy", "bbh_fewshot_dyck_languages", "xnli_zh", "piqa"]
    written, failed = fetch(tmp_path, select(names))
    assert written == 8
    assert failed == ["piqa: OSError: a broken file"]
    ready, missing = prepare(select(names), tmp_path)
    assert {prepared.name for prepared in ready} == set(names) - {"piqa"}
    assert all(not prepared.notes for prepared in ready)
    assert len(missing) == 1
    asked.clear()
    assert fetch(tmp_path, select(names[:-1])) == (0, [])
    assert not asked


def test_nothing_goes_to_a_network(folder: Path, monkeypatch) -> None:
    def refuse(*arguments, **keywords):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    ready, _ = prepare(select(["paper", "beyond"]), folder)
    assert len(ready) == 9 + 4 + 2 + 1 + 2 + 3 + 1 + 1 + 1 + 2 + 1 + 1
    for prepared in ready:
        assert open_task(prepared).task_docs[0]
