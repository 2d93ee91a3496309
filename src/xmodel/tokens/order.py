"""The data order is a pure function: sample i of a run follows from the weights, the seed and i alone.

Two steps, both in closed form, so that any sample is found at once and nothing is kept but two small tables:

1. *Which source.* Weights are decimal fractions, so the mixture repeats after a period of P <= 10^6 samples. Within a
   period sample n of source k (share w) must stand at an offset of [floor(n / w), ceil((n + 1) / w)); the earliest
   deadline first fills every offset (the Pfair condition: Baruah, Cohen, Plaxton, Varvel 1996, "Proportionate
   progress"). Every prefix of the run then holds each source's share to within one sample.
2. *Which window.* A source's samples number its windows epoch by epoch; within an epoch a keyed permutation shuffles
   them: a Feistel network over Z_a x Z_b with a * b just above the number of windows, and cycle walking for the few
   values in between (Black & Rogaway 2002, "Ciphers with arbitrary finite domains").
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from xmodel.errors import UserError

DECIMALS = 6  # of a weight; bounds the period by 10^6
ROUNDS = 12  # fewer leave a measurable bias in permutations of four values
_TURN_KEYS = np.arange(1, ROUNDS + 1, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03)


class Sample(NamedTuple):
    """One training sequence."""

    source: str
    epoch: int  # of this source, from 0
    window: int


class DataOrder:
    """The order of a run's samples. Holds tables for the period and the windows, nothing that grows with the run."""

    def __init__(
        self,
        windows: Mapping[str, int],
        weights: Mapping[str, float],
        seed: int,
        phases: Sequence[tuple[int, Mapping[str, float]]] = (),
    ) -> None:
        """Prepare the order.

        Args:
            windows: how many windows each source has.
            weights: share of the samples per source; sums to 1, at most six decimals each. A source that is not
                named, or has weight 0, is not used.
            seed: of the permutations. The interleaving follows from the weights alone.
            phases: (first sample, weights): other weights from that sample on, in rising order. Every source goes on
                where it stood, so no window is repeated before its epoch ends.

        Raises:
            UserError: weights that do not sum to 1, have too many decimals, name an unknown source or one without a
                window; phases out of order.
        """
        self.sources = sorted(windows)
        self._windows = np.array([windows[name] for name in self.sources], np.int64)
        self._keys = np.array([_key(seed, name) for name in self.sources], np.uint64)
        self._sides = np.array([_sides(max(1, windows[name])) for name in self.sources], np.int64).reshape(-1, 2)
        self._phases: list[_Phase] = []
        done = np.zeros(len(self.sources), np.int64)  # samples of each source before the phase
        for start, shares in ((0, weights), *phases):
            if self._phases:
                last = self._phases[-1]
                if start <= last.start:
                    raise UserError(
                        f"phase at sample {start:,}: phases must begin after sample {last.start:,}, in rising order"
                    )
                done = done + last.before(start - last.start)
            self._phases.append(_Phase(start, self._counts(shares), done))
        self._starts = np.array([phase.start for phase in self._phases], np.int64)

    def _counts(self, weights: Mapping[str, float]) -> np.ndarray:
        """int64 [sources]: samples of each source in one period."""
        shares = {}
        for name, weight in weights.items():
            if name not in self.sources:
                raise UserError(f"weight of {name!r}: no such source; the sources are {', '.join(self.sources)}")
            share = Fraction(Decimal(repr(float(weight)))) if math.isfinite(weight) else Fraction(-1)
            if share < 0 or (share * 10**DECIMALS).denominator != 1:
                raise UserError(f"weight of {name!r}: {weight} is not a share of at most {DECIMALS} decimals")
            if share and self._windows[self.sources.index(name)] < 1:
                raise UserError(f"weight of {name!r}: {weight}, but the source has not one whole sequence of text")
            shares[name] = share
        total = sum(shares.values(), Fraction())
        if total != 1:
            listed = ", ".join(f"{name} {weights[name]:g}" for name in weights)
            raise UserError(f"weights must sum to 1, they sum to {float(total):.6g}: {listed}")
        period = math.lcm(*(share.denominator for share in shares.values()))
        return np.array([int(shares.get(name, Fraction()) * period) for name in self.sources], np.int64)

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where samples come from.

        Args:
            samples: int64 [n], numbers of samples from 0 on.

        Returns:
            int64 [n] each: index into `self.sources`, epoch, window.
        """
        samples = np.asarray(samples, np.int64)
        source, ordinal = np.empty_like(samples), np.empty_like(samples)
        place = np.searchsorted(self._starts, samples, side="right") - 1
        for number in np.unique(place):
            here = place == number
            source[here], ordinal[here] = self._phases[number].locate(samples[here])
        windows = self._windows[source]
        epoch, position = np.divmod(ordinal, windows)
        key = _mix(self._keys[source] + epoch.astype(np.uint64))
        return source, epoch, _permute(position, windows, self._sides[source], key)

    def samples(self, first: int, count: int, rank: int = 0, world: int = 1) -> list[Sample]:
        """Rank's share of the `count` samples from number `first` on: every `world`-th, from the `rank`-th.

        So every world size trains on the same global batches.
        """
        return self._samples(np.arange(first + rank, first + count, world))

    def given(self, samples: int) -> dict[str, int]:
        """How many of the first `samples` samples each source gives."""
        phase = self._phases[max(0, int(np.searchsorted(self._starts, samples, side="right")) - 1)]
        given = phase.done + phase.before(samples - phase.start)
        return dict(zip(self.sources, given.tolist(), strict=True))

    def _samples(self, samples: np.ndarray) -> list[Sample]:
        source, epoch, window = (column.tolist() for column in self.locate(samples))
        return [Sample(self.sources[s], e, w) for s, e, w in zip(source, epoch, window, strict=True)]


def epochs(order: DataOrder, windows: Mapping[str, int], samples: int) -> dict[str, float]:
    """How often the first `samples` samples go through each source that they take from; above 1 it is repeated.

    Args:
        windows: of each source, as the order was made with.
    """
    return {name: given / windows[name] for name, given in order.given(samples).items() if given}


class _Phase:
    """A stretch of the run with fixed weights, from sample `start` on."""

    def __init__(self, start: int, counts: np.ndarray, done: np.ndarray) -> None:
        self.start, self.counts, self.done = start, counts, done
        self.source, self.rank = schedule(counts.tolist())

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source index and the source's own number of each sample."""
        period, offset = np.divmod(samples - self.start, len(self.source))
        source = self.source[offset].astype(np.int64)
        return source, self.done[source] + period * self.counts[source] + self.rank[offset]

    def before(self, samples: int) -> np.ndarray:
        """int64 [sources]: how many of the first `samples` of this phase each source gives."""
        period, offset = divmod(samples, len(self.source))
        return period * self.counts + np.bincount(self.source[:offset], minlength=len(self.counts))


