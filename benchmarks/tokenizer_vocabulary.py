"""Vocabularies of 32,000 pieces: ours, SentencePiece's defaults, a published one; and the sweeps behind ours.

    python benchmarks/tokenizer_vocabulary.py main --prose en.jsonl.gz zh.jsonl.gz --markdown docs.jsonl.gz \
        --published xmodel_32000.model --unseen validation.jsonl
    python benchmarks/tokenizer_vocabulary.py sweep ...same text...
    python benchmarks/tokenizer_vocabulary.py balance ...same text...
    python benchmarks/tokenizer_vocabulary.py large ...same text... --gigabytes 1

Text: files of JSON lines (id, text), the sandbox (6,000 documents of each part) and the modules of the running Python's
standard library. Of each, whole documents are held out, those whose SHA-256 of the id (of a module: its path) begins
with a byte below 26, about 10 %. By the second byte they are halved: `tune` is what `sweep` and `balance` measure and
settings are chosen on, `claim` is what `main` is judged on. Nothing is trained on what is measured. --unseen files
(JSON lines; every string of 12 characters or more counts) are of sources that nothing was trained on, and in `main`
some vocabularies are trained without the files of --apart. The published tokenizer is a SentencePiece .model; it drops
runs of spaces, so it is charged for less than the whole text, and so are SentencePiece's defaults.

`--only WORD ...` trains the vocabularies with such a word in their name and adds them to the results. `sweep` trains on
every sixth document and changes one thing at a time. `balance` draws samples as the tokenizer stage does.
`large` trains on --gigabytes of text made by writing the training text again and again, each time with other letters
and Han characters in the place of some: new words, so more work for the trainer than natural text of that size.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import random
import re
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import sentencepiece

from xmodel.console import table
from xmodel.corpus import sandbox
from xmodel.corpus.mixture import sample_sizes
from xmodel.corpus.sources.plain import stdlib_files
from xmodel.files import write_json
from xmodel.recipe.settings import Source
from xmodel.recipe.settings import Tokenizer as Settings
from xmodel.tokenizer.codec import Tokenizer
from xmodel.tokenizer.convert import TAB, for_our_codec
from xmodel.tokenizer.train import BREAKS, HAN, JOINS, WORD_CHARACTERS, options, train

RESULT = Path(__file__).parent / "results" / "tokenizer-vocabulary.json"
HELD_OUT = 26  # of 256
Corpus = dict[str, list[str]]  # class of text -> documents
LINES = re.compile(r" *[^ \n\u3400-\u9fff]+|[\u3400-\u9fff]+| +|\n")  # newline alone
NEWLINES = re.compile(r" *[^ \n\u3400-\u9fff]+|[\u3400-\u9fff]+| +|\n+")  # newlines with newlines only

SCRIPT, PHRASE = JOINS["script"][0], JOINS["phrase"][0]
JOINED = {"split_by_unicode_script": False, "split_by_whitespace": False}
BPE, LONG = {"model_type": "bpe"}, {"max_sentencepiece_length": 32}
NUMBERS, DIGITS = {"split_digits": False}, {"split_digits": True}

# What loses nothing of a text and is otherwise SentencePiece's defaults
KEPT: dict[str, Any] = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True,
                        "add_dummy_prefix": False, "user_defined_symbols": ["\n", "\t"]}  # fmt: skip
DEFAULTS: dict[str, Any] = {"vocab_size": 32_000, "num_threads": 16, "minloglevel": 2}

# name -> (pattern of words; None: SentencePiece's defaults on lines; what SentencePiece is told otherwise, how often a
# document of a language counts)
SWEEP: dict[str, tuple[re.Pattern[str] | None, dict[str, Any], dict[str, float]]] = {
    "as chosen (script)": (SCRIPT, {}, {}),
    "shortest": (SCRIPT, BPE, {}),
    "shortest, joins: word": (JOINS["word"][0], BPE | JOINS["word"][1], {}),
    "shortest, joins: phrase": (PHRASE, BPE | JOINED, {}),
    "shortest, joins: phrase, longest piece 32": (PHRASE, BPE | JOINED | LONG, {}),
    "shortest, the same, numbers joined": (PHRASE, BPE | JOINED | LONG | NUMBERS, {}),
    "shortest, the same, Chinese counts 1.5 times": (PHRASE, BPE | JOINED | LONG | NUMBERS, {"zh": 1.5}),
    "shortest, the same, Chinese counts twice": (PHRASE, BPE | JOINED | LONG | NUMBERS, {"zh": 2}),
    "joins: word": (JOINS["word"][0], JOINS["word"][1], {}),
    "joins: phrase, longest piece 32": (PHRASE, JOINED | LONG, {}),
    "numbers joined": (SCRIPT, NUMBERS, {}),
    "newline stands alone": (LINES, {"user_defined_symbols": ["\n"]}, {}),
    "newlines join newlines only": (NEWLINES, {}, {}),
    "no pieces of spaces alone": (SCRIPT, {"allow_whitespace_only_pieces": False}, {}),
    "space ends a word": (re.compile(r"[^ \u3400-\u9fff]+ *|[\u3400-\u9fff]+ *| +"),
                          {"treat_whitespace_as_suffix": True}, {}),
    "coverage 0.9995": (SCRIPT, {"character_coverage": 0.9995}, {}),
    "coverage 0.99995": (SCRIPT, {"character_coverage": 0.99995}, {}),
    "coverage 1": (SCRIPT, {"character_coverage": 1.0}, {}),
    "longest piece 8": (SCRIPT, {"max_sentencepiece_length": 8}, {}),
    "longest piece 32": (SCRIPT, LONG, {}),
    "bpe": (SCRIPT, BPE, {}),
    "slower pruning (0.75, 2 rounds)": (SCRIPT, {"shrinking_factor": 0.75, "num_sub_iterations": 2}, {}),
    "Chinese counts twice": (SCRIPT, {}, {"zh": 2}),
    "half of the Chinese": (SCRIPT, {}, {"zh": 0.5}),
    "half of the English": (SCRIPT, {}, {"en": 0.5}),
    "half of the sample": (SCRIPT, {}, {"en": 0.5, "zh": 0.5}),
    "a quarter of the sample": (SCRIPT, {}, {"en": 0.25, "zh": 0.25}),
    "SentencePiece's defaults": (None, {}, {}),
    "defaults, digits split": (None, DIGITS, {}),
    "defaults, lossless": (None, KEPT, {}),
    "defaults, lossless, digits split": (None, KEPT | DIGITS, {}),
}  # fmt: skip

# The fewest tokens that a vocabulary of ours was brought to on every class of text
FEWEST = Settings(model_type="shortest", joins="phrase", max_piece_length=32, split_digits=False, han_weight=1.5)
# What `main` compares besides: name -> (settings, whether the files of --apart are left out)
OURS: dict[str, tuple[Settings, bool]] = {
    "ours": (Settings(), False),
    "ours, shortest": (Settings(model_type="shortest"), False),
    "ours, shortest, word": (Settings(model_type="shortest", joins="word"), False),
    "ours, shortest, phrase": (replace(FEWEST, split_digits=True), False),
    "ours, fewest": (FEWEST, False),
    "ours, shortest, files apart": (Settings(model_type="shortest"), True),
    "ours, fewest, files apart": (FEWEST, True),
}


def read(path: Path) -> Iterator[tuple[str, str]]:
    """(id, text) of a JSON-lines file; without a text, all strings of 12 characters or more."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as stream:
        for number, line in enumerate(stream):
            row = json.loads(line)
            long = "\n".join(value for value in row.values() if isinstance(value, str) and len(value) >= 12)
            yield str(row.get("id", number)), row.get("text", long)


