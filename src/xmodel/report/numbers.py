"""Numbers as a reader wants them. Every function takes None and NaN and answers with a dash."""

from __future__ import annotations

import math
from typing import Any

from xmodel import console

DASH = "–"
INTERVAL = 1.96  # standard errors to either side: 95 % of a normal distribution
LANGUAGES = {"en": "English", "zh": "Chinese"}


def known(value: Any) -> bool:
    """Whether `value` is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any) -> float:
    """`value` as a float; NaN for whatever is no number (None, text)."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def count(value: Any) -> str:
    """1234567 -> 1,234,567"""
    return f"{round(value):,}" if known(value) else DASH


def scaled(value: Any) -> str:
    """Three significant digits: 950, 32.8k, 1.19B, 2.06T."""
    return console.count(value) if known(value) else DASH


def power(value: float) -> str:
    """0.0006 -> 6e-4"""
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}" if value else "0"


def decimal(value: Any, places: int = 3) -> str:
    """1.23456 -> 1.235"""
    return f"{value:,.{places}f}" if known(value) else DASH


def percent(value: Any, places: int = 1) -> str:
    """0.6241 -> 62.4%"""
    return f"{100 * value:.{places}f}%" if known(value) else DASH


def size(value: Any) -> str:
    """Bytes, in powers of a thousand: 950 B, 1.23 MB."""
    if not known(value):
        return DASH
    for power, unit in ((12, "TB"), (9, "GB"), (6, "MB"), (3, "kB")):
        if value >= 0.9995 * 10**power:
            return f"{value / 10**power:#.3g}".rstrip(".") + f" {unit}"
    return f"{value:.0f} B"


def duration(seconds: Any) -> str:
    """72 -> 1m12s"""
    return console.duration(seconds) if known(seconds) else DASH


def language(code: Any) -> str:
    """en -> English; what is not known stays as it is."""
    return LANGUAGES.get(code, str(code))


def share(part: Any, whole: Any) -> float:
    """`part / whole`, NaN where that has no meaning."""
    return part / whole if known(part) and known(whole) and whole else math.nan
