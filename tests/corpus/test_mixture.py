"""The sampling plan: the published mixture number by number, and what a plan must hold whatever the weights."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmodel.corpus.mixture import plan, plan_table, sample_sizes, sample_texts
from xmodel.recipe.load import load_recipe
from xmodel.recipe.settings import Corpus, Source

RECIPE = Path(__file__).parents[2] / "recipes" / "xmodel-lm-1.1b.yaml"
BUDGET = 600_000 * 840 * 4096
# weight x 2,064,384,000,000 / published tokens, by hand from the paper's table; printed epochs
PUBLISHED = [
    ("redpajama-arxiv", 1.054, 1), ("redpajama-book", 2.090, 1), ("redpajama-c4", 1.071, 1),
    ("redpajama-commoncrawl", 0.923, 0.88), ("redpajama-github", 0.524, 0.5), ("redpajama-stackexchange", 1.580, 1.5),
    ("redpajama-wikipedia", 3.128, 3), ("pile-bookcorpus", 2.202, 2), ("pile-pubmed", 1.166, 1), ("amps", 2.294, 2),
    ("fanfics", 2.289, 2), ("openwebmath", 2.310, 2), ("starcoder", 0.361, 0.3), ("wanjuan-law", 2.273, 2),
    ("wanjuan-news", 1.994, 2), ("wanjuan-patent", 2.264, 2), ("wanjuan-webtext", 1.052, 1), ("telechat-ptd", 0.631, 0.6),
]  # fmt: skip


def test_the_published_mixture():
    sources = load_recipe(RECIPE).corpus.sources
    made = plan(sources, BUDGET)
    assert made.budget == sum(share.drawn for share in made.shares) == 2_064_384_000_000
    assert [(s.source, round(s.epochs or 0, 3), s.printed_epochs) for s in made.shares] == PUBLISHED
    assert sum(share.available or 0 for share in made.shares) == 2_267_061_840_870
    cut = [share.source for share in made.shares if share.outcome == "cut"]
    assert cut == ["redpajama-commoncrawl", "redpajama-github", "starcoder", "telechat-ptd"]
    assert {s.source: s.drawn for s in made.shares}["redpajama-book"] == 61_931_520_000
    (warning,) = made.warnings
    assert warning.startswith("redpajama-book: published as 1 epochs, but its weight of 0.03 is 1.9")
    assert "warning: redpajama-book" in plan_table(made)


@given(
    st.lists(st.integers(0, 10**6), min_size=1, max_size=8).filter(any),
    st.integers(1, 10**13),
    st.lists(st.none() | st.integers(1, 10**12), min_size=8, max_size=8),
)
def test_the_budget_is_drawn_to_the_token(parts, budget, sizes):
    millionths = [part * 10**6 // sum(parts) for part in parts]
    millionths[0] += 10**6 - sum(millionths)
    sources = [Source(name=f"s{n}", weight=m / 1e6, tokens=sizes[n]) for n, m in enumerate(millionths)]
    made = plan(sources, budget)
    assert sum(share.drawn for share in made.shares) == budget
    for share, part in zip(made.shares, millionths, strict=True):
        assert abs(share.drawn - budget * part / 1e6) < 1 + budget * 1e-12
        assert (share.outcome == "") == (share.available is None)
        if share.epochs is not None and share.available:
            assert share.epochs == pytest.approx(share.drawn / share.available)
            assert {"cut": share.epochs < 1, "repeated": share.epochs > 1, "once": True}[share.outcome]


def test_counted_tokens_come_before_published_ones():
    sources = [Source(name="a", weight=0.5, tokens=10), Source(name="b", weight=0.5), Source(name="c", tokens=5)]
    made = plan(sources, 1000, {"a": 1000, "b": 0})
    assert [(share.available, share.epochs) for share in made.shares] == [(1000, 0.5), (0, None), (None, None)]
    assert made.warnings == ["b: weight 0.5, and no token is there to draw"]


def test_phases_are_counted():
    """A decay of a tenth of the run on other weights: epochs and tokens are of the whole run."""
    sources = [
        Source(name="web", weight=1.0, tokens=1000),
        Source(name="books", weight=0.0, tokens=100),
        Source(name="unused", weight=0.0, tokens=0),
    ]
    made = plan(sources, 2000, phases=[(1800, {"web": 0.25, "books": 0.75})])
    assert [(s.drawn, s.epochs, s.phases) for s in made.shares] == [
        (1850, 1.85, [0.25]), (150, 1.5, [0.75]), (0, None, [0.0]),
    ]  # fmt: skip
    assert not made.warnings
    row = next(row for row in plan_table(made).splitlines() if row.startswith("books"))
    assert "0.0000 → 0.7500" in row
    late = plan(sources, 2000, {"web": 5, "books": 0}, [(1999, {"books": 1.0})])
    assert late.warnings == ["books: weight 1, and no token is there to draw"]


@given(st.lists(st.tuples(st.integers(1, 10**9), st.integers(0, 100)), max_size=4), st.integers(0, 100))
def test_the_budget_is_drawn_to_the_token_over_phases(stretches, first):
    starts = list(itertools.accumulate(length for length, _ in stretches))
    budget = (starts[-1] if starts else 0) + 12_345
    sources = [Source(name="a", weight=first / 100), Source(name="b", weight=1 - first / 100)]
    phases = [
        (start, {"a": part / 100, "b": 1 - part / 100}) for start, (_, part) in zip(starts, stretches, strict=True)
    ]
    made = plan(sources, budget, None, phases)
    assert sum(share.drawn for share in made.shares) == budget


def test_the_command():
    line = [sys.executable, "-m", "xmodel", "corpus", "plan", str(RECIPE), "--json"]
    found = json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
    assert (found["budget"], len(found["shares"]), len(found["warnings"])) == (BUDGET, 18, 1)
    halved = subprocess.run([*line[:-1], "pretrain.steps=300k"], capture_output=True, text=True, check=True).stdout
    assert "1.56" in next(row for row in halved.splitlines() if row.startswith("redpajama-wikipedia"))


def sized(name: str, language: str, category: str, weight: float) -> Source:
    return Source(name=name, language=language, category=category, weight=weight)  # pyright: ignore[reportArgumentType]


FOUR = [
    sized("web", "en", "web", 0.64),
    sized("code", "en", "code", 0.16),
    sized("news", "zh", "web", 0.15),
    sized("law", "zh", "web", 0.05),
    sized("none", "zh", "web", 0.0),
]


def test_the_sample_is_balanced_by_language_and_category():
    plenty = {source.name: 10**9 for source in FOUR}
    as_weighed = sample_sizes(FOUR, plenty, 1000, balance=1)
    assert as_weighed == pytest.approx({"web": 640, "code": 160, "news": 150, "law": 50})
    # languages 0.8 : 0.2 become 2 : 1, categories of English 0.64 : 0.16 likewise; within a category weights stand
    half = sample_sizes(FOUR, plenty, 900, balance=0.5)
    assert half == pytest.approx({"web": 400, "code": 200, "news": 225, "law": 75})
    even = sample_sizes(FOUR, plenty, 1000, balance=0)
    assert even == pytest.approx({"web": 250, "code": 250, "news": 375, "law": 125})


def test_what_a_small_source_cannot_give_the_others_give():
    available = {"web": 10**9, "code": 60, "news": 10**9, "law": 20}
    found = sample_sizes(FOUR, available, 1000, balance=1)
    assert (found["code"], found["law"]) == (60, 20)
    assert sum(found.values()) == pytest.approx(1000)
    assert found["web"] / found["news"] == pytest.approx(0.64 / 0.15)
    assert sample_sizes(FOUR, dict.fromkeys(available, 7), 1000) == dict.fromkeys(available, 7)


def test_sampled_documents_are_spread_evenly(tmp_path):
    (tmp_path / "train").mkdir()
    for source in FOUR[:4]:
        texts = [f"{source.name} {number:05d} " + "x" * 90 for number in range(2000)]
        pq.write_table(pa.table({"text": texts}), tmp_path / "train" / f"{source.name}.parquet", use_dictionary=False)
    found = list(sample_texts(tmp_path, Corpus(sources=FOUR), 40_000, balance=0.5))
    assert found == list(sample_texts(tmp_path, Corpus(sources=FOUR), 40_000, balance=0.5))
    assert 34_000 < sum(map(len, found)) < 41_000
    counts = {name: sum(text.startswith(name) for text in found) for name in ("web", "code", "news", "law")}
    assert counts["web"] == pytest.approx(2 * counts["code"], rel=0.03)
    assert counts["news"] == pytest.approx(3 * counts["law"], rel=0.03)
    numbers = [int(text.split()[1]) for text in found if text.startswith("web")]
    steps = {after - before for before, after in itertools.pairwise(numbers)}
    assert max(steps) - min(steps) == 1
    assert len(list(sample_texts(tmp_path, Corpus(sources=FOUR), 10**9))) == 8000
