"""The settings of the corpus: sources, filters, near duplicates, quality. See settings.py."""

# ruff: noqa: RUF009 - `setting` makes a field; it is not a default shared by instances
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xmodel.recipe.setting import setting


@dataclass
class Fields:
    """Where a record keeps what is said about its text. A path as in `text_field`; empty: the record has none."""

    id: str = setting("id", "the document's own id; where a record has none, its place in the file is the id")
    language: str = setting(
        "", "its language (en, zh-cn, cmn_Hani, Chinese, ...); it comes before the source's language"
    )
    category: str = setting("", "its category; where a record has none, the source's category stands")
    provenance: str = setting("", "where the text comes from: an address, a file name")
    licence: str = setting("", "the licence of the text; where a record has none, the source's licence stands")


@dataclass
class Source:
    """One source of text."""

    name: str = setting("", "name of the source, unique in the recipe; it names the files")
    reader: Literal["jsonl", "parquet", "text", "code", "hf", "sandbox", "stdlib"] = setting(
        "jsonl",
        "jsonl: JSON lines (plain, .gz, .zst); parquet; text, code: one document a file; hf: a Hugging Face dataset, "
        "a local folder or streamed from the hub; sandbox: the embedded bilingual world; stdlib: the running Python's "
        "standard library",
    )
    paths: list[str] = setting(
        [],
        "files, folders or glob patterns, relative to corpus.root; for hf a folder or OWNER/NAME of the hub; for the "
        "sandbox the names of its parts (en, zh, parallel)",
    )
    text_field: str = setting(
        "text",
        "the field that holds the text: `a.b` is a field inside a field, `paragraphs[].text` the items of a list "
        "(joined by a newline), `title, body` two fields (joined by an empty line)",
    )
    fields: Fields = setting(Fields, "further fields of a record that are carried along")
    subset: str = setting("", "hf: the configuration of the dataset; empty: its default")
    split: str = setting("train", "hf: the split of the dataset")
    revision: str = setting("", "hf: commit or tag of a hub dataset; empty: its newest, which may change between runs")
    bad_rows: Literal["refuse", "drop"] = setting(
        "refuse",
        "a record that cannot be read (not JSON, not UTF-8, no text, too large, an id that stands twice, cut off): "
        "refuse: stop and say where; drop: drop it with that reason, counted",
    )
    language: Literal["en", "zh", "auto"] = setting(
        "auto", "en, zh, or auto: decided per document by its share of Han characters"
    )
    category: str = setting("web", "kind of text (web, book, code, ...), for the corpus table of the report")
    licence: str = setting("", "licence of the text, carried along with every document; empty: not known")
    weight: float = setting(
        0.0, "share of the training samples that come from this source; all weights sum to 1", least=0, most=1
    )
    documents: int | None = setting(None, "read at most this many documents (the sandbox: write this many)", least=1)
    tokens: int | None = setting(
        None,
        "published size in tokens, if known: `xmodel recipe check` derives the epochs from it",
        least=1,
        identity=False,
    )
    epochs: float | None = setting(
        None,
        "published number of epochs, if known: `xmodel corpus plan` says where the weight does not lead to it",
        least=0,
        identity=False,
    )


