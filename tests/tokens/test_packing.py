"""Best-fit packing: no document is cut without need, no target is lost, and the plan is what plain Python makes of it."""

from __future__ import annotations

import bisect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shards import write_shards

from xmodel.errors import MachineError, UserError
from xmodel.files import read_json
from xmodel.tokens import packing
from xmodel.tokens.packing import SIZE_BITS, best_fit, open_packed, pack, truncated
from xmodel.tokens.shards import end_id, open_sources, read_batch


def plain_best_fit(sizes: list[int], room: int) -> list[int]:
    """Best-fit-decreasing as its definition says: what is left in each window, sorted."""
    left: list[int] = []
    for size in sorted(sizes, reverse=True):
        place = bisect.bisect_left(left, size)
        bisect.insort(left, (left.pop(place) if place < len(left) else room) - size)
    return left


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 70).flatmap(lambda room: st.tuples(st.just(room), st.lists(st.integers(1, room), max_size=120))))
def test_best_fit_is_best_fit(case):
    room, sizes = case
    windows, count = best_fit(np.array(sizes, np.int64), room)
    filled = np.bincount(windows, weights=sizes, minlength=count).astype(int)
    assert len(filled) == count
    assert sorted(room - filled) == plain_best_fit(sizes, room)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.integers(1, 30), st.integers(0, 1000))
def test_every_target_of_every_document_is_there_once(sizes, length, begin):
    ends = begin + np.cumsum(sizes)
    parts, firsts = pack(ends, begin, length)
    assert firsts[0] == 0
    assert firsts[-1] == len(parts)
    seen = np.zeros(ends[-1] - begin, int)
    starts = {begin, *ends.tolist()}
    whole = 0
    for first, last in zip(firsts[:-1].tolist(), firsts[1:].tolist(), strict=True):
        inside = [(int(p) >> SIZE_BITS, int(p) & ((1 << SIZE_BITS) - 1)) for p in parts[first:last]]
        assert inside
        assert inside == sorted(inside)
        assert sum(size for _, size in inside) <= length + 1
        for start, size in inside:
            seen[start - begin + 1 : start - begin + size] += 1  # the first token is nobody's target
            whole += start in starts and start + size in starts
    wanted = np.ones(ends[-1] - begin, int)
    wanted[[start - begin for start in starts if start < ends[-1]]] = 0  # first tokens of documents
    assert seen.tolist() == wanted.tolist()
    cut, cut_by_concatenation = truncated(ends, begin, length)
    assert whole == len(sizes) - cut
    assert cut == sum(size > length + 1 for size in sizes)
    windows = [(start, start + length + 1) for start in range(0, int(ends[-1]), length)]
    bounds = zip([begin, *ends[:-1].tolist()], ends.tolist(), strict=True)
    assert cut_by_concatenation == sum(not any(a <= s and e <= b for a, b in windows) for s, e in bounds)


LENGTHS = [[5, 40, 2, 17, 3, 9], [33, 33, 34, 2], [120, 7, 8, 31]]


@pytest.mark.parametrize("chunk", [2, 1 << 20])
def test_windows_hold_whole_documents(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(packing, "CHUNK", chunk)
    documents = write_shards(tmp_path, {"text": LENGTHS}, {})["text"]
    source = open_packed(tmp_path, 32, ["text"])["text"]
    rows = read_batch({"text": source}, [("text", 0, i) for i in range(source.n_windows(32))], 32)
    assert rows.shape[1] == 33
    whole = [document for document in documents if len(document) <= 33]
    found = [part for row in rows for part in np.split(row[row >= 0], np.flatnonzero(row[row >= 0] == 2) + 1)]
    for document in whole:
        assert sum(part.tolist() == document for part in found) == whole.count(document)
    for row in rows:
        assert (np.diff((row < 0).astype(int)) >= 0).all(), "padding stands at the end"
    figures = read_json(tmp_path / "packed-32/text.json")
    assert figures["documents"] == len(documents)
    assert figures["tokens"] == sum(map(sum, LENGTHS))
    assert figures["cut"] == 3
    assert figures["padding"] == (rows < 0).sum()
    assert end_id(tmp_path) == 2


def test_the_plan_is_made_once_and_for_these_shards(tmp_path, monkeypatch):
    write_shards(tmp_path, {"text": LENGTHS}, {})
    first = open_packed(tmp_path, 32, ["text"])["text"].n_windows(32)
    parts = tmp_path / "packed-32/text.parts"
    stamp = parts.stat().st_mtime_ns
    assert open_packed(tmp_path, 32, ["text"])["text"].n_windows(32) == first
    assert parts.stat().st_mtime_ns == stamp
    assert open_packed(tmp_path, 16, ["text"])["text"].n_windows(16) > first, "another length, another plan"
    write_shards(tmp_path, {"text": [[9, 9, 9]]}, {})
    assert open_packed(tmp_path, 32, ["text"])["text"].n_windows(32) == 1
    assert not list(tmp_path.rglob("*.partial"))

    monkeypatch.setattr(packing, "pack", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        open_packed(tmp_path, 20, ["text"])
    monkeypatch.undo()
    assert not list(tmp_path.rglob("packed-20/**/*.*")), "nothing half-written stays"
    parts.write_bytes(parts.read_bytes()[:-8])
    with pytest.raises(MachineError, match=r"packed-32: the plan of text is damaged; remove it and it is made again"):
        open_packed(tmp_path, 32, ["text"])
    parts.unlink()
    with pytest.raises(MachineError, match=r"text\.parts: missing; remove .*packed-32 and it is made again"):
        open_packed(tmp_path, 32, ["text"])
    (tmp_path / "train/text-00000.ends").unlink()
    with pytest.raises(MachineError, match=r"text-00000\.ends: missing or damaged"):
        open_packed(tmp_path, 20, ["text"])
    with pytest.raises(UserError, match=r"model\.context_length: 1,048,575 .* at most 1,048,574"):
        open_packed(tmp_path, (1 << 20) - 1, ["text"])


def test_concatenated_and_packed_windows_hold_the_same_tokens(tmp_path):
    documents = write_shards(tmp_path, {"text": LENGTHS}, {})["text"]
    plain = open_sources(tmp_path)["text"]
    packed = open_packed(tmp_path, 16, ["text"])["text"]
    rows = np.stack([packed.window(i, 16) for i in range(packed.n_windows(16))])
    targets = rows[:, 1:][rows[:, 1:] >= 0]
    assert np.isin(targets, plain.read(0, plain.tokens)).all()
    assert len(targets) >= sum(len(document) - 1 for document in documents)
