"""Heuristic filters: a table of rules over counts that a pass over the bytes delivers (measures.py, repetition.py).

A rule reads one setting of `recipe.settings.Filters` and compares it with the quantity of the same name: `max_...`
drops documents above it, `min_...` below it. What depends on how a language is written is set per language, in
`filters.en` and `filters.zh`, and read by the document's own language. The first rule of the table that a document
fails is its reason. The defaults keep whatever a person would keep, code and manuals among it; the values published for
web pages, beside them in docs/corpus-filters.md, are stricter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from xmodel.corpus.batches import mark, with_column
from xmodel.corpus.furniture import furniture_phrases
from xmodel.corpus.measures import Measure, measure
from xmodel.corpus.repetition import DUPLICATE_NGRAMS, TOP_NGRAMS, Repetition, repetition
from xmodel.corpus.search import find
from xmodel.corpus.utf8 import byte_lengths
from xmodel.recipe.settings import Filters


@dataclass(frozen=True)
class Rule:
    """One row of the table of filters."""

    reason: str  # what the funnel calls it
    setting: str  # the field of `Filters`, or of its parts, with the threshold; the quantity it is compared with
    unit: str
    purpose: str
    published: tuple[float | None, float | None] = (None, None)  # for web pages: English, Chinese


_TOP = dict(zip(TOP_NGRAMS, ((0.20, 0.256), (0.18, 0.201), (0.16, 0.171)), strict=True))
_DUPLICATE = dict(
    zip(
        DUPLICATE_NGRAMS,
        ((0.15, 0.198), (0.14, 0.182), (0.13, 0.167), (0.12, 0.154), (0.11, 0.14), (0.10, 0.127)),
        strict=True,
    )
)

# Damage and wrong language first, since they explain what the later rules would find strange. Published values: for
# English Gopher's (Rae et al. 2021, table A1), and FineWeb's (Penedo et al. 2024) for line ends and short lines; for
# Chinese FineWeb-2's (Penedo et al. 2025, configs/cmn_Hani.yml), whose words are those of a segmenter.
RULES = (
    Rule("too_short", "min_characters", "characters", "navigation labels, empty pages: nothing to learn from"),
    Rule("too_long", "max_characters", "characters", "dumps and logs; keeps the memory of a batch bounded"),
    Rule("mojibake", "max_replacement_share", "of characters", "text that went through a wrong decoding"),
    Rule("symbols", "max_symbol_share", "of visible characters", "symbol soup, ASCII art, binary data"),
    Rule("digits", "max_digit_share", "of visible characters", "tables of numbers, telephone lists, hex dumps"),
    Rule("few_letters", "min_letter_share", "of visible characters", "what is left of pages without prose"),
    Rule("wrong_script", "max_foreign_share", "of letters", "text in neither Latin nor Han script"),
    Rule("wrong_language", "max_han_share", "of letters", "Chinese in a source stated to be English"),
    Rule("wrong_language", "min_han_share", "of letters", "English in a source stated to be Chinese"),
    Rule("wrong_language", "max_other_language_share", "of function words", "French, German, ...: text in Latin script"),
    Rule("repeated_lines", "max_repeated_line_share", "of visible characters", "one line over and over: logs, spam", (0.20, None)),
    Rule("repeated_lines", "max_repeated_lines", "of lines", "the same, where the lines are short; needs ten lines", (0.30, 0.287)),
    Rule("repeated_paragraphs", "max_repeated_paragraph_share", "of visible characters", "a page pasted twice", (0.20, None)),
    Rule("repeated_paragraphs", "max_repeated_paragraphs", "of paragraphs", "form letters, comment spam; needs ten", (0.30, None)),
    Rule("list", "max_list_share", "of lines", "catalogues, tag clouds: items without a sentence; needs ten lines"),
    Rule("boilerplate", "max_boilerplate_share", "of folded bytes", "pages that are all cookie banner and footer"),
    Rule("few_words", "min_words", "words", "captions, error pages", (50, None)),
    Rule("word_length", "min_mean_word_length", "characters", "letters set apart, tables of codes", (3, None)),
    Rule("word_length", "max_mean_word_length", "characters", "addresses, keys, base64", (10, None)),
    Rule("alphabetic_words", "min_alphabetic_share", "of words", "numbers and signs in place of words", (0.80, 0.735)),
    Rule("stop_words", "min_stop_words", "different words", "keywords without grammar; needs 100 words", (2, None)),
    Rule("hashes", "max_hash_share", "per word", "hashtags; needs 100 words", (0.10, None)),
    Rule("ellipses", "max_ellipsis_share", "per word", "teasers, dot leaders; needs 100 words", (0.10, None)),
    Rule("ellipses", "max_ellipsis_lines", "of lines", "lists of teasers, each cut off; needs ten lines", (0.30, None)),
    Rule("bullets", "max_bullet_lines", "of lines", "lists of links or of features; needs ten lines", (0.90, None)),
    Rule("line_ends", "min_ended_lines", "of lines", "lines that end no sentence: menus; needs ten lines", (0.12, 0.106)),
    Rule("short_lines", "max_short_lines", "of lines", "lines of at most 30 columns: menus; needs ten lines", (0.67, None)),
    Rule("line_length", "min_mean_line_length", "visible characters", "a word or a character a line; needs ten lines"),
    Rule("paragraph_length", "min_mean_paragraph_length", "visible characters", "scraps set apart; needs ten paragraphs"),
    Rule("punctuation", "min_punctuation_share", "of visible characters", "word salad, keywords; needs 100 words"),
    Rule("punctuation", "max_punctuation_share", "of visible characters", "rows of dashes, dot leaders, emoticons"),
    *(
        Rule("repeated_ngrams", f"max_top_{n}gram_share", "of letters and digits", f"one run of {n} words; needs 100 words", values)
        for n, values in _TOP.items()
    ),
    *(
        Rule("repeated_ngrams", f"max_duplicate_{n}gram_share", "of letters and digits", f"runs of {n} words met before; needs 100 words", values)
        for n, values in _DUPLICATE.items()
    ),
)  # fmt: skip

MANY = 10  # with fewer lines or paragraphs there is no telling from their shares
MANY_WORDS = 100
FUNCTION_WORDS = 5  # so many of the other language must be met, and this share of all words
FUNCTION_SHARE = 0.07


def stated_languages(batch: pa.RecordBatch, stated: Literal["en", "zh", "auto"]) -> np.ndarray:
    """The language stated for each document, str [D]: its own (the column `language`), else its source's, else "auto".

    What is neither en nor zh says nothing here: data sets name programming languages in such a field too.
    """
    if "language" not in batch.schema.names:
        return np.full(len(batch), stated)
    own_D = batch["language"].fill_null(stated).to_numpy(zero_copy_only=False).astype(str)
    return np.where(np.isin(own_D, ("en", "zh")), own_D, stated)


def quantities(batch: pa.RecordBatch, stated_D: np.ndarray) -> dict[str, np.ndarray]:
    """What the rules compare with their settings, under the settings' names.

    Args:
        batch: D documents with the columns `text` and `folded`.
        stated_D: of `stated_languages`.

    Returns:
        float64 [D] each: lengths in characters or words, shares between 0 and 1; and "han_share".
    """
    counts = measure(batch["text"]).T.astype(np.float64)
    ngrams = repetition(batch["text"]).T.astype(np.float64)
    letters = counts[[Measure.LATIN, Measure.HAN, Measure.KANA, Measure.FOREIGN]].sum(axis=0)
    characters = counts[: Measure.DAMAGED + 1].sum(axis=0)
    visible = np.maximum(characters - counts[Measure.SPACES], 1)
    lines = np.maximum(counts[Measure.LINES], 1)
    paragraphs = np.maximum(counts[Measure.PARAGRAPHS], 1)
    han = counts[Measure.HAN] / np.maximum(letters, 1)
    damaged = np.minimum(counts[Measure.DAMAGED] + counts[Measure.MISREAD], characters)  # one character may be both
    if "furniture" in batch.schema.names:
        furniture = batch["furniture"].to_numpy()
    else:
        furniture, _ = find(batch["folded"], furniture_phrases())
    length = characters + counts[Measure.HAN]
    words = np.maximum(counts[Measure.WORDS] + counts[Measure.HAN], 1)
    alphabetic = counts[Measure.ALPHABETIC_WORDS] + counts[Measure.HAN]
    in_words = visible - counts[Measure.HAN] - counts[Measure.PUNCTUATION]
    word_length = in_words / np.maximum(counts[Measure.WORDS], 1)
    units = np.maximum(ngrams[Repetition.UNIT_CHARACTERS], 1)
    english, other = ngrams[Repetition.ENGLISH_WORDS], ngrams[Repetition.OTHER_WORDS]
    telling = (other >= FUNCTION_WORDS) & (other >= FUNCTION_SHARE * ngrams[Repetition.UNITS])
    stop_words = np.where(
        han >= 0.5,
        ngrams[Repetition.STOP_WORDS_ZH],
        np.maximum(*ngrams[[Repetition.STOP_WORDS_EN, Repetition.STOP_WORDS_ZH]]),
    )
    many, long = lines >= MANY, words >= MANY_WORDS

    def share(name: str) -> np.ndarray:
        return np.minimum(ngrams[Repetition[name]] / units, 1.0)

    return {
        "han_share": han,
        "min_characters": length,
        "max_characters": length,
        "max_replacement_share": damaged / np.maximum(characters, 1),
        "max_foreign_share": (counts[Measure.KANA] + counts[Measure.FOREIGN]) / np.maximum(letters, 1),
        "max_han_share": np.where(stated_D == "en", han, 0.0),
        "min_han_share": np.where(stated_D == "zh", han, 1.0),
        "max_other_language_share": np.where(telling, other / np.maximum(other + english, 1), 0.0),
        "max_symbol_share": counts[Measure.SYMBOLS] / visible,
        "max_digit_share": counts[Measure.DIGITS] / visible,
        "min_letter_share": letters / visible,
        "max_repeated_line_share": counts[Measure.REPEATED_CHARACTERS] / visible,
        "max_repeated_lines": np.where(many, counts[Measure.REPEATED_LINES] / lines, 0.0),
        "max_repeated_paragraph_share": counts[Measure.REPEATED_PARAGRAPH_CHARACTERS] / visible,
        "max_repeated_paragraphs": np.where(paragraphs >= MANY, counts[Measure.REPEATED_PARAGRAPHS] / paragraphs, 0.0),
        "max_list_share": np.where(many, counts[Measure.ITEM_LINES] / lines, 0.0),
        "max_boilerplate_share": np.minimum(furniture / np.maximum(byte_lengths(batch["folded"]), 1), 1.0),
        "min_words": words,
        "min_mean_word_length": word_length,
        "max_mean_word_length": word_length,
        "min_alphabetic_share": alphabetic / words,
        "min_stop_words": np.where(long, stop_words, np.inf),
        "max_hash_share": np.where(long, counts[Measure.HASHES] / words, 0.0),
        "max_ellipsis_share": np.where(long, counts[Measure.ELLIPSES] / words, 0.0),
        "max_ellipsis_lines": np.where(many, counts[Measure.ELLIPSIS_LINES] / lines, 0.0),
        "max_bullet_lines": np.where(many, counts[Measure.BULLET_LINES] / lines, 0.0),
        "min_ended_lines": np.where(many, counts[Measure.ENDED_LINES] / lines, 1.0),
        "max_short_lines": np.where(many, counts[Measure.SHORT_LINES] / lines, 0.0),
        "min_mean_line_length": np.where(many, visible / lines, np.inf),
        "min_mean_paragraph_length": np.where(paragraphs >= MANY, visible / paragraphs, np.inf),
        "min_punctuation_share": np.where(long, counts[Measure.PUNCTUATION] / visible, 1.0),
        "max_punctuation_share": counts[Measure.PUNCTUATION] / visible,
        **{f"max_top_{n}gram_share": np.where(long, share(f"TOP_{n}"), 0.0) for n in TOP_NGRAMS},
        **{f"max_duplicate_{n}gram_share": np.where(long, share(f"DUPLICATE_{n}"), 0.0) for n in DUPLICATE_NGRAMS},
    }


def threshold(settings: Filters, name: str, language: Literal["en", "zh"]) -> float | None:
    """The value of a setting for documents of a language; None where it does not apply to the language."""
    shared = getattr(settings, name, None)
    return getattr(getattr(settings, language), name, None) if shared is None else shared


def filtering(batch: pa.RecordBatch, settings: Filters, stated: Literal["en", "zh", "auto"]) -> pa.RecordBatch:
    """The stage: decides each document's `language` and marks those that fail a rule; needs the column `folded`.

    Args:
        stated: the language stated for the documents' source, for those that do not state their own.
    """
    stated_D = stated_languages(batch, stated)
    values = quantities(batch, stated_D)
    chinese_D = np.where(stated_D == "auto", values["han_share"] >= settings.chinese_share, stated_D == "zh")
    which_D = np.full(len(batch), -1)
    for index, rule in reversed(list(enumerate(RULES))):
        en, zh = (threshold(settings, rule.setting, language) for language in ("en", "zh"))
        limit_D = np.where(chinese_D, np.nan if zh is None else zh, np.nan if en is None else en)  # nan fails nobody
        value_D = values[rule.setting]
        fails_D = value_D > limit_D if rule.setting.startswith("max_") else value_D < limit_D
        which_D[fails_D] = index
    batch = with_column(batch, "language", pa.array(np.where(chinese_D, "zh", "en"), pa.string()))
    return mark(batch, [rule.reason for rule in RULES], which_D)


def rules_table() -> str:
    """The rules as a table in Markdown, with the defaults and the values published for web pages."""

    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:,g}" if value < 1e6 else f"{value:,.0f}"

    heads = ("reason", "setting", "unit", "en", "zh", "web en", "web zh", "what it is for")
    rows = ["| " + " | ".join(heads) + " |", "|---|---|---|--:|--:|--:|--:|---|"]
    for rule in RULES:
        limits = [threshold(Filters(), rule.setting, language) for language in ("en", "zh")]
        cells = (rule.unit, *map(cell, (*limits, *rule.published)), rule.purpose)
        rows.append(f"| {rule.reason} | `{rule.setting}` | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def published_recipe() -> str:
    """The values published for web pages, as a recipe has them."""
    shared = [(rule.setting, rule.published[0]) for rule in RULES if hasattr(Filters(), rule.setting)]
    parts = {
        language: [(rule.setting, rule.published[n]) for rule in RULES if not hasattr(Filters(), rule.setting)]
        for n, language in enumerate(("en", "zh"))
    }
    lines = ["corpus:", "  filters:"]
    lines += [f"    {name}: {value:g}" for name, value in shared if value is not None]
    for language, values in parts.items():
        lines.append(f"    {language}:")
        lines += [f"      {name}: {value:g}" for name, value in values if value is not None]
    return "\n".join(lines)
