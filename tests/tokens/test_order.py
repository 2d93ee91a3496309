"""The data order: a pure function of weights, seed and sample number; every prefix honours the weights."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodel.errors import UserError
from xmodel.tokens.order import DataOrder, Sample, epochs, schedule

PUBLISHED = {
    "redpajama-arxiv": 0.0160, "redpajama-book": 0.0300, "redpajama-c4": 0.1000, "redpajama-commoncrawl": 0.5600,
    "redpajama-github": 0.0150, "redpajama-stackexchange": 0.0174, "redpajama-wikipedia": 0.0520,
    "pile-bookcorpus": 0.0006, "pile-pubmed": 0.0100, "amps": 0.0003, "fanfics": 0.0020, "openwebmath": 0.0080,
    "starcoder": 0.0536, "wanjuan-law": 0.0100, "wanjuan-news": 0.0050, "wanjuan-patent": 0.0050,
    "wanjuan-webtext": 0.0644, "telechat-ptd": 0.0507,
}  # fmt: skip


def deviation(order: DataOrder, weights: dict[str, float], first: int, count: int) -> float:
    """The largest |samples of a source - its share| over the prefixes that end in [first, first + count)."""
    source = order.locate(np.arange(first + count))[0]
    seen = np.cumsum(source[:, None] == np.arange(len(order.sources)), axis=0)
    share = np.arange(1, first + count + 1)[:, None] * np.array([weights.get(name, 0) for name in order.sources])
    return float(np.abs(seen - share)[first:].max())


@st.composite
def mixtures(draw: st.DrawFn) -> dict[str, float]:
    """Weights of up to 12 sources with two to four decimals that sum to 1."""
    whole = draw(st.sampled_from([100, 1000, 10_000]))
    cuts = sorted(draw(st.lists(st.integers(0, whole), min_size=0, max_size=11)))
    return {f"s{i}": (b - a) / whole for i, (a, b) in enumerate(pairwise([0, *cuts, whole]))}


@settings(max_examples=60, deadline=None)
@given(mixtures())
def test_every_prefix_honours_the_weights(weights):
    order = DataOrder(dict.fromkeys(weights, 17), weights, seed=1)
    assert deviation(order, weights, 0, 12_000) < 1


def test_the_published_mixture():
    order = DataOrder({name: 1000 + 37 * i for i, name in enumerate(PUBLISHED)}, PUBLISHED, seed=0)
    assert deviation(order, PUBLISHED, 0, 25_000) < 1
    steps = Counter(sample.source for step in range(250) for sample in order.samples(step * 840, 840))
    assert steps == {name: round(weight * 210_000) for name, weight in PUBLISHED.items()}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(0, 2**40), st.integers(0, 5))
def test_an_epoch_visits_each_window_once(windows, seed, epoch):
    order = DataOrder({"a": windows}, {"a": 1}, seed)
    _, epochs, found = order.locate(np.arange(epoch * windows, (epoch + 1) * windows))
    assert set(epochs.tolist()) == {epoch}
    assert sorted(found.tolist()) == list(range(windows))


def test_every_source_of_a_mixture_goes_through_its_epochs():
    windows = {"a": 7, "b": 50, "c": 1, "unused": 3}
    order = DataOrder(windows, {"a": 0.5, "b": 0.3, "c": 0.2, "unused": 0.0}, seed=5)
    visits: dict[str, list[tuple[int, int]]] = {name: [] for name in windows}
    for i in range(1000):
        source, epoch, window = order.samples(i, 1)[0]
        visits[source].append((epoch, window))
    assert not visits["unused"]
    for name in "abc":
        for number, start in enumerate(range(0, len(visits[name]) - windows[name] + 1, windows[name])):
            part = visits[name][start : start + windows[name]]
            assert sorted(part) == [(number, window) for window in range(windows[name])]


def test_epochs_seeds_and_sources_have_orders_of_their_own():
    def order_of(name: str, seed: int, epoch: int) -> list[int]:
        order = DataOrder({name: 500}, {name: 1}, seed)
        return order.locate(np.arange(epoch * 500, (epoch + 1) * 500))[2].tolist()

    orders = [order_of("a", 0, 0), order_of("a", 0, 1), order_of("a", 1, 0), order_of("b", 0, 0), list(range(500))]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert sum(x == y for x, y in zip(one, other, strict=True)) < 10
    assert orders[0] == order_of("a", 0, 0)


def test_the_order_of_one_source_does_not_depend_on_the_others():
    alone = [s.window for s in DataOrder({"a": 90}, {"a": 1}, 3).samples(0, 45)]
    mixed = [s.window for s in DataOrder({"b": 8, "a": 90}, {"b": 0.5, "a": 0.5}, 3).samples(0, 90) if s.source == "a"]
    assert alone == mixed


@pytest.mark.parametrize("windows", [2, 3, 4, 5, 7])
def test_small_permutations_are_uniform(windows):
    """Chi-square over where each position goes, and over all permutations of four, at about p = 1e-6."""
    epochs = 12_000
    order = DataOrder({"a": windows}, {"a": 1}, seed=11)
    table = order.locate(np.arange(epochs * windows))[2].reshape(epochs, windows)
    seen = np.zeros((windows, windows))
    np.add.at(seen, (np.tile(np.arange(windows), (epochs, 1)), table), 1)
    expected = epochs / windows
    freedom = (windows - 1) ** 2
    assert ((seen - expected) ** 2 / expected).sum() * (windows - 1) / windows < freedom + 5 * (2 * freedom) ** 0.5 + 12
    if windows == 4:
        counts = np.array(list(Counter(map(tuple, table.tolist())).values()))
        assert len(counts) == 24
        assert ((counts - epochs / 24) ** 2 / (epochs / 24)).sum() < 23 + 5 * 46**0.5


def test_neighbours_do_not_stay_neighbours():
    windows = 10_007
    found = DataOrder({"a": windows}, {"a": 1}, 0).locate(np.arange(windows))[2]
    steps = np.diff(found)
    assert abs(np.corrcoef(np.arange(windows), found)[0, 1]) < 0.05
    assert Counter(steps.tolist()).most_common(1)[0][1] < 12


@pytest.mark.parametrize("world", range(1, 9))
def test_the_global_batch_is_the_same_on_every_world_size(world):
    order = DataOrder(dict.fromkeys(PUBLISHED, 999), PUBLISHED, seed=2)
    whole = order.samples(123 * 840, 840)
    assert len(whole) == 840
    parts = [order.samples(123 * 840, 840, rank, world) for rank in range(world)]
    assert all(part == whole[rank::world] for rank, part in enumerate(parts))
    assert Counter(sample for part in parts for sample in part) == Counter(whole)
    assert [order.samples(i, 1)[0] for i in range(123 * 840, 123 * 840 + 20)] == whole[:20]


def test_the_order_is_pinned():
    """A change of these values would give every existing run another order on resume."""
    order = DataOrder({"en": 1000, "zh": 300}, {"en": 0.7, "zh": 0.3}, seed=42)
    assert order.samples(0, 5) == [
        ("en", 0, 14), ("en", 0, 293), ("zh", 0, 108), ("en", 0, 158), ("en", 0, 392),
    ]  # fmt: skip
    assert order.samples(10**9, 1)[0] == Sample("en", 700_000, 614)


def test_seeking_far_needs_no_memory():
    windows = {name: 10**9 + i for i, name in enumerate(PUBLISHED)}
    order = DataOrder(windows, PUBLISHED, seed=0)
    order.samples(840, 840)
    tracemalloc.start()
    far = order.samples(10**9 * 840, 840)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
    assert len(far) == 840
    assert all(0 <= sample.window < windows[sample.source] for sample in far)
    assert order.samples(10**15, 1)[0].epoch >= 0


def test_phases_change_the_weights_and_repeat_nothing():
    windows = {"a": 40, "b": 60, "c": 30}
    first, second = {"a": 0.5, "b": 0.5}, {"a": 0.1, "b": 0.3, "c": 0.6}
    start = 37
    order = DataOrder(windows, first, 9, phases=[(start, second), (start + 50, first)])
    plain = DataOrder(windows, first, 9)
    assert [order.samples(i, 1)[0] for i in range(start)] == [plain.samples(i, 1)[0] for i in range(start)]
    source = order.locate(np.arange(start, start + 50))[0]
    for k, name in enumerate(order.sources):
        seen = np.cumsum(source == k)
        assert np.abs(seen - np.arange(1, 51) * second[name]).max() < 1
    samples = order.samples(0, 400)
    for name, count in windows.items():
        mine = [(sample.epoch, sample.window) for sample in samples if sample.source == name]
        assert len(set(mine)) == len(mine), "no window twice in an epoch"
        assert [epoch for epoch, _ in mine] == [i // count for i in range(len(mine))]


@st.composite
def runs(draw: st.DrawFn) -> tuple[dict[str, int], list[tuple[int, dict[str, float]]]]:
    """Windows of two to five sources, and a mixture of one to four phases; a source may begin with weight 0."""
    names = "abcde"[: draw(st.integers(2, 5))]
    windows = {name: draw(st.integers(1, 60)) for name in names}
    phases, start = [], 0
    for _ in range(draw(st.integers(1, 4))):
        cuts = sorted(draw(st.lists(st.integers(0, 100), min_size=len(names) - 1, max_size=len(names) - 1)))
        shares = [(b - a) / 100 for a, b in pairwise([0, *cuts, 100])]
        phases.append((start, dict(zip(names, shares, strict=True))))
        start += draw(st.integers(1, 150))
    return windows, phases


@settings(max_examples=50, deadline=None)
@given(runs(), st.integers(0, 100), st.lists(st.integers(1, 25), min_size=1, max_size=8))
def test_a_run_with_phases(run, seed, cuts):
    """What a mixture that changes must still keep, at any batch cut and world size."""
    windows, mixture = run
    (_, first), *phases = mixture
    order, total = DataOrder(windows, first, seed, phases), mixture[-1][0] + 200
    everything = order.samples(0, total)

    bounds = [start for start, _ in mixture] + [total]
    for (_, weights), (start, end) in zip(mixture, pairwise(bounds), strict=True):
        for name, weight in weights.items():  # every prefix of every phase
            seen = np.cumsum([sample.source == name for sample in everything[start:end]])
            assert np.abs(seen - weight * np.arange(1, end - start + 1)).max() < 1
    for name, count in windows.items():  # no window twice in an epoch, whatever phase it is met in
        mine = [(sample.epoch, sample.window) for sample in everything if sample.source == name]
        assert len(set(mine)) == len(mine)
        assert [epoch for epoch, _ in mine] == [i // count for i in range(len(mine))]
        assert order.given(total)[name] == len(mine)
        assert epochs(order, windows, total).get(name, 0) == len(mine) / count

    at = 0
    for number, size in enumerate(cuts):  # batches of any sizes, on any number of ranks
        world = number + 1
        parts = [order.samples(at, size, rank, world) for rank in range(world)]
        assert [part == everything[at : at + size][rank::world] for rank, part in enumerate(parts)] == [True] * world
        at += size

    if phases:  # a phase that is added changes nothing before it
        shorter = DataOrder(windows, first, seed, phases[:-1])
        assert shorter.samples(0, phases[-1][0]) == everything[: phases[-1][0]]


def test_unclear_weights_are_refused():
    windows = {"a": 5, "b": 5, "empty": 0}
    for weights, words in [
        ({"a": 0.5, "b": 0.4}, r"sum to 1, they sum to 0\.9"),
        ({"a": 0.7, "b": 0.7}, r"they sum to 1\.4"),
        ({"a": 0.5, "d": 0.5}, "'d': no such source; the sources are a, b, empty"),
        ({"a": 1 / 3, "b": 2 / 3}, "'a'.*6 decimals"),
        ({"a": 1.5, "b": -0.5}, "'b': -0.5 is not a share"),
        ({"a": float("nan"), "b": 1.0}, "'a'"),
        ({"a": 0.5, "empty": 0.5}, "'empty'.*not one whole sequence"),
        ({}, "sum to 0"),
    ]:
        with pytest.raises(UserError, match=words):
            DataOrder(windows, weights, 0)
    for phases in ([(0, {"a": 1.0})], [(10, {"a": 1.0}), (10, {"b": 1.0})]):
        with pytest.raises(UserError, match="phase"):
            DataOrder(windows, {"a": 1.0}, 0, phases=phases)
    assert DataOrder(windows, {"a": 1.0, "empty": 0.0}, 0).samples(7, 1)[0].source == "a"
    assert DataOrder(windows, {"a": 0.999999, "b": 0.000001}, 0).samples(0, 1)[0].source == "a"


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=10).filter(any))
def test_the_schedule_meets_every_deadline(counts):
    """The Pfair condition itself: sample n of a source stands in [floor(n P / c), ceil((n + 1) P / c))."""
    source, rank = schedule(counts)
    period = sum(counts)
    places = {(int(k), int(n)): offset for offset, (k, n) in enumerate(zip(source, rank, strict=True))}
    assert len(places) == period
    for k, count in enumerate(counts):
        for n in range(count):
            assert n * period // count <= places[k, n] < -(-(n + 1) * period // count)
