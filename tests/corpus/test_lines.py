"""Line-level cleaning: what goes, what stays, and counts that do not depend on who counted."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodel.corpus.batches import raw_batch
from xmodel.corpus.folding import fold, folding
from xmodel.corpus.lines import cleaning, collect, dropped_lines
from xmodel.recipe.settings import LineFilters

OFF = LineFilters(max_furniture_share=1, max_copies=0, max_document_share=1, max_removed_share=1)
PROSE = "The lighthouse keeper climbed the stairs every evening and lit the lamp at the top."
CHINESE = "每天傍晚，守塔人都会爬上楼梯，点亮灯火，因为海上还有船只没有回来。"
COOKIES = "We use cookies to improve your experience. Accept all cookies"
COMMON = "This page was saved by the society of friends of the lighthouse."


def batch_of(texts: list[str]) -> pa.RecordBatch:
    return folding(raw_batch([str(number) for number in range(len(texts))], texts))


def cleaned(texts: list[str], counts=None, **changed) -> tuple[list[str], list[int], list[str | None]]:
    batch = cleaning(batch_of(texts), dataclasses.replace(OFF, **changed), counts)
    return tuple(batch[name].to_pylist() for name in ("text", "lines_removed", "reason"))


def test_furniture_goes_and_the_document_stays():
    text = (
        f"Home | About us | Contact us | Log in\n{PROSE}\n{COOKIES}\n\n{CHINESE}\n版权所有，未经许可不得转载。\n{PROSE}"
    )
    wanted = f"{PROSE}\n\n{CHINESE}\n{PROSE}"
    assert cleaned([text, PROSE], max_furniture_share=0.4) == ([wanted, PROSE], [3, 0], [None, None])
    heading = "# Terms of service\n" + PROSE
    assert cleaned([heading], max_furniture_share=0.4)[0] == [heading]


def test_a_document_of_furniture_is_dropped_whole():
    texts = [f"{COOKIES}\n{COOKIES}\nOk", PROSE]
    found = cleaned(texts, max_furniture_share=0.4, max_removed_share=0.4)
    assert found == (texts, [0, 0], ["boilerplate", None])


def test_earlier_reasons_stand_and_such_text_is_left_alone():
    batch = batch_of([f"{PROSE}\n{COOKIES}\n"])
    batch = batch.set_column(batch.schema.get_field_index("reason"), "reason", pa.array(["before"]))
    done = cleaning(batch, LineFilters())
    assert done["text"].to_pylist() == batch["text"].to_pylist()
    assert done["reason"].to_pylist() == ["before"]


def test_lines_common_to_a_source_go():
    texts = [f"Story {number} of the sea.\n{PROSE} {number}\n  {COMMON}\n" for number in range(100)]
    counts = collect([batch_of(texts[:30]), batch_of(texts[30:])])
    assert counts.documents == 100
    some = {"max_document_share": 0.5, "min_documents": 20}
    wanted = [text.replace(f"  {COMMON}\n", "") for text in texts]
    assert cleaned(texts, counts, **some) == (wanted, [1] * 100, [None] * 100)
    assert cleaned(texts, counts, **some | {"min_documents": 100})[0] == texts
    assert cleaned(texts, None, **some)[0] == texts


def test_a_line_counts_once_for_each_document_that_holds_it():
    counts = collect([batch_of([f"{COMMON}\n" * 50, PROSE])])
    assert cleaned([f"{COMMON}\n{PROSE}"], counts, min_documents=1, max_document_share=0.0)[1] == [0]


def test_headings_code_and_tables_are_no_lines_of_text():
    kept = [
        "## How to teach the things that are written here", "    indented = code(that, is, the, same, everywhere)",
        "| a row | of a | table of | names and | of numbers |", "// compile with: the options that are named below",
        "```\nTotal number of the lines that are here is one\n```", "int main() {", "See also", "另见",
    ]  # fmt: skip
    texts = ["\n".join(kept)] * 30
    assert cleaned(texts, collect([batch_of(texts)]), min_documents=1, max_document_share=0.0)[0] == texts
    texts = [f"{COMMON}\n{CHINESE}\n{CHINESE[:9]}"] * 30
    assert cleaned(texts, collect([batch_of(texts)]), min_documents=1, max_document_share=0.0)[0] == [CHINESE[:9]] * 30


def test_copies_within_a_document():
    text = f"{PROSE}\n" * 3 + f"{COMMON}\n" + f"{PROSE}\n" * 2
    assert cleaned([text], max_copies=2) == ([f"{PROSE}\n" * 2 + f"{COMMON}\n"], [3], [None])


LINES = st.sampled_from(["", " ", "x", PROSE, CHINESE, COMMON, COOKIES, "# " + PROSE, "```", "\t" + PROSE, "a b 中 𠀀"])
TEXTS = st.lists(st.lists(LINES, max_size=6).map("\n".join), min_size=1, max_size=12)


@settings(max_examples=30, deadline=None)
@given(TEXTS, st.integers(0, 12), st.randoms())
def test_nothing_but_whole_lines_goes_and_counts_add_up(texts, cut, shuffle: random.Random):
    batch = batch_of(["front", *texts])[1:]
    whole = collect([batch])
    parts = [collect([batch[:cut]]), collect([batch[cut:]] if cut < len(batch) else [])]
    shuffle.shuffle(parts)
    assert (parts[0] + parts[1]).documents == whole.documents
    np.testing.assert_array_equal((parts[0] + parts[1]).sketch_RW, whole.sketch_RW)

    some = LineFilters(min_documents=1, max_document_share=0.0, max_copies=2, max_removed_share=1)
    starts_L1, documents_L, _, dropped_L = dropped_lines(batch["text"], np.ones(len(batch), bool), some, whole)
    assert len(starts_L1) == len(dropped_L) + 1
    split = [text.splitlines(keepends=True) for text in texts]
    assert np.bincount(documents_L, minlength=len(texts)).tolist() == [len(lines) for lines in split]
    gone = iter(dropped_L)
    wanted = ["".join([line for line in lines if not next(gone)]) for lines in split]
    done = cleaning(batch, some, whole)
    assert done["text"].to_pylist() == wanted
    done["text"].validate(full=True)
    assert done["folded"].equals(fold(done["text"]))
    assert sum(done["lines_removed"].to_pylist()) == dropped_L.sum()


def test_an_empty_batch():
    assert cleaning(batch_of([]), LineFilters()).num_rows == 0
    assert collect([]).documents == collect([batch_of([])]).documents == 0
