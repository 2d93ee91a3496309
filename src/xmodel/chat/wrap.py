"""Text that comes piece by piece, broken into lines no wider than the terminal.

A word is shown when it is complete, so none is ever broken that fits on a line. Chinese is broken between characters,
but no line begins with a closing mark or ends with an opening one (CLREQ's rules in their plain form). A break is only
ever put in, nothing is taken away: spaces before it stay at the end of the line.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

from xmodel.console import width

CLOSING = frozenset("，。、；：！？）】」』》〉〕｝…—·～％℃”’" + ",.;:!?)]}%'")  # may not begin a line
OPENING = frozenset("（【「『《〈〔｛“‘￥" + "([{")  # may not end a line
JOINERS = frozenset("\u200d\u2060\ufeff\u00a0")  # nothing is broken behind them, nor (they have no width) before them
NARROWEST = 4  # columns; narrower terminals are taken for as wide

# What would move the cursor, or turn the direction of the line, is shown and not obeyed: a model can write anything.
_SHOWN = {code: chr(0x2400 + code) for code in range(0x20) if code != 0x0A}
_SHOWN |= {0x09: "    ", 0x7F: "␡", 0x2028: " ", 0x2029: " "}
_SHOWN |= dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd")


def shown(text: str) -> str:
    """The text as it may go to a terminal: tabs as four spaces, other control characters as pictures of them."""
    return text.translate(_SHOWN)


class Wrapper:
    """Breaks a stream of text into lines.

    Attributes:
        column: where the cursor stands.
    """

    def __init__(self, columns: Callable[[], int], soft: str = "\n") -> None:
        """`columns` is asked at every word, since a window may change; `soft` is what is put in for a break."""
        self.columns, self.soft = columns, soft
        self.column = 0
        self._held, self._width = "", 0  # what may not be broken, as far as it has come

    def push(self, text: str) -> str:
        """What can be shown now that `text` has come."""
        out: list[str] = []
        for character in shown(text):
            if character == "\n":
                out += [self._place(), "\n"]
                self.column = 0
            elif character == " ":
                out += [self._place(), self._space()]
            else:
                if self._held and _may_break(self._held[-1], character):
                    out.append(self._place())
                size = width(character)
                if self._width + size > self._room():
                    out.append(self._place())  # longer than a line: broken where the line ends
                self._held += character
                self._width += size
        return "".join(out)

    def finish(self) -> str:
        """What was held back, at the end of the text."""
        return self._place()

    def _room(self) -> int:
        """Columns for words: the last one is left to a space, and to terminals that jump when it is filled."""
        return max(self.columns(), NARROWEST) - 1

    def _place(self) -> str:
        held, size = self._held, self._width
        self._held, self._width = "", 0
        if self.column and self.column + size > self._room() and size:
            self.column = size
            return self.soft + held
        self.column += size
        return held

    def _space(self) -> str:
        if self.column > self._room():
            self.column = 1
            return self.soft + " "
        self.column += 1
        return " "


def _may_break(before: str, after: str) -> bool:
    if before in JOINERS or before in OPENING or after in CLOSING or not width(after) or after in JOINERS:
        return False
    return unicodedata.category(after) != "Sk" and (width(before) == 2 or width(after) == 2)


def wrap(text: str, columns: int) -> str:
    """A whole text in lines of at most so many columns."""
    wrapper = Wrapper(lambda: columns)
    return wrapper.push(text) + wrapper.finish()