def language(texts: Iterable[str]) -> str:
    """zh where a twentieth of the characters are Han: documentation is full of code and of English names."""
    some = "".join(text[:2000] for text in islice(texts, 50))
    return "zh" if len(HAN.findall(some)) > 0.05 * len(some) else "en"


def load(arguments: argparse.Namespace) -> tuple[Corpus, Corpus, Corpus]:
    """The text to train on, and the two halves of what is held out, by class: `en prose: en-peps`."""
    parts: tuple[Corpus, Corpus, Corpus] = {}, {}, {}

    def add(name: str, documents: Iterable[tuple[str, str]]) -> None:
        for key, text in documents:
            first, second = hashlib.sha256(key.encode()).digest()[:2]
            parts[0 if first >= HELD_OUT else 1 if second < 128 else 2].setdefault(name, []).append(text)

    for kind in ("prose", "markdown"):
        for path in getattr(arguments, kind):
            documents = list(read(path))
            add(f"{language(text for _, text in documents)} {kind}: {path.name.split('.')[0]}", documents)
    for part in ("en", "zh", "parallel"):
        add(f"{'zh' if part == 'zh' else 'en'} sandbox: {part}",
            ((f"{part}-{n}", made[1] if isinstance(made, tuple) else made.text)
             for n, made in enumerate(sandbox.documents(part, 6000, 0, 0.0))))  # fmt: skip
    add("en code: stdlib", ((path.name, path.read_text(encoding="utf-8", errors="replace")) for path in stdlib_files()))
    return parts