def schedule(counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Interleave sources over one period so that every prefix of n offsets holds n * count / P of each, within one.

    Args:
        counts: samples of each source in the period; P is their sum.

    Returns:
        int32 [P] each: the source at every offset, and its rank among that source's samples of the period.
    """
    period = sum(counts)
    source, rank = np.empty(period, np.int32), np.empty(period, np.int32)
    waiting = [(0, k, 0) for k, count in enumerate(counts) if count]  # (earliest offset, source, rank)
    ready: list[tuple[int, int, int]] = []  # (first offset that is too late, source, rank)
    for offset in range(period):
        while waiting and waiting[0][0] <= offset:
            _, k, n = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-(n + 1) * period // counts[k]), k, n))
        deadline, k, n = heapq.heappop(ready)
        assert offset < deadline, "earliest deadline first always meets the Pfair deadlines"
        source[offset], rank[offset] = k, n
        if n + 1 < counts[k]:
            heapq.heappush(waiting, ((n + 1) * period // counts[k], k, n + 1))
    return source, rank


def _key(seed: int, name: str) -> int:
    """64 bits from the seed and a source's name: other sources do not change the order within this one."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little")


def _sides(size: int) -> tuple[int, int]:
    """The smallest near-square a x b rectangle that holds `size` values."""
    a = math.isqrt(size - 1) + 1
    return a, -(-size // a)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014): uint64 to well-mixed uint64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _permute(position: np.ndarray, size: np.ndarray, sides: np.ndarray, key: np.ndarray) -> np.ndarray:
    """int64 [n]: where each position goes under the permutation of range(size) that its key selects.

    Args:
        position, size: int64 [n], 0 <= position < size.
        sides: int64 [n, 2] from `_sides`.
        key: uint64 [n].
    """
    result = position.copy()
    todo = np.arange(len(position))
    while len(todo):
        result[todo] = walked = _feistel(result[todo], sides[todo], key[todo])
        todo = todo[walked >= size[todo]]
    return result


def _feistel(value: np.ndarray, sides: np.ndarray, key: np.ndarray) -> np.ndarray:
    """A keyed permutation of range(a * b): each half is shifted in turn by a hash of the other."""
    a, b = sides[:, 0].astype(np.uint64), sides[:, 1].astype(np.uint64)
    left, right = np.divmod(value.astype(np.uint64), b)
    for turn in range(0, ROUNDS, 2):
        left = (left + _mix(key + _TURN_KEYS[turn] ^ right) % a) % a
        right = (right + _mix(key + _TURN_KEYS[turn + 1] ^ left) % b) % b
    return (left * b + right).astype(np.int64)