@dataclass
class LanguageFilters:
    """What depends on the language. A word is a Han character, or a run of other visible characters."""

    min_words: int = setting(5, "fewer words are dropped", least=0)
    min_alphabetic_share: float = setting(0.3, "least of the words that must hold a letter", least=0, most=1)
    min_stop_words: int = setting(
        0,
        "least number of different stop words (the be to of and that have with) in a text of 100 words; code has none",
        least=0,
        most=8,
    )
    max_hash_share: float = setting(1.0, "most number signs per word; counts from 100 words on", least=0)
    max_ellipsis_share: float = setting(0.2, "most ellipses per word", least=0)
    max_ellipsis_lines: float = setting(
        0.4, "most of the lines (ten or more) that may end with an ellipsis", least=0, most=1
    )
    max_bullet_lines: float = setting(
        0.95, "most of the lines (ten or more) that may begin with a bullet", least=0, most=1
    )
    min_ended_lines: float = setting(
        0.0, "least of the lines (ten or more) that must end like a sentence; tables and code do not", least=0, most=1
    )
    max_short_lines: float = setting(
        1.0,
        "most of the lines (ten or more) that may have 30 visible characters or fewer, a Han character counting as two",
        least=0,
        most=1,
    )
    min_mean_line_length: float = setting(
        5.0, "least visible characters in a line, on average over ten or more", least=0
    )
    min_mean_paragraph_length: float = setting(
        10.0, "least visible characters in a paragraph, on average over ten or more", least=0
    )
    min_punctuation_share: float = setting(
        0.01, "least that must be punctuation, in a text of 100 words", least=0, most=1
    )
    max_punctuation_share: float = setting(0.5, "most that may be punctuation", least=0, most=1)
    max_top_2gram_share: float = setting(
        0.5,
        "most of the letters and digits that the commonest 2-gram may make up, in a text of 100 words",
        least=0,
        most=1,
    )
    max_top_3gram_share: float = setting(
        0.5,
        "most of the letters and digits that the commonest 3-gram may make up, in a text of 100 words",
        least=0,
        most=1,
    )
    max_top_4gram_share: float = setting(
        0.5,
        "most of the letters and digits that the commonest 4-gram may make up, in a text of 100 words",
        least=0,
        most=1,
    )
    max_duplicate_5gram_share: float = setting(
        0.8, "most of the letters and digits in 5-grams that stood before, in a text of 100 words", least=0, most=1
    )
    max_duplicate_6gram_share: float = setting(
        0.78, "most of the letters and digits in 6-grams that stood before, in a text of 100 words", least=0, most=1
    )
    max_duplicate_7gram_share: float = setting(
        0.76, "most of the letters and digits in 7-grams that stood before, in a text of 100 words", least=0, most=1
    )
    max_duplicate_8gram_share: float = setting(
        0.74, "most of the letters and digits in 8-grams that stood before, in a text of 100 words", least=0, most=1
    )
    max_duplicate_9gram_share: float = setting(
        0.72, "most of the letters and digits in 9-grams that stood before, in a text of 100 words", least=0, most=1
    )
    max_duplicate_10gram_share: float = setting(
        0.7, "most of the letters and digits in 10-grams that stood before, in a text of 100 words", least=0, most=1
    )


@dataclass
class EnglishFilters(LanguageFilters):
    """Filters for documents in English, or in any language that is not Chinese. Shares are of the visible characters
    unless said otherwise; 0 for a `min_`, or the largest value for a `max_`, is off."""

    min_mean_word_length: float = setting(2.0, "least characters in a word, punctuation left out, on average", least=0)
    max_mean_word_length: float = setting(
        50.0, "most characters in a word, punctuation left out, on average; code and tables have long ones", least=0
    )


@dataclass
class ChineseFilters(LanguageFilters):
    """Filters for documents in Chinese, where the word is the character."""

    min_words: int = setting(8, "fewer characters are dropped; a run of letters or digits counts as one", least=0)
    min_stop_words: int = setting(
        0, "least number of different stop words (的 是 在 不 了 和 有 这) in a text of 100 characters", least=0, most=8
    )
    min_mean_line_length: float = setting(
        4.0, "least visible characters in a line, on average over ten or more", least=0
    )
    min_mean_paragraph_length: float = setting(
        8.0, "least visible characters in a paragraph, on average over ten or more", least=0
    )
    max_top_2gram_share: float = setting(
        0.35,
        "most of the letters and digits that the commonest 2-gram may make up, in a text of 100 words",
        least=0,
        most=1,
    )
    max_top_3gram_share: float = setting(
        0.35,
        "most of the letters and digits that the commonest 3-gram may make up, in a text of 100 words",
        least=0,
        most=1,
    )
    max_top_4gram_share: float = setting(
        0.35,
        "most of the letters and digits that the commonest 4-gram may make up, in a text of 100 words",
        least=0,
        most=1,
    )


@dataclass
class LineFilters:
    """Lines that are dropped while their document is kept. A line of text has six words (or twelve Han characters) or
    more, mostly letters; it is not indented, fenced or marked up: headings, code and rows of tables are none."""

    max_furniture_share: float = setting(
        0.4, "most of a line that may be phrases of web page furniture (menus, cookie banners); 1: off", least=0, most=1
    )
    max_copies: int = setting(
        0, "further copies of a line of text in one document are dropped when there are so many; 0: off", least=0
    )
    max_document_share: float = setting(
        0.02, "lines of text in more than this share of the documents of a source are dropped; 1: off", least=0, most=1
    )
    min_documents: int = setting(20, "... when they also stand in more than so many documents", least=1)
    max_removed_share: float = setting(
        0.4, "a document that would lose more than this share of its visible characters is dropped", least=0, most=1
    )