def repeated(trained: Corpus, times: dict[str, float]) -> Iterator[str]:
    """The documents, those of a language as often as `times` says: a half is every second one."""
    for name, documents in trained.items():
        due = 0.0
        for text in documents:
            due += times.get(name[:2], 1.0)
            while due >= 1:
                due -= 1
                yield text


def words(texts: Iterable[str], pattern: re.Pattern[str]) -> Iterator[str]:
    """Counted words in the trainer's format, as train.py makes them but by another pattern."""
    counts: Counter[str] = Counter()
    for text in texts:
        for part in BREAKS.split(text):
            counts.update(pattern.findall(part))
    for word, count in counts.items():
        plain = word.replace("\t", TAB)
        for start in range(0, len(plain), WORD_CHARACTERS):
            yield f"{plain[start : start + WORD_CHARACTERS]}\t{count}"


def trained_on(sentences: Iterable[str], told: dict[str, Any]) -> bytes:
    """A serialised SentencePiece model."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=iter(sentences), model_writer=written, **told
    )
    return written.getvalue()


def processor(model: bytes) -> Any:
    """A SentencePiece processor of a serialised model."""
    return sentencepiece.SentencePieceProcessor(model_proto=model)  # pyright: ignore[reportCallIssue]


def tokens(encode: Any, held: Corpus) -> dict[str, int]:
    """Tokens of each class of held-out text."""
    return {name: sum(map(len, encode(texts))) for name, texts in held.items()}


def ours(texts: Iterable[str], settings: Settings) -> Tokenizer:
    """A tokenizer as the stage trains it."""
    with tempfile.TemporaryDirectory() as folder:
        train(texts, settings, Path(folder), seed=0)
        return Tokenizer.load(Path(folder))


def show(rows: dict[str, dict[str, int]], against: str) -> None:
    """Tokens of each vocabulary, in per cent more than those of one of them."""
    classes = list(rows[against])
    print(table([f"tokens, % more than {against}", *classes], [
        [label, *(f"{100 * row[name] / rows[against][name] - 100:+.1f}" for name in classes)]
        for label, row in rows.items()]))  # fmt: skip


def compare_main(arguments: argparse.Namespace, trained: Corpus, tune: Corpus, claim: Corpus) -> dict[str, Any]:
    """Ours against SentencePiece's defaults and the published tokenizer, per class of text."""
    texts = list(repeated(trained, {}))
    apart = [name for name in trained if any(word in name for word in arguments.apart)]
    rest = list(repeated({name: trained[name] for name in trained if name not in apart}, {}))
    for path in arguments.unseen:
        documents = [text for _, text in read(path) if text]
        claim[f"{language(documents)} unseen: {path.parent.name}"] = documents

    def lines() -> Iterator[str]:
        return (line for text in texts for line in text.split("\n"))

    made: dict[str, Callable[[], Any]] = {
        "published": lambda: processor(arguments.published.read_bytes()).encode,
        "SentencePiece's defaults": lambda: processor(trained_on(lines(), DEFAULTS)).encode,
        "defaults, lossless": lambda: processor(trained_on(lines(), DEFAULTS | KEPT)).encode,
        "defaults, lossless, digits split": lambda: processor(trained_on(lines(), DEFAULTS | KEPT | DIGITS)).encode,
    }
    for label, (settings, without) in OURS.items():
        made[label] = lambda s=settings, w=without: ours(rest if w else texts, s).encode_batch
    old = json.loads(RESULT.read_text()).get("main", {}).get("tokens", {}) if RESULT.exists() else {}
    rows: dict[str, dict[str, int]] = {}
    for label, make in made.items():
        if arguments.only and not any(word in label for word in arguments.only):
            rows |= {label: old[label]} if label in old else {}
            continue
        started = time.process_time()
        rows[label] = tokens(make(), claim)
        print(label, round(time.process_time() - started), "s", flush=True)
    for against in ("published", "SentencePiece's defaults"):
        if against in rows:
            show(rows, against)
    return {
        "trained_bytes": sum(len(text.encode()) for text in texts),
        "left_out_of_files_apart": apart,
        "held_out": {name: {"characters": sum(map(len, d)), "documents": len(d)} for name, d in claim.items()},
        "tokens": rows,
    }


