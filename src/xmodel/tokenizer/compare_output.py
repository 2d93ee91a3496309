"""What `compare` found, as tables for a terminal and as a drawing."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from xmodel.console import log, table
from xmodel.files import atomic_write, check_drawing
from xmodel.tokenizer.compare import SCRIPTS, language_of

LOSSY = "* does not give the text back: what it drops costs it no tokens, so its figures look better than they are"
# Told apart by those who do not see red and green (Okabe and Ito 2008, "Color universal design").
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
SCRIPT_COLOURS = ("#4c78a8", "#e45756", "#f2cf5b", "#9d755d", "#d4d4d4", "#54a24b", "#b279a2", "#ff9da6", "#666666")
CHINESE_FONTS = ("Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "PingFang SC", "Arial Unicode MS")

# Tokens per character on a text that was not published: lower is better.
PUBLISHED_SOURCE = "Xmodel-LM, arXiv 2406.02856, table of tokenizers"
PUBLISHED = (
    ("LLaMA 2", 32_000, 0.7524),
    ("InternLM 2", 103_168, 0.4124),
    ("Baichuan 2", 125_696, 0.4103),
    ("Xmodel-LM", 32_000, 0.3841),
)


def tables(found: dict[str, Any], published: bool = False) -> str:
    """What `compare` found, for a terminal; `published`: the paper's table beside it."""
    parts = [_compression_table(found), _tokenizer_table(found), _script_table(found)]
    for row in found["tokenizers"]:
        if at := row["first_difference"]:
            parts.append(
                f"{row['name']} changes {row['documents_changed']:,} of {found['text'][0]['documents']:,} documents; "
                f"the first: {at['document']}, line {at['line']}, character {at['character']}\n"
                f"  text     {at['text']!r}\n  decoded  {at['decoded']!r}"
            )
    if published:
        rows = [(name, f"{size:,}", f"{value:.4f}") for name, size, value in PUBLISHED]
        parts.append(
            f"Published, on other text ({PUBLISHED_SOURCE}); not to be set against the figures above\n"
            + table(["tokenizer", "pieces", "tokens/char"], rows)
        )
    return "\n\n".join(parts)


def published_table() -> dict[str, Any]:
    """The paper's table for `--json`."""
    rows = [dict(zip(("name", "vocab_size", "tokens_per_character"), row, strict=True)) for row in PUBLISHED]
    return {"source": PUBLISHED_SOURCE, "text": "the paper's own, not published", "tokenizers": rows}


def _groups(found: dict[str, Any]) -> list[tuple[int, str, bool]]:
    """(place, name, whether it is a category) of each group of the text that does not repeat the figures above it."""
    languages = [size["language"] for size in found["text"]]
    groups = []
    for place, (language, size) in enumerate(zip(languages, found["text"], strict=True)):
        is_category = size["category"] != "all"
        alone = languages.count(language) == 2 if is_category else place == 0 and len(set(languages)) == 2
        if not alone:
            groups.append((place, size["category"] if is_category else language, is_category))
    return groups


def _compression_table(found: dict[str, Any]) -> str:
    columns = [
        ("tokens/char", "tokens_per_character", ".4f"), ("bytes/token", "bytes_per_token", ".3f"),
        ("tokens/word", "tokens_per_word", ".3f"), ("split words", "continued_words", ".2%"),
        ("tokens/Han", "tokens_per_han_character", ".3f"), ("split Han", "continued_han_characters", ".2%"),
        ("bytes", "byte_share", ".2%"), ("unknown", "unknown_share", ".2%"),
    ]  # fmt: skip
    first, rows = found["tokenizers"][0], []
    for place, name, is_category in _groups(found):
        base, label = first["groups"][place], f"  {name}" if is_category else name
        for row in found["tokenizers"]:
            group = row["groups"][place]
            cells = [_cell(group[key], form) for _, key, form in columns]
            more = group["tokens"] / base["tokens"] - 1 if row is not first and base["tokens"] else None
            rows.append([label, row["name"] + " *" * (not row["lossless"]), *cells, _cell(more, "+.1%")])
            label = ""
    text = table(["text", "tokenizer", *(header for header, _, _ in columns), f"tokens vs {first['name']}"], rows)
    return text if all(row["lossless"] for row in found["tokenizers"]) else f"{text}\n{LOSSY}"


