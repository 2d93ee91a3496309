"""Benchmarks: the layouts they come in, what of them is found in training text, and what becomes of the text."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodel.corpus.batches import mark, raw_batch
from xmodel.corpus.benchmarks import Benchmark, load_benchmarks
from xmodel.corpus.decontaminate import Held, Overlaps, cut, decontaminating, decontamination, warn_of_unmatched
from xmodel.corpus.folding import fold_texts, folding
from xmodel.corpus.ngrams import SHORT, SPAN, index_texts, search
from xmodel.corpus.sources import input_files
from xmodel.errors import UserError
from xmodel.recipe.load import load_recipe
from xmodel.recipe.settings import Corpus

SHARED = Path(__file__).parents[2] / "../shared/benchmarks"
ITEM = "Janet's ducks lay sixteen eggs per day and she eats three of them for breakfast every single morning."
CHINESE = "安娜手上拿着一个冰块，为什么冰块会在她的手中慢慢融化成水并且滴到地上去呢？"
SHORT_ITEM = "Which planet is known for its beautiful rings?"


def batch_of(texts: list[str]) -> pa.RecordBatch:
    return folding(raw_batch([str(number) for number in range(len(texts))], texts))


def reasons(texts: list[str], items: list[list[str]], how="drop_document") -> list[bool]:
    stage = decontamination([], [Benchmark("b", items)], how)
    return [reason == "contaminated" for reason in stage(batch_of(texts))["reason"].to_pylist()]


# ── N-grams against an independent reading of the same rule ──────────────────────────────────────────────────────────

UNIT = re.compile(r"[\u4e00-\u9fff]|[a-z0-9]+")


def naive_units(text: str) -> list[str]:
    return UNIT.findall(fold_texts([text])[0].decode())


def naive_hits(text: str, items: list[str]) -> set[int]:
    def windows(units: list[str], least: int) -> set[tuple[str, ...]]:
        found = set()
        for end in range(1, len(units) + 1):
            weight = 0
            for start in range(end - 1, -1, -1):
                weight += 1 if "\u4e00" <= units[start][0] <= "\u9fff" else 2
                if weight >= least:
                    found.add(tuple(units[start:end]))
                    break
        return found

    document = naive_units(text)
    hits = set()
    for number, item in enumerate(items):
        units = naive_units(item)
        weight = sum(1 if "\u4e00" <= unit[0] <= "\u9fff" else 2 for unit in units)
        if weight >= SPAN:
            found = bool(windows(units, SPAN) & windows(document, SPAN))
        else:
            runs = [document[at : at + len(units)] for at in range(len(document) - len(units) + 1)]
            found = weight >= SHORT and units in runs
        hits |= {number} if found else set()
    return hits


WORDS = st.lists(st.sampled_from(["a", "b1", "The", "中", "国", ",", "。", "\n", " ", "é"]), max_size=60)
JOINED = WORDS.map(lambda words: " ".join(words).replace("é", ""))


@settings(max_examples=150, deadline=None)
@given(st.lists(JOINED, min_size=1, max_size=4), st.lists(JOINED, min_size=1, max_size=3), st.integers(0, 40))
def test_search_finds_what_a_naive_search_finds(items, documents, size):
    documents = [*documents, documents[0] + " " + items[0][:size], items[-1]]
    hits = search(
        batch_of(documents)["folded"], np.ones(len(documents), bool), index_texts(items, np.arange(len(items)))
    )
    for number, document in enumerate(documents):
        assert set(hits[hits[:, 0] == number, 1].tolist()) == naive_hits(document, items)


def test_thirteen_words_and_twenty_six_characters_are_enough_and_one_less_is_not():
    words, characters = ITEM.split(), [c for c in CHINESE if c not in "，？"]
    inside = "Before that. {} After that."
    texts = [inside.format(" ".join(words[2:15])), inside.format(" ".join(words[2:14]))]
    texts += [inside.format("".join(characters[3:29])), inside.format("".join(characters[3:28]))]
    assert reasons(texts, [[ITEM], [CHINESE]]) == [True, False, True, False]


def test_case_width_and_punctuation_do_not_matter():
    texts = [
        ITEM.upper(),
        ITEM.replace(" ", "\n- "),
        CHINESE.replace("，", " , "),
        "ｊａｎｅｔ" + ITEM[5:],
        "x" + ITEM[1:40],
    ]
    assert reasons(texts, [[ITEM], [CHINESE]]) == [True, True, True, True, False]


def test_a_short_item_counts_as_a_whole_and_a_very_short_one_not_at_all():
    texts = [f"He asked: {SHORT_ITEM} Saturn.", "Which planet is known for its beautiful rivers", "What is it? A pen."]
    assert reasons(texts, [[SHORT_ITEM], ["What is it?", "A pen."]]) == [True, False, False]


def test_items_of_short_texts_are_searched_for_as_they_follow_each_other():
    assert reasons(
        ["问：该物品用气泡包装纸包着。它很易碎。它很小。"], [["该物品用气泡包装纸包着。", "它很易碎。", "它很小。"]]
    ) == [True]


def test_templates_of_a_benchmark_are_no_evidence():
    template = "The following paragraphs each describe a set of five objects arranged in a fixed order on a shelf"
    items = [
        [
            f"{template}. Number {n}: the {n} {n + 1} {n + 2} stands left of the {n + 3} which is never on the right side."
        ]
        for n in range(30)
    ]
    assert reasons([template, items[3][0]], items) == [False, True]


# ── What becomes of a contaminated document ──────────────────────────────────────────────────────────────────────────

BEFORE, AFTER = "Words that come before. " * 40, "And these come after it. " * 40


def test_a_span_is_cut_with_its_surroundings():
    texts = [BEFORE + ITEM + AFTER, "Nothing of the kind.", ITEM]
    held = Held([], [Benchmark("b", [[ITEM]])])
    batch = decontaminating(batch_of(texts), held, "drop_span")
    assert batch["reason"].to_pylist() == [None, None, "contaminated"]
    kept = batch["text"][0].as_py()
    first, second = kept.split("\n\n")
    assert BEFORE.startswith(first)
    assert AFTER.endswith(second + " ")
    assert len(BEFORE) - len(first) >= 200 > len(BEFORE) - len(first) - 30
    assert batch["cut_bytes"].to_pylist() == [len(texts[0]) - len(kept), 0, 0]
    assert batch["text"].to_pylist()[1:] == texts[1:]
    assert batch["folded"].to_pylist() == fold_texts(batch["text"].to_pylist())
    assert batch["overlap"].to_pylist() == [[0], [], [0]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["Ⅷ", "ﷺ", " ", "中", "é", "a", "\u200b", "ﬁ"]), max_size=40), st.booleans())
def test_places_are_right_where_folding_changes_lengths(odd, chinese):
    noise, item = "".join(odd), CHINESE if chinese else ITEM
    text = "甲 " * 300 + noise + f"\n{item}\n" + noise + "乙 " * 300
    batch = decontaminating(batch_of([text]), Held([], [Benchmark("b", [[item]])]), "drop_span")
    kept = batch["text"][0].as_py()
    assert batch["reason"][0].as_py() is None
    assert not set(item.replace("手", "")) & set(kept) - set(noise) - set(" a")
    assert kept.count("甲") > 150
    assert kept.count("乙") > 150


def test_too_many_pieces_are_a_contaminated_document():
    assert cut("x" * 300 + "y" + "x" * 300, [[300, 301]]) == ""
    assert len(cut("x" * 500 + "y" + "x" * 500, [[500, 501]]).split("\n\n")) == 2
    long = ("z" * 900 + ITEM) * 12
    assert reasons([long], [[ITEM]], "drop_span") == [True]


def test_documents_with_a_reason_are_left_alone():
    batch = mark(batch_of([ITEM, ITEM]), ["too_short"], np.array([0, -1]))
    batch = decontaminating(batch, Held([], [Benchmark("b", [[ITEM]])]))
    assert (batch["reason"].to_pylist(), batch["overlap"].to_pylist()) == (["too_short", "contaminated"], [[], [0]])


def test_overlaps_are_counted_per_benchmark_and_merge(capsys):
    question = {
        "set": "facts",
        "split": "test",
        "prompt": "What is the capital city of the country of Konia?",
        "choices": ["x"],
        "answer": 0,
    }
    held = Held([question], [Benchmark("arc", [[CHINESE]]), Benchmark("gsm8k", [[ITEM], ["too short"], ["n " * 30]])])
    one, two = Overlaps(held), Overlaps(held)
    one.add(decontaminating(batch_of([ITEM, ITEM + CHINESE, "clean"]), held))
    two.add(decontaminating(batch_of([ITEM, question["prompt"]]), held))
    one += two
    assert one.describe() == {
        "facts": {"items": 1, "searched": 1, "found": 1, "documents": 1},
        "arc": {"items": 1, "searched": 1, "found": 1, "documents": 1},
        "gsm8k": {"items": 3, "searched": 2, "found": 1, "documents": 3},
    }
    warn_of_unmatched(two.describe())
    error = capsys.readouterr().err
    assert "met none of the 1 items of arc (1 long enough" in error
    assert "gsm8k" not in error


# ── Layouts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_layouts(tmp_path):
    row = {"id": "x", "question": ITEM, "choices": {"text": ["one", "two"]}, "passage": "left out", "label": 1}
    table = pa.Table.from_pylist([row])
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "test.jsonl").write_text(json.dumps(row) + "\n\n")
    (tmp_path / "lines" / "train.jsonl").write_text("not even JSON")  # training splits are left out
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "bbh.json").write_text(json.dumps({"canary": "do not train", "examples": [row]}))
    (tmp_path / "columns" / "data").mkdir(parents=True)
    pq.write_table(table, tmp_path / "columns" / "data" / "test-00000-of-00001.parquet")
    (tmp_path / "comma").mkdir()
    with open(tmp_path / "comma" / "val.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([["question", "a", "b", "id"], [ITEM, "one", "two", "7"]])
    saved = tmp_path / "saved" / "test"
    saved.mkdir(parents=True)
    with pa.ipc.new_stream(str(saved / "data-00000-of-00001.arrow"), table.schema) as stream:
        stream.write_table(table)
    (saved / "state.json").write_text("{}")
    (saved.parent / "dataset_dict.json").write_text('{"splits": ["test"]}')
    found = load_benchmarks([str(tmp_path)])
    assert [benchmark.name for benchmark in found] == ["columns", "comma", "lines", "list", "saved"]
    assert all(benchmark.items == [[ITEM, "one", "two"]] for benchmark in found)
    (alone,) = load_benchmarks([str(tmp_path / "saved")])
    assert (alone.name, alone.items) == ("saved", [[ITEM, "one", "two"]])


def test_what_matches_nothing_is_said_aloud(tmp_path):
    with pytest.raises(UserError, match=r"corpus\.benchmarks\[0\]: .*nowhere matches nothing"):
        load_benchmarks([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match=r"corpus\.benchmarks\[0\]: .* holds no benchmark"):
        input_files(Corpus(benchmarks=[str(tmp_path)]))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "test.jsonl").write_text('{"label": 1}\n')
    with pytest.raises(UserError, match=r"the benchmark empty holds no item with a text"):
        load_benchmarks([str(tmp_path)])
    (tmp_path / "empty" / "test.jsonl").write_text("{oops}\n")
    with pytest.raises(UserError, match=r"test\.jsonl:1: not JSON"):
        load_benchmarks([str(tmp_path)])


def test_benchmark_folders_start_from_the_recipe(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "corpus:\n  sources: [{name: s, paths: [s.jsonl], weight: 1}]\n  benchmarks: [suites]\nmodel: {preset: nano}\n"
    )
    assert load_recipe(tmp_path / "a.yaml").corpus.benchmarks == [str(tmp_path / "suites")]


def test_every_item_of_the_papers_suites_is_found_in_a_copy_of_itself():
    if not SHARED.exists():
        pytest.skip("../shared/benchmarks is not here")
    benchmarks = load_benchmarks([str(SHARED)])
    assert len(benchmarks) == 16
    held = Held([], benchmarks)
    overlaps = Overlaps(held)
    texts = ["A page. " + "\n".join(item) + " The end." for benchmark in benchmarks for item in benchmark.items]
    overlaps.add(decontaminating(batch_of(texts), held))
    rows = overlaps.describe()
    assert all(row["found"] == row["searched"] for row in rows.values())
    assert sum(row["searched"] for row in rows.values()) > 0.9 * sum(row["items"] for row in rows.values())
