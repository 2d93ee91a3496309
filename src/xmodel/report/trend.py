"""Whether a score follows the logarithm of the step: correlations, their permutation tests, and the slope."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import permutations
from typing import NamedTuple

import numpy as np

from xmodel.report.numbers import DASH

FEWEST = 4  # points below which nothing is said
EXACT = 7  # points up to which all orders are tried: 7! = 5,040
DRAWS = 10_000  # orders drawn for more points, from a fixed seed
SURE = 0.05


class Trend(NamedTuple):
    """Of n points (log10 x, y). A figure is NaN where y does not vary."""

    points: int
    pearson: float
    pearson_p: float
    spearman: float
    spearman_p: float
    slope: float  # of y, for each tenfold of x
    stderr: float  # of the slope, by least squares

    @property
    def sure(self) -> bool:
        """Whether Pearson's r can be told from none."""
        return self.pearson_p < SURE


def trend(x: Sequence[float], y: Sequence[float]) -> Trend | None:
    """How `y` goes with log10 of `x` (positive); None for fewer than four points.

    p is two-sided: the share of the orders of y whose |r| is at least as large. All orders are tried up to seven
    points; for more, 10,000 are drawn and (k + 1) / (draws + 1) is given.
    """
    n = len(x)
    if n < FEWEST:
        return None
    log_N, y_N = np.log10(np.asarray(x, float)), np.asarray(y, float)
    pearson, pearson_p = _correlation(log_N, y_N)
    spearman, spearman_p = _correlation(ranks(log_N), ranks(y_N))
    spread = float(((log_N - log_N.mean()) ** 2).sum())
    if not spread:
        return None
    slope = float((log_N - log_N.mean()) @ y_N) / spread
    residuals_N = y_N - y_N.mean() - slope * (log_N - log_N.mean())
    stderr = math.sqrt(float(residuals_N @ residuals_N) / (n - 2) / spread)
    return Trend(n, pearson, pearson_p, spearman, spearman_p, slope, stderr)


def least_p(points: int) -> float:
    """The smallest p that so many points can have: of a line, and of its mirror image."""
    return 2 / math.factorial(points) if points <= EXACT else 1 / (DRAWS + 1)


def with_p(r: float, p: float) -> str:
    """A correlation and its p, for people."""
    return f"{r:+.2f} (p {'<0.001' if p < 0.001 else f'{p:.3f}'})" if math.isfinite(r) else DASH


def ranks(values_N: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    below_N = (values_N[:, None] > values_N[None]).sum(1)
    equal_N = (values_N[:, None] == values_N[None]).sum(1)
    return below_N + (equal_N + 1) / 2


def _correlation(x_N: np.ndarray, y_N: np.ndarray) -> tuple[float, float]:
    """Pearson's r and its permutation p."""
    x_N, y_N = x_N - x_N.mean(), y_N - y_N.mean()
    scale = math.sqrt(float(x_N @ x_N) * float(y_N @ y_N))
    if scale < 1e-12:
        return math.nan, math.nan
    r = float(x_N @ y_N) / scale
    others_P = y_N[_orders(len(y_N))] @ x_N / scale
    beyond = int((np.abs(others_P) >= abs(r) - 1e-9).sum())
    return r, beyond / len(others_P) if len(y_N) <= EXACT else (beyond + 1) / (DRAWS + 1)


@cache
def _orders(n: int) -> np.ndarray:
    if n <= EXACT:
        return np.array(list(permutations(range(n))))
    return np.random.default_rng(0).permuted(np.tile(np.arange(n), (DRAWS, 1)), axis=1)