@dataclass
class Filters:
    """Heuristic filters; a document that fails one is dropped with that reason and counted. Shares are of the visible
    characters (white space left out) unless said otherwise; 0 for a `min_`, or the largest value for a `max_`, is off."""

    min_characters: int = setting(30, "shorter documents are dropped; a Han character counts as two", least=0)
    max_characters: int = setting(2_000_000, "longer documents are dropped; a Han character counts as two", least=1)
    max_replacement_share: float = setting(
        0.01, "share of U+FFFD, control characters and mojibake from which on a document is dropped", least=0, most=1
    )
    max_symbol_share: float = setting(
        0.30, "most that may be neither letter, Han, digit nor common punctuation", least=0, most=1
    )
    max_digit_share: float = setting(0.60, "most that may be digits", least=0, most=1)
    min_letter_share: float = setting(0.20, "least that must be letters or Han characters", least=0, most=1)
    max_repeated_line_share: float = setting(
        0.65, "most that may stand in lines which repeat an earlier line of the document", least=0, most=1
    )
    max_repeated_lines: float = setting(
        0.80, "most of the lines that may repeat an earlier line of the document", least=0, most=1
    )
    max_repeated_paragraph_share: float = setting(
        0.50, "most that may stand in paragraphs which repeat an earlier one of the document", least=0, most=1
    )
    max_repeated_paragraphs: float = setting(
        0.60, "most of the paragraphs that may repeat an earlier one of the document", least=0, most=1
    )
    max_list_share: float = setting(
        0.95, "most of the lines (ten or more) that may be items: a few words and no punctuation", least=0, most=1
    )
    max_boilerplate_share: float = setting(
        0.25,
        "most of the text that may be phrases of web page furniture (subscribe, privacy policy, 版权所有)",
        least=0,
        most=1,
    )
    chinese_share: float = setting(
        0.10, "language auto: Chinese when at least this share of the letters are Han", least=0, most=1
    )
    max_han_share: float = setting(
        0.30, "most of the letters that may be Han in a source whose stated language is en", least=0, most=1
    )
    min_han_share: float = setting(
        0.02, "least of the letters that must be Han in a source whose stated language is zh", least=0, most=1
    )
    max_foreign_share: float = setting(
        0.30, "most of the letters that may be of a script other than Latin and Han", least=0, most=1
    )
    max_other_language_share: float = setting(
        0.60,
        "most of the function words that may be of another language in Latin script (French, German, ...) than English",
        least=0,
        most=1,
    )
    en: EnglishFilters = setting(EnglishFilters, "thresholds for documents in English")
    zh: ChineseFilters = setting(ChineseFilters, "thresholds for documents in Chinese")
    lines: LineFilters = setting(LineFilters, "lines that are dropped while their document is kept")


@dataclass
class NearDuplicates:
    """Documents that differ from an earlier one by a few characters."""

    mode: Literal["off", "simhash", "minhash"] = setting(
        "simhash",
        "simhash: copies with up to about 2 % of their characters edited; minhash: up to about 10 %, at more work; off",
    )
    shortest: int = setting(
        100, "documents of fewer folded characters are left alone: too few 5-grams to judge by", least=5
    )
    distance: int = setting(
        18,
        "simhash: candidates are pairs whose 64-bit SimHashes differ in at most this many bits; to 3 none is missed",
        least=0,
        most=24,
    )
    permutations: int = setting(256, "values of a document's MinHash sketch; 3 bytes each", least=16, most=4096)
    bands: int = setting(
        85,
        "minhash: bands of permutations / bands values each; candidates are pairs that share one",
        least=1,
        most=1024,
    )
    threshold: float = setting(
        0.0,
        "least estimated share of 5-grams that a pair has in common, in the same order; 0: 0.65 for simhash, 0.30 for minhash",
        least=0,
        most=1,
    )