def _tokenizer_table(found: dict[str, Any]) -> str:
    rows = [
        [
            row["name"],
            f"{row['vocab_size']:,}",
            "yes" if row["lossless"] else f"no: {row['documents_changed']:,} documents",
            f"{row['never_used']:,}",
            _cell(row["encode_mb_per_second"], ".2f"),
            _cell(row["decode_mb_per_second"], ".2f"),
        ]
        for row in found["tokenizers"]
    ]
    return table(["tokenizer", "pieces", "lossless", "never used", "encode MB/s", "decode MB/s"], rows)


def _script_table(found: dict[str, Any]) -> str:
    headers, rows = ["pieces"], [[name] for name in SCRIPTS]
    for row in found["tokenizers"]:
        headers += [row["name"], "used", "of tokens"]
        for cells, use in zip(rows, row["scripts"].values(), strict=True):
            cells += [f"{use['pieces']:,}", f"{use['used']:,}", _cell(use["token_share"], ".1%")]
    return table(headers, rows)


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


# ── Drawing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw tokens per character by language and category, and what the vocabularies consist of and is used.

    Raises:
        UserError: the name of the file does not say a format that is drawn.
    """
    check_drawing(path)
    import matplotlib.style
    from matplotlib import font_manager
    from matplotlib.figure import Figure

    chinese = [name for name in CHINESE_FONTS if name in font_manager.get_font_names()]
    style = {
        "font.family": ["DejaVu Sans", *chinese],
        "svg.fonttype": "none",
        "svg.hashsalt": "xmodel",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
    }
    tokenizers, groups = found["tokenizers"], _groups(found)
    heights = (0.24 * len(groups) * len(tokenizers) + 0.12 * len(groups), 0.44 * len(tokenizers))
    with matplotlib.style.context(["default", style]):
        chart = Figure(figsize=(8, sum(heights) + 2.4), layout="constrained")
        compression, vocabulary = chart.subplots(2, 1, height_ratios=[heights[0] + 0.4, heights[1] + 0.8])
        _draw_compression(compression, found, groups)
        _draw_vocabulary(vocabulary, tokenizers)
        names = [row["name"] for row in tokenizers] + [name for _, name, _ in groups]
        if not chinese and path.suffix.lower() != ".svg" and any(language_of(name) == "zh" for name in names):
            log(f"{path}: no font with Chinese characters is installed, names in them show as boxes; an .svg has them")
        with warnings.catch_warnings(), atomic_write(path) as stream:
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            no_date = {"Date": None} if path.suffix.lower() == ".svg" else None
            chart.savefig(stream, format=path.suffix.lower()[1:], dpi=150, metadata=no_date)


def _draw_compression(axes: Any, found: dict[str, Any], groups: list[tuple[int, str, bool]]) -> None:
    tokenizers = found["tokenizers"]
    step = 0.84 / len(tokenizers)
    for number, row in enumerate(tokenizers):
        values = [row["groups"][place]["tokens_per_character"] or 0.0 for place, _, _ in groups]
        places = [index - 0.42 + step * (number + 0.5) for index in range(len(groups))]
        label = row["name"] + " (lossy)" * (not row["lossless"])
        bars = axes.barh(places, values, 0.9 * step, color=COLOURS[number % len(COLOURS)], label=label)
        axes.bar_label(bars, [f"{value:.3f}" for value in values], padding=3, fontsize=8)
    languages = [row["language"] for row in found["text"]]
    labels = [f"{languages[place]}: {name}" if is_category else name for place, name, is_category in groups]
    axes.set_yticks(range(len(groups)), labels)
    axes.invert_yaxis()
    axes.margins(x=0.1, y=0.01)
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.set_title("Tokens per character (lower is better)", loc="left", fontsize=10, fontweight="bold")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def _draw_vocabulary(axes: Any, tokenizers: list[dict[str, Any]]) -> None:
    left = [0] * len(tokenizers)
    for name, colour in zip(SCRIPTS, SCRIPT_COLOURS, strict=True):
        uses = [row["scripts"][name] for row in tokenizers]
        for part, alpha in (("used", 1.0), ("never", 0.35)):
            sizes = [use["used"] if part == "used" else use["pieces"] - use["used"] for use in uses]
            label = name if part == "used" else None
            axes.barh(
                range(len(tokenizers)), sizes, 0.62, left=left, color=colour, alpha=alpha, label=label, linewidth=0
            )
            left = [start + size for start, size in zip(left, sizes, strict=True)]
    axes.set_yticks(range(len(tokenizers)), [row["name"] for row in tokenizers])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.tick_params(axis="y", length=0)
    axes.set_title("Pieces by script (pale: never used on this text)", loc="left", fontsize=10, fontweight="bold")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1.1), frameon=False, fontsize=8)
