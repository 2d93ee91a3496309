"""The plan for common beginnings: sorted texts, and trees that are packed within a budget."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from xmodel.inference.prefixes import Tree, pack, sort_texts

SIZES = st.lists(st.integers(1, 40), max_size=30)


@given(sizes=SIZES, budget=st.integers(1, 100), width=st.integers(0, 50), rows=st.one_of(st.none(), st.integers(1, 4)))
def test_batches_keep_to_the_budget_and_hold_every_tree_once(sizes, budget, width, rows) -> None:
    trees = [Tree(place, place + 1, 0, size) for place, size in enumerate(sizes)]
    batches = list(pack(trees, budget, width, rows))
    assert sorted(tree.first for batch in batches for row in batch for tree in row) == list(range(len(trees)))
    for batch in batches:
        wide = max(width, *(sum(tree.size for tree in row) for row in batch))
        assert len(batch) * wide <= budget or len(batch) == 1
        assert len(batch) <= (rows or len(batch))
        assert wide == max(width, batch[0][0].size)  # small trees fill rows, and make none wider


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), max_size=12))
def test_sorted_texts_know_what_they_share(texts) -> None:
    order, shared = sort_texts([np.array(text, np.int64) for text in texts])
    found = [texts[place] for place in order]
    assert found == sorted(texts)
    for place, text in enumerate(found):
        before = found[place - 1] if place else []
        common = next(
            (i for i, (a, b) in enumerate(zip(before, text, strict=False)) if a != b), min(len(before), len(text))
        )
        assert shared[place] == common
