"""Pieces of HTML. Plain strings are escaped wherever they enter; only what is `Html` already is taken as it is."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def escaped(value: object) -> Html:
    """`value` safe as content and inside a double-quoted attribute."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def element(name: str, *content: object, **attributes: object) -> Html:
    """`<name ...>content</name>`; `class_` becomes class, `aria_label` aria-label, empty attributes are left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"' for key, value in attributes.items() if value != ""
    )
    return Html(f"<{name}{written}>{''.join(escaped(part) for part in content)}</{name}>")


def join(parts: Iterable[object], between: str = "\n") -> Html:
    return Html(between.join(escaped(part) for part in parts))


def paragraph(*content: object, class_: str = "") -> Html:
    return element("p", *content, class_=class_)


def coloured(language: str, text: str) -> Html:
    """A word in the colour that its language has in every chart."""
    return element("b", text, class_=language) if language in ("en", "zh") else escaped(text)


def name(text: object) -> Html:
    """An identifier: code face, and it may break after an underscore, a dash, a dot or a slash."""
    broken = escaped(text)
    for mark in "_-./":
        broken = broken.replace(mark, mark + "<wbr>")
    return Html(f"<code>{broken}</code>")


def table(
    columns: Sequence[str | Html], rows: Iterable[Sequence[object]], *, totals: int = 0, class_: str = ""
) -> Html:
    """A table that scrolls by itself when the screen is narrow.

    Args:
        columns: the heads; `#` before it makes a column of numbers, `~` a wide one for graphics.
        totals: how many of the last rows sum up the others.
    """
    kinds = {"#": "number", "~": "graphic"}
    classes = [kinds.get(column[:1], "") for column in columns]
    heads = [type(column)(column[1:]) if kind else column for column, kind in zip(columns, classes, strict=True)]
    head = join((element("th", text, class_=kind, scope="col") for text, kind in zip(heads, classes, strict=True)), "")
    written = [
        element("tr", *(element("td", cell, class_=kind) for cell, kind in zip(row, classes, strict=True)))
        for row in rows
    ]
    body, foot = (written[:-totals], written[-totals:]) if totals else (written, [])
    parts = [element("thead", element("tr", head)), element("tbody", join(body))]
    parts += [element("tfoot", join(foot))] if foot else []
    return element("div", element("table", join(parts), class_=class_), class_="scroll", tabindex="0", role="group")


def facts(pairs: Iterable[tuple[object, object]]) -> Html:
    """A list of terms and their values."""
    return element("dl", join(element("div", element("dt", term), element("dd", value)) for term, value in pairs))


def folded(summary: str, *content: object) -> Html:
    return element("details", element("summary", summary), *content)


def figure(title: object, drawing: Html, note: object = "") -> Html:
    """A drawing under its title, with a quiet note below."""
    below = [element("p", note, class_="note")] if note else []
    return element("figure", element("figcaption", title), drawing, *below)


def bar(parts: Iterable[tuple[float, str, str]]) -> Html:
    """A horizontal bar of (share of the full width in 0..1, class, what it is)."""
    drawn = [
        element("i", class_=kind, style=f"width:{100 * part:.2f}%", title=title)
        for part, kind, title in parts
        if part > 0
    ]
    return element("span", *drawn, class_="bar")


def key(kind: str, text: str) -> Html:
    """An entry of a legend: a patch in the colour of the class `kind`, and its meaning."""
    return element("span", element("i", class_=kind), text, class_="key")


def missing(what: str, command: str) -> Html:
    """The honest place-holder for a part that the run has not reached."""
    return paragraph(what, " – not run yet. ", element("code", command), " makes it.", class_="missing")
