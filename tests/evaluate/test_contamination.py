"""Contamination: what stands in a corpus is found, how long, and what scores are without it."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodel.corpus.contamination import BATCH_ROWS, EXAMPLES, Asked, amounts, scan
from xmodel.errors import UserError
from xmodel.evaluate.contamination import contamination_table, giveaways, with_scores
from xmodel.evaluate.curve import everyday_questions
from xmodel.evaluate.diff import Measured

QUESTION = "Question: Why did the old fisherman leave his boat at the harbour during the long winter storm? Answer: ice"
CHINESE = "问题：老渔夫为什么在漫长的冬天暴风雪来的时候把他的小船留在了旧港口的木头桥旁边没有出海？答案：冰"


def corpus(folder: Path, documents: list[str]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    path = folder / "train.parquet"
    columns = {"id": [f"doc-{n}" for n in range(len(documents))], "text": documents, "more": [1] * len(documents)}
    pq.write_table(pa.table(columns), path, row_group_size=300)
    return [path]


def filler(seed: int, words: int = 60) -> str:
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("abcdefghijklmnop", k=rng.randrange(3, 9))) for _ in range(words))


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+|[\u4e00-\u9fff]", text.lower())


def longest_run(item: str, documents: list[str]) -> int:
    """Longest run of units of `item` in a document, by brute force."""
    units, best = words_of(item), 0
    for document in documents:
        joined = " " + " ".join(words_of(document)) + " "
        for first in range(len(units)):
            while first + best < len(units) and " " + " ".join(units[first : first + best + 1]) + " " in joined:
                best += 1
    return best


def test_whole_partial_and_clean_items(tmp_path: Path) -> None:
    fourteen, twelve = (" ".join(words_of(QUESTION)[2 : 2 + length]) for length in (14, 12))
    short = "Where does the white bear live? Answer: on ice"
    cases = {  # item, document, words and characters of the run that is found
        "whole": (QUESTION, f"{filler(1)}. {QUESTION.upper().replace(' ', ' -- ')}! {filler(2)}", (19, 0)),
        "part": (QUESTION, f"{filler(3)} {fourteen} {filler(4)}", (14, 0)),
        "less": (QUESTION, f"{filler(5)} {twelve} {filler(6)}", None),
        "chinese": (CHINESE, f"从前，{CHINESE[3:36].replace('船', '船，')}后来", (0, 33)),
        "chinese less": (CHINESE, f"从前，{CHINESE[3:31]}后来", None),
        "short": (short, f"{filler(7)} {short}.", (9, 0)),
        "short less": (short, f"{filler(7)} {short.replace('ice', 'snow')}.", None),
        "clean": (filler(100, 20), filler(8), None),
        "too short": ("3 + 4 = 7", "so 3 + 4 = 7", None),
    }
    for name, (item, document, run) in cases.items():
        found = scan(corpus(tmp_path / "c", [filler(50), document]), [Asked("set", name, [item])])
        rows = [((row["words"], row["characters"]), row["document"]) for row in found["items"]]
        assert rows == ([] if run is None else [(run, "doc-1")]), name
        if run is not None:
            assert found["items"][0]["share"] == pytest.approx(sum(run) / len(words_of(item)), abs=1e-4)
        assert found["sets"][0] == {
            "set": "set",
            "items": 1,
            "searched": int(name != "too short"),
            "found": int(run is not None or name == "chinese less"),  # any n-gram: 26 characters are one
            "contaminated": int(run is not None),
            "documents": int(run is not None),
        }, name
        assert found["documents"] == 2


@given(st.integers(0, 10**6), st.integers(0, 18), st.integers(0, 18))
@settings(max_examples=60, deadline=None)
def test_the_longest_run_is_that_of_brute_force(seed: int, first: int, length: int) -> None:
    rng = random.Random(seed)
    vocabulary = list("abcdefg")
    units = rng.choices(vocabulary, k=24)
    item = " ".join(units)
    document = " ".join(rng.choices(vocabulary, k=30) + units[first : first + length] + rng.choices(vocabulary, k=30))
    batch = pa.table({"id": ["d"], "text": [document]})
    path = Path(f"/tmp/contamination-{seed}-{first}-{length}.parquet")
    try:
        pq.write_table(batch, path)
        found = scan([path], [Asked("s", "i", [item])])
    finally:
        path.unlink(missing_ok=True)
    expected = longest_run(item, [document])
    assert [row["words"] for row in found["items"]] == ([expected] if expected >= 13 else [])


def test_large_corpora_are_read_batch_by_batch(tmp_path: Path) -> None:
    """An item in the middle and one at the end, documents counted once, bytes reported; templates are no leak."""
    documents = [filler(n, 12) for n in range(3 * BATCH_ROWS)]
    documents[1500] += QUESTION + " " + QUESTION
    documents[-1] += CHINESE
    asked = [Asked("en", "a", [QUESTION]), Asked("zh", "b", [CHINESE])]
    template = " ".join(filler(7, 13).split())
    asked += [Asked("templates", str(n), [f"{template} {filler(500 + n, 6)}"]) for n in range(12)]
    documents[3] += " " + template
    sizes: list[int] = []
    found = scan(corpus(tmp_path / "c", documents), asked, sizes.append)
    assert [(row["contaminated"], row["documents"]) for row in found["sets"]] == [(1, 1), (1, 1), (0, 0)]
    assert sum(sizes) == found["bytes"] == sum(len(text.encode()) for text in documents)
    assert len(sizes) >= 3


def test_examples_are_few_and_the_longest(tmp_path: Path) -> None:
    texts = [filler(n, 20) for n in range(3 * EXAMPLES)]
    documents = [" ".join(text.split()[: 13 + n % 8]) for n, text in enumerate(texts)]
    found = scan(corpus(tmp_path / "c", documents), [Asked("s", str(n), [text]) for n, text in enumerate(texts)])
    assert len(found["items"]) == len(texts)
    shares = [row["share"] for row in found["examples"]]
    assert shares == sorted((row["share"] for row in found["items"]), reverse=True)[:EXAMPLES]


@pytest.mark.parametrize(("text", "expected"), [("", (0, 0)), ("a b, c", (3, 0)), ("路很长 ok2。", (1, 3))])
def test_amounts(text: str, expected: tuple[int, int]) -> None:
    assert amounts(text.encode()) == expected


def test_scores_with_and_without(tmp_path: Path) -> None:
    found = {"items": [{"set": "s", "id": "1"}, {"set": "s", "id": "3"}, {"set": "other", "id": "0"}]}
    values = np.array([1.0, 1.0, 0.0, 1.0])
    ids = [str(n) for n in range(4)]
    measured = {
        ("s", 0, "acc"): Measured(ids, values, None, [0] * 4, {}),
        ("clean", 0, "acc"): Measured(ids, values, None, [0] * 4, {}),
        ("s", 0, "bits_per_byte"): Measured(ids, values, np.ones(4), [0] * 4, {}),
    }
    rows = with_scores(found, measured)
    assert len(rows) == 1
    assert (rows[0]["all"]["value"], rows[0]["clean"]["value"], rows[0]["contaminated"]["value"]) == (0.75, 0.5, 1.0)
    assert (rows[0]["clean"]["items"], rows[0]["clean"]["stderr"]) == (2, 0.5)


def test_questions_and_the_table(tmp_path: Path) -> None:
    sets = everyday_questions()
    asked = [Asked(*item) for item in giveaways(sets)]
    assert len(asked) == 120
    leaked = sets[0].test[0]
    document = f"{filler(1)} {leaked.prompt}{leaked.choices[leaked.answer]} {filler(2)}"
    found = scan(corpus(tmp_path / "c", [document, "路很长。"]), asked)
    assert [(item["set"], item["id"], item["share"]) for item in found["items"]] == [("everyday_en", leaked.id, 1.0)]
    shown = contamination_table(found | {"seconds": 0.5})
    assert f"everyday_en {leaked.id}, 100 % in doc-0: " in shown


def test_what_cannot_be_scanned(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet: has no column id and no column text"):
        scan([tmp_path / "x.parquet"], [Asked("s", "1", [QUESTION])])
    with pytest.raises(UserError, match="no item"):
        scan([], [])