def sweep(arguments: argparse.Namespace, trained: Corpus, tune: Corpus, claim: Corpus) -> dict[str, Any]:
    """Tokens with one thing changed, by class of text."""
    small = {name: documents[::6] for name, documents in trained.items()}
    old = json.loads(RESULT.read_text()).get("sweep", {}).get("variants", {}) if RESULT.exists() else {}
    found: dict[str, Any] = {}
    for label, (pattern, told, times) in SWEEP.items():
        if arguments.only and not any(word in label for word in arguments.only):
            found |= {label: old[label]} if label in old else {}
            continue
        texts = list(repeated(small, times))
        started = time.process_time()
        if pattern is None:
            model = trained_on((line for text in texts for line in text.split("\n")), DEFAULTS | told)
        else:
            model = trained_on(words(texts, pattern), options(Settings()) | told)
            model = for_our_codec(model, shortest=label.startswith("shortest"))
        seconds = round(time.process_time() - started)
        found[label] = {"processor_seconds": seconds, "tokens": tokens(processor(model).encode, tune)}
        print(label, seconds, flush=True)
    show({label: row["tokens"] for label, row in found.items()}, next(iter(found)))
    return {"trained_bytes": sum(len(t.encode()) for d in small.values() for t in d), "variants": found}


def balance(arguments: argparse.Namespace, trained: Corpus, tune: Corpus, claim: Corpus) -> dict[str, Any]:
    """Samples as the stage draws them, of sources weighted by their bytes; by size and `balance`. Type: shortest."""
    available = {name: sum(len(text.encode()) for text in documents) for name, documents in trained.items()}
    sources = [
        Source(name=name, language="zh" if name[:2] == "zh" else "en", category=name.split(":")[0][3:],
               weight=size / sum(available.values())) for name, size in available.items()
    ]  # fmt: skip
    rows: dict[str, dict[str, int]] = {}
    sampled: dict[str, dict[str, float]] = {}
    for size, power in [*((12_000_000, power) for power in (0.5, 0.0, 0.25, 0.75, 1.0)),
                        *((size, 0.5) for size in (3_000_000, 6_000_000, 24_000_000, 48_000_000))]:  # fmt: skip
        sizes = sample_sizes(sources, available, size, power)
        texts = [
            text for name, documents in trained.items()
            for text in repeated({"": documents}, {"": sizes[name] / available[name]})
        ]  # fmt: skip
        label = f"{size / 1e6:.0f} MB, balance {power}"
        sampled[label] = {name: round(taken) for name, taken in sizes.items()}
        rows[label] = tokens(ours(texts, Settings(model_type="shortest")).encode_batch, tune)
        print(label, flush=True)
    show(rows, next(iter(rows)))
    return {"sampled_bytes": sampled, "tokens": rows}


def large(arguments: argparse.Namespace, trained: Corpus, tune: Corpus, claim: Corpus) -> dict[str, Any]:
    """Wall and processor seconds and peak memory of training on much text."""
    texts = [text for documents in trained.values() for text in documents]
    size = int(arguments.gigabytes * 1e9)

    def varied() -> Iterator[str]:
        draw = random.Random(0)
        han = [chr(code) for code in range(0x4E00, 0x9FA5)]
        while True:
            letters, other = draw.sample("abcdefghijklmnopqrstuvwxyz", 4), draw.sample(han, 4000)
            table = str.maketrans("".join(letters + other), "".join(letters[1:] + letters[:1] + other[1:] + other[:1]))
            yield from (text.translate(table) for text in texts)

    label = " ".join(arguments.only) or "ours"
    wall, processor_time = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        figures = train(varied(), replace(OURS[label][0], sample_bytes=size), Path(folder), seed=0)
    result = {
        "vocabulary": label,
        "bytes": figures["bytes"],
        "distinct_words": figures["distinct_words"],
        "wall_seconds": round(time.monotonic() - wall),
        "processor_seconds": round(time.process_time() - processor_time),
        "peak_gigabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }
    print(result)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["main", "sweep", "balance", "large"])
    parser.add_argument("--prose", nargs="*", type=Path, default=[], help="files of prose, one source each")
    parser.add_argument("--markdown", nargs="*", type=Path, default=[], help="files of technical Markdown")
    parser.add_argument("--unseen", nargs="*", type=Path, default=[], help="main: files that nothing is trained on")
    parser.add_argument("--apart", nargs="*", default=[], help="main: names of files for the vocabulary without them")
    parser.add_argument("--only", nargs="*", default=[], help="main, sweep: words in names; large: one name")
    parser.add_argument("--published", type=Path, help="main: a SentencePiece .model to compare with")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="large: how much text")
    arguments = parser.parse_args()
    if arguments.what == "main" and not arguments.published:
        parser.error("main needs --published")
    measures = {"main": compare_main, "sweep": sweep, "balance": balance, "large": large}
    result = measures[arguments.what](arguments, *load(arguments))
    old = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if arguments.what == "large":
        result = [*old.get("large", []), result]
    write_json(RESULT, old | {arguments.what: result})


if __name__ == "__main__":
    main()
