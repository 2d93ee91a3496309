"""What a person sees while a command works: log lines, progress, tables. Everything goes to standard error but results.

On a terminal `progress` draws a bar with the rate and the time left; elsewhere (a log file, CI) it writes a plain line
now and then, so that a log stays readable.
"""

from __future__ import annotations

import json
import os
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PLAIN_SECONDS = 10.0  # between two plain progress lines
BAR_SECONDS = 0.1  # between two redraws of a bar


def log(message: str) -> None:
    """Write one line to standard error; silent on every rank of a distributed run but the first."""
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`42s`, `3m05s`, `2h10m`, `61d 4h`: two units at most."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d {whole % 86_400 // 3600}h"


def count(number: float) -> str:
    """`950`, `4.1k`, `2.06T`: three significant digits with the suffixes that recipes accept."""
    for suffix, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= 0.9995 * size:  # what rounds to 1000 of the smaller unit is 1 of this one
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}" if number % 1 else f"{int(number)}"


class Progress:
    """State of one progress display; made by `progress`."""

    def __init__(self, label: str, total: float | None, unit: str, done: float) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self.first = done
        self.printed: float | None = None  # what the last plain line said
        self.note = ""
        self.on_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.quiet = os.environ.get("RANK", "0") != "0"
        self.started = self.drawn = time.monotonic()

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Count `amount` more units as done; `note` is shown behind the figures."""
        self.done += amount
        self.note = note or self.note
        now = time.monotonic()
        if now - self.drawn >= (BAR_SECONDS if self.on_terminal else PLAIN_SECONDS):
            self.drawn = now
            self._draw(end=False)

    def line(self) -> str:
        """The figures as one plain line."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        rate = (self.done - self.first) / seconds
        parts = [
            f"{count(self.done)}/{count(self.total)} {self.unit}" if self.total else f"{count(self.done)} {self.unit}"
        ]
        parts.append(f"{count(rate)} {self.unit}/s")
        if self.total and rate > 0 and self.done < self.total:
            parts.append(f"{duration((self.total - self.done) / rate)} left")
        else:
            parts.append(duration(seconds))
        return f"{self.label}: " + ", ".join(parts + ([self.note] if self.note else []))

    def _draw(self, end: bool) -> None:
        if self.quiet:
            return
        if not self.on_terminal:
            if self.done != self.printed:
                print(self.line(), file=sys.stderr, flush=True)
            self.printed = self.done
            return
        bar = ""
        if self.total:
            filled = int(24 * min(self.done / self.total, 1.0))
            bar = "█" * filled + "░" * (24 - filled) + " "
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
        print("\r\x1b[K" + clip(bar + self.line(), columns - 1), end="\n" if end else "", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Draw the last state."""
        self._draw(end=True)


@contextmanager
def progress(label: str, total: float | None, unit: str, done: float = 0) -> Iterator[Progress]:
    """Show the progress of the block; `total` in `unit`s, None when unknown; `done` units stand already (resume)."""
    shown = Progress(label, total, unit, done)
    try:
        yield shown
    finally:
        shown.close()


def width(text: str) -> int:
    """Columns that `text` takes on a terminal: East Asian wide characters take two (UAX #11), combining marks none."""
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if character.isascii():
        return 1
    if unicodedata.category(character) in ("Mn", "Me", "Cf") and character != "\u00ad":  # a soft hyphen is drawn
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def clip(text: str, columns: int) -> str:
    """The longest prefix of `text` that fits into `columns` terminal columns."""
    for end, _ in enumerate(text):
        if width(text[: end + 1]) > columns:
            return text[:end]
    return text


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A plain aligned table; numbers to the right, text to the left, Chinese at its true width."""
    cells = [[str(cell) for cell in row] for row in rows]
    lines = [list(headers), *cells]
    widths = [max(width(line[column]) for line in lines) for column in range(len(headers))]
    numeric = [all(_is_number(row[column]) for row in cells) and bool(cells) for column in range(len(headers))]

    def render(line: Sequence[str]) -> str:
        padded = []
        for cell, columns, right in zip(line, widths, numeric, strict=True):
            space = " " * (columns - width(cell))
            padded.append(space + cell if right else cell + space)
        return "  ".join(padded).rstrip()

    return "\n".join([render(headers), "  ".join("─" * columns for columns in widths), *(render(row) for row in cells)])


def _is_number(cell: str) -> bool:
    stripped = cell.strip().rstrip("%kMBTGsx×").replace(",", "").replace("±", " ").split()
    try:
        return not cell.strip() or (all(float(part) is not None for part in stripped) and bool(stripped))
    except ValueError:
        return cell.strip() in {"-", "–", "—"}


class JsonLines:
    """Append-only JSON lines (metrics.jsonl): one line a write, flushed, so that a kill loses at most the last line."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.stream = open(path, "a", encoding="utf-8")  # noqa: SIM115 - lives as long as the run

    def write(self, row: dict[str, Any]) -> None:
        self.stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.stream.flush()

    def close(self) -> None:
        self.stream.close()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a JSON-lines file that this software wrote; a last line cut off by a kill is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
