"""Training a SentencePiece vocabulary that loses nothing of a text: unigram (Kudo 2018, arXiv 1804.10959) or BPE.

White space is kept: runs of spaces are pieces; newline and tab are pieces and may join with punctuation around them
(`.\\n\\n`, `):\\n`), as in the pre-tokenisers of GPT-4 and Llama 3. How far a piece may reach is `tokenizer.joins`:
letters, Han and signs stay apart, or a piece ends at the next space, or at the end of the line (as in SuperBPE,
arXiv 2503.13423, but in one stage). There is no normalisation and no dummy prefix. Characters outside the coverage are
spelt in UTF-8 bytes. benchmarks/tokenizer_vocabulary.py measured what is chosen here.
"""

from __future__ import annotations

import io
import random
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xmodel.errors import UserError
from xmodel.files import write_json
from xmodel.recipe.settings import Tokenizer as Settings
from xmodel.tokenizer.convert import SPACE, TAB, for_our_codec, read_pieces, write_hugging_face
from xmodel.tokenizer.others import Opened, mark_encoder, open_tokenizer

# Ids 0-2 are what the model expects; 3-15 are kept for what comes after pretraining, so that a tuned model needs no
# larger embedding: padding, the turns of a conversation (ChatML's names, which the engines' chat templates use), calls
# of tools and their answers (Hermes's and Qwen's names), and six without a meaning yet. All are control pieces: no text
# ever becomes one. Thirteen rows of an embedding are 0.04 % of 32,000.
UNK, BOS, EOS, PAD = "<unk>", "<s>", "</s>", "<|pad|>"
RESERVED = (
    *("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    *(f"<|reserved_{number}|>" for number in range(6)),
)

WORD_CHARACTERS = 1000  # longer words are cut; SentencePiece would skip them (its limit counts bytes)
# By `tokenizer.joins`: what SentencePiece looks for pieces in, and what it is told. No piece reaches from one word into
# the next. Spaces begin a word, and Chinese is parted from everything else, as SentencePiece itself parts scripts. So
# counted words give the same vocabulary as lines, in a fraction of the memory, and a line may have any length.
# For `phrase` a line is a word; SentencePiece sees to it that a piece ends in a space only if it is spaces throughout.
JOINS: dict[str, tuple[re.Pattern[str], dict[str, Any]]] = {
    "script": (re.compile(r" *[^ \u3400-\u9fff]+|[\u3400-\u9fff]+| +"), {}),
    "word": (re.compile(r" *[^ \n]+\n*|\n+| +"), {"split_by_unicode_script": False}),
    "phrase": (re.compile(r"[^\n]+\n*|\n+"), {"split_by_unicode_script": False, "split_by_whitespace": False}),
}
# Characters of different words that are kept, in memory's stead: 64 million take 3 GB, most of it in SentencePiece's
# suffix array. Of more, a sample is kept in which every word counts as often as it would in the whole (`_Feed`).
WORDS_CHARACTERS = 64_000_000
# Never within a piece: NUL and U+2585 are SentencePiece's own marks (a word that holds one would be skipped), U+2581 is
# its stand-in for the space, U+2409 ours for the tab, by which its input format parts word and count.
BREAKS = re.compile(f"[\0{SPACE}\u2585{TAB}]")
# Always pieces: what control tokens and byte pieces are spelt with (so a text that spells one never becomes it), and
# white space.
REQUIRED = SPACE + TAB + "\n" + "".join(map(chr, range(33, 127)))
PLAIN = {SPACE: " ", TAB: "\t"}
SEEDS_PER_PIECE = 10  # candidates that pruning starts from; SentencePiece's own million costs time and gains nothing
THREADS = 16  # a constant: partial sums of the expectation step, and so the scores, depend on the number of threads
SAMPLE_TEXTS = 1000  # drawn from all that is read, to measure the result on
SAMPLE_CHARACTERS = 4000  # of each
HAN = re.compile("[\u3400-\u9fff]")
ZH_SHARE = 0.2  # a sample text with more Han characters than this counts as Chinese


def train(texts: Iterable[str], settings: Settings, folder: Path, seed: int, add_bos: bool = True) -> dict[str, Any]:
    """Train on `texts`, in their order, until `settings.sample_bytes`; write the tokenizer's files into `folder`.

    Deterministic: the same texts, settings and seed give the same bytes, whatever the number of cores. Memory is
    bounded by the sample: texts are read once, and only their distinct words are kept.

    Args:
        texts: documents; drawn from the mixture by the caller.
        settings: model type, vocabulary size, coverage, longest piece, sample size.
        folder: where tokenizer.model, tokenizer.json, tokenizer_config.json and tokenizer-stats.json go.
        seed: of the sample that is measured, and of SentencePiece's generator.
        add_bos: whether tokenizer.json puts `<s>` before a text by default.

    Returns:
        The figures of tokenizer-stats.json: what was read, and how far a sample of it is compressed.

    Raises:
        UserError: no text, a lone surrogate in it, or a vocabulary that is too large or too small for it.
    """
    started = time.monotonic()
    feed = _Feed(texts, settings, seed)
    model = _train(feed, settings, seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    write_hugging_face(model, folder, add_bos)
    if settings.model_type == "bpe":
        mark_encoder(folder, "tokenizer.json", 1, 2)

    trained = time.monotonic()
    tokenizer = open_tokenizer(folder)
    figures = {
        "model_type": settings.model_type,
        "vocab_size": tokenizer.vocab_size,
        "documents": feed.documents,
        "bytes": feed.bytes,
        "distinct_words": len(feed.words),
        "longest_piece": max(len(piece.decode(errors="replace")) for piece in tokenizer.pieces),
        **measure(tokenizer, feed.sample),
    }
    write_json(folder / "tokenizer-stats.json", figures)
    return figures | {"seconds": round(trained - started, 1)}


def _train(feed: _Feed, settings: Settings, seed: int) -> bytes:
    """The serialised model, with a piece for every character of `REQUIRED`.

    SentencePiece's own required_chars promises nothing for a character that the text does not hold, or too seldom for
    the coverage. So such characters are left room for, and added afterwards.
    """
    feed.read()
    if not any(map(str.strip, feed.words)):
        raise UserError(
            "tokenizer: no text to train on; every document is empty or was dropped (see corpus/funnel.json)"
        )
    seen = set().union(*feed.words)
    missing = "".join(character for character in REQUIRED if PLAIN.get(character, character) not in seen)
    while True:
        model = _train_without(missing, feed, settings, seed)
        pieces = {piece.text for piece in read_pieces(model)}
        uncovered = "".join(character for character in REQUIRED if character not in pieces)
        if uncovered == missing:
            return for_our_codec(model, missing, shortest=settings.model_type == "shortest")
        missing = uncovered  # the coverage leaves out one that the text holds: train again, with room for it


def _train_without(missing: str, feed: _Feed, settings: Settings, seed: int) -> bytes:
    """SentencePiece's own serialised model, with room left for the pieces of `missing`."""
    import sentencepiece

    written = io.BytesIO()
    told: dict[str, Any] = options(settings) | {"vocab_size": settings.vocab_size - len(missing)}
    sentencepiece.set_random_generator_seed(seed)
    try:
        sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
            sentence_iterator=iter(feed), model_writer=written, **told
        )
    except RuntimeError as error:
        raise _explained(error, feed, settings, len(missing)) from error
    return written.getvalue()


def options(settings: Settings) -> dict[str, Any]:
    """What SentencePiece is told, besides the words and where to write."""
    return {
        "input_format": "tsv",
        "model_type": "unigram" if settings.model_type == "unigram" else "bpe",
        "vocab_size": settings.vocab_size,
        "character_coverage": settings.character_coverage,
        "max_sentencepiece_length": settings.max_piece_length,
        "unk_piece": UNK,
        "bos_piece": BOS,
        "eos_piece": EOS,
        "pad_id": 3,
        "pad_piece": PAD,
        "control_symbols": list(RESERVED),
        "byte_fallback": True,
        "split_digits": settings.split_digits,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "allow_whitespace_only_pieces": True,
        "max_sentence_length": 4 * WORD_CHARACTERS,
        "seed_sentencepiece_size": SEEDS_PER_PIECE * settings.vocab_size,
        "shrinking_factor": 0.6,
        "num_sub_iterations": 1,
        "num_threads": THREADS,
        "minloglevel": 2,
        **JOINS[settings.joins][1],
    }


def measure(tokenizer: Opened, texts: list[str]) -> dict[str, Any]:
    """How short the tokenizer makes `texts`, in all and by language."""
    chinese = [_han_share(text) > ZH_SHARE for text in texts]
    figures: dict[str, Any] = _compression(tokenizer, texts) if texts else {}
    for language in ("en", "zh"):
        if chosen := [text for text, zh in zip(texts, chinese, strict=True) if zh == (language == "zh")]:
            figures[language] = _compression(tokenizer, chosen)
    return figures


def _compression(tokenizer: Opened, texts: list[str]) -> dict[str, float]:
    """How short the tokenizer makes `texts`, and the share of tokens that are bytes of characters without a piece."""
    ids = np.concatenate(tokenizer.encode_batch(texts))
    return {
        "tokens_per_character": round(len(ids) / sum(map(len, texts)), 4),
        "bytes_per_token": round(sum(len(text.encode()) for text in texts) / len(ids), 4),
        "byte_piece_share": round(float(np.isin(ids, tokenizer.byte_ids).mean()), 6),
    }


def _han_share(text: str) -> float:
    return len(HAN.findall(text)) / len(text)


class _Feed:
    """Counted words for the trainer, what went in, and a sample of it.

    Where the words are too many, threshold sampling bounds them (Duffield, Lund and Thorup 2007): one that was counted
    w < z times stays with probability w / z, and then counts as z. That is w on average, so the vocabulary is that of
    the whole text but for the noise in its rare words, and those which come z times or more are never lost.
    """

    def __init__(self, texts: Iterable[str], settings: Settings, seed: int) -> None:
        self.texts, self.most_bytes = texts, settings.sample_bytes
        self.pattern, self.han_weight = JOINS[settings.joins][0], settings.han_weight
        self.documents = self.bytes = 0
        self.words: Counter[str] = Counter()
        self.threshold = 1  # z
        self.sample: list[str] = []  # beginnings of texts, drawn evenly
        self._random = random.Random(seed)
        self._characters = 0  # of the words

    def read(self) -> None:
        """Count the words of the texts, up to `most_bytes`."""
        for text in self.texts:
            if self.bytes >= self.most_bytes:
                return
            self.documents += 1
            try:
                self.bytes += len(text.encode())
            except UnicodeEncodeError as error:
                raise UserError(
                    f"tokenizer: document {self.documents:,} holds the lone surrogate U+{ord(text[error.start]):04X}, "
                    "which UTF-8 cannot represent"
                ) from None
            if text:
                self._draw(text[:SAMPLE_CHARACTERS])
            for part in BREAKS.split(text):
                self._count(self.pattern.findall(part))

    def _count(self, words: list[str]) -> None:
        counts, sampled = self.words, self.threshold > 1
        for word, more in Counter(words).items():
            if word in counts:
                counts[word] += more
            elif not sampled or self._random.random() * self.threshold < more:
                counts[word] = max(more, self.threshold)
                self._characters += len(word)
        while self._characters > WORDS_CHARACTERS:
            self._raise_threshold()

    def _raise_threshold(self) -> None:
        self.threshold *= 2
        chance, z = self._random.random, self.threshold
        self.words = Counter(
            {word: max(count, z) for word, count in self.words.items() if count >= z or chance() * z < count}
        )
        self._characters = sum(map(len, self.words))

    def __iter__(self) -> Iterator[str]:
        unit = 1 if self.han_weight == 1 else 10  # counts are whole numbers, the weight is not
        han = round(unit * self.han_weight)
        for word, count in self.words.items():
            plain, times = word.replace("\t", TAB), count * (han if han != unit and HAN.search(word) else unit)
            for start in range(0, len(plain), WORD_CHARACTERS):
                yield f"{plain[start : start + WORD_CHARACTERS]}\t{times}"

    def _draw(self, text: str) -> None:
        """Reservoir sampling (Vitter 1985, algorithm R)."""
        if len(self.sample) < SAMPLE_TEXTS:
            self.sample.append(text)
        elif (place := self._random.randrange(self.documents)) < SAMPLE_TEXTS:
            self.sample[place] = text


def _explained(error: RuntimeError, feed: _Feed, settings: Settings, more: int) -> Exception:
    """SentencePiece's complaint in the user's words; its messages carry the numbers, to which `more` pieces come."""
    message = str(error)
    read = f"the {feed.bytes:,} bytes of text in {feed.documents:,} documents"
    if found := re.search(r"too high.*<= (\d+)", message):
        return UserError(
            f"tokenizer.vocab_size: {settings.vocab_size:,} is more than {read} can give; "
            f"the largest possible is {int(found[1]) + more:,}"
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return UserError(
            f"tokenizer.vocab_size: {settings.vocab_size:,} is too small for the characters in {read}; "
            f"at least {int(found[1]) + more:,}, or a tokenizer.character_coverage below {settings.character_coverage}"
        )
    return error