@dataclass
class Quality:
    """The quality filter: perplexity under a Kneser-Ney model of reference text. A language without one is not filtered."""

    reference: list[Source] = setting(
        [], "good text that the models learn from; each source states its language, en or zh. Empty: no filter"
    )
    order: int = setting(5, "words or characters of the longest n-grams", least=1, most=5)
    prune: list[int] = setting(
        [0, 0, 1],
        "n-grams of 1, 2, ... words that occur at most so often are left out; the last number holds for longer ones",
        least=0,
    )
    keep: Literal["head", "middle", "all"] = setting(
        "middle", "what is kept: the head, all but the tail (middle), or everything (all: the perplexity is only noted)"
    )
    head: float = setting(
        0.33, "share of the sample, those of lowest perplexity, whose highest one bounds the head", least=0, most=1
    )
    tail: float = setting(0.95, "the same share where the tail begins", least=0, most=1)
    max_perplexity_en: float = setting(
        0.0, "threshold for English by value, in place of both quantiles; 0: by quantile", least=0
    )
    max_perplexity_zh: float = setting(
        0.0, "threshold for Chinese by value, in place of both quantiles; 0: by quantile", least=0
    )
    max_bad_paragraphs: float = setting(
        1.0, "most of a document's units that may stand in paragraphs above the threshold", least=0, most=1
    )
    sample_documents: int = setting(
        2_000, "documents of each training source, from up to eight places, that the quantiles are taken of", least=1
    )
    memory: int = setting(
        1_000_000_000,
        "bytes that sorting may use while the models are trained; the vocabulary comes on top",
        least=1_000_000,
        identity=False,
    )


@dataclass
class Corpus:
    """Text in, clean weighted documents out."""

    root: str = setting("", "folder that relative source paths start from; empty: the recipe's folder", identity=False)
    sources: list[Source] = setting([], "training sources")
    validation: list[Source] = setting([], "sources that are only ever used for validation loss (weights are ignored)")
    holdout: float = setting(
        0.01,
        "share of each training source's documents, chosen by hash, that is kept for validation",
        least=0,
        most=0.5,
    )
    dirt: float = setting(
        0.0, "share of labelled dirt mixed into sandbox sources, so that the filters can be scored", least=0, most=0.9
    )
    filters: Filters = setting(Filters, "heuristic filters")
    quality: Quality = setting(Quality, "quality filter by perplexity; off without reference text")
    deduplicate: bool = setting(
        True,
        "drop duplicates within and across sources; the first of several is kept. Exact ones are those of the folded text",
    )
    near_duplicates: NearDuplicates = setting(
        NearDuplicates, "near duplicates, found after the exact ones if deduplicate is on"
    )
    index: str = setting(
        "", "folder corpus/index of an earlier run (made with keep_index): what that corpus has is left out here"
    )
    keep_index: bool = setting(
        False, "keep what later corpora need to be deduplicated against this one, in corpus/index/: 0.9 kB a document"
    )
    decontaminate: bool = setting(
        True, "drop documents that contain a held-out question of the run's own question sets"
    )
    benchmarks: list[str] = setting(
        [],
        "folders of benchmarks (JSON lines, Parquet, CSV, saved Hugging Face datasets), a subfolder each; training "
        "text that shares 13 words or 26 Han characters in a row with an item is contaminated",
    )
    contaminated: Literal["drop_document", "drop_span"] = setting(
        "drop_document",
        "what becomes of a document that shares text with a benchmark: dropped, or the shared text and 200 characters "
        "on both sides cut out of it",
    )
    keep_dropped: bool = setting(
        False,
        "keep the text of what was dropped in corpus/dropped/, where its id, reason and evidence stand in any case",
    )
    workers: int = setting(
        0,
        "processes that read, filter and write; 0: one per core, or none when there is little to do",
        least=0,
        identity=False,
    )
    memory: int = setting(
        1_000_000_000,
        "bytes that the search for duplicates may take; it goes through more documents in several passes",
        least=1_000_000,
        identity=False,
    )


def source_lists(corpus: Corpus) -> dict[str, list[Source]]:
    """Every list of sources, by its key below `corpus`."""
    return {
        "sources": corpus.sources,
        "validation": corpus.validation,
        "quality.reference": corpus.quality.reference,
    }
