"""Vocabularies of 32,000 pieces, ours, SentencePiece's defaults, a published one; and the sweep behind ours.

    python benchmarks/tokenizer_vocabulary.py main --prose en.jsonl.gz zh.jsonl.gz --markdown docs.jsonl.gz \
        --published xmodel_32000.model --unseen validation.jsonl
    python benchmarks/tokenizer_vocabulary.py sweep ...same text...
    python benchmarks/tokenizer_vocabulary.py large ...same text... --gigabytes 1

Text: files of JSON lines (id, text), the sandbox (6,000 documents of each part) and the modules of the running Python's
standard library. Of each, whole documents are held out, those whose SHA-256 of the id (of a module: its path) begins
with a byte below 26, about 10 %. Nothing is trained on what is measured. --unseen files (JSON lines; every string of 12
characters or more counts) are of sources that nothing was trained on, and in `main` one vocabulary is trained without
the files of --apart at all. The published tokenizer is a SentencePiece .model; it drops runs of spaces, so it is
charged for less than the whole text.

`defaults` looks closer at SentencePiece's defaults, which lose white space. `sweep` and `defaults` train on every sixth
document; `sweep` changes one thing at a time. `large` trains on --gigabytes of text made by writing the training text
again and again, each time with other letters and Han characters in the place of some: new words, so more work for the
trainer than natural text of that size.
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
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import sentencepiece

from xmodel.console import table
from xmodel.corpus import sandbox
from xmodel.corpus.sources.plain import stdlib_files
from xmodel.files import write_json
from xmodel.recipe.settings import Tokenizer as Settings
from xmodel.tokenizer.codec import Tokenizer
from xmodel.tokenizer.convert import TAB
from xmodel.tokenizer.train import BREAKS, HAN, WORD, WORD_CHARACTERS, options, train

RESULTS = Path(__file__).parent / "results"
HELD_OUT = 26  # of 256
Corpus = dict[str, list[str]]  # class of text -> documents
LINES = re.compile(r" *[^ \n\u3400-\u9fff]+|[\u3400-\u9fff]+| +|\n")  # newline alone
NEWLINES = re.compile(r" *[^ \n\u3400-\u9fff]+|[\u3400-\u9fff]+| +|\n+")  # newlines with newlines only
ANYTHING = re.compile(r" *[^ ]+| +")  # words end at a space only

# name -> (pattern of words, what SentencePiece is told otherwise, weights of languages)
SWEEP: dict[str, tuple[re.Pattern[str], dict[str, Any], dict[str, float]]] = {
    "as chosen": (WORD, {}, {}),
    "newline stands alone": (LINES, {"user_defined_symbols": ["\n"]}, {}),
    "newlines join newlines only": (NEWLINES, {}, {}),
    "no pieces of spaces alone": (WORD, {"allow_whitespace_only_pieces": False}, {}),
    "space ends a word": (re.compile(r"[^ \u3400-\u9fff]+ *|[\u3400-\u9fff]+ *| +"),
                          {"treat_whitespace_as_suffix": True}, {}),
    "scripts and signs join": (ANYTHING, {"split_by_unicode_script": False}, {}),
    "coverage 0.9995": (WORD, {"character_coverage": 0.9995}, {}),
    "coverage 0.99995": (WORD, {"character_coverage": 0.99995}, {}),
    "coverage 1": (WORD, {"character_coverage": 1.0}, {}),
    "longest piece 8": (WORD, {"max_sentencepiece_length": 8}, {}),
    "longest piece 32": (WORD, {"max_sentencepiece_length": 32}, {}),
    "bpe": (WORD, {"model_type": "bpe"}, {}),
    "slower pruning (0.75, 2 rounds)": (WORD, {"shrinking_factor": 0.75, "num_sub_iterations": 2}, {}),
    "half of the Chinese": (WORD, {}, {"zh": 0.5}),
    "half of the English": (WORD, {}, {"en": 0.5}),
    "half of the sample": (WORD, {}, {"en": 0.5, "zh": 0.5}),
    "a quarter of the sample": (WORD, {}, {"en": 0.25, "zh": 0.25}),
}  # fmt: skip


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


def load(arguments: argparse.Namespace) -> tuple[Corpus, Corpus]:
    """The text to train on and the text that is held out, by class: `en prose: en-peps`."""
    trained: Corpus = {}
    held: Corpus = {}

    def add(name: str, documents: Iterable[tuple[str, str]]) -> None:
        for key, text in documents:
            out = hashlib.sha256(key.encode()).digest()[0] < HELD_OUT
            (held if out else trained).setdefault(name, []).append(text)

    for kind in ("prose", "markdown"):
        for path in getattr(arguments, kind):
            documents = list(read(path))
            add(f"{language(text for _, text in documents)} {kind}: {path.name.split('.')[0]}", documents)
    for part in ("en", "zh", "parallel"):
        add(f"{'zh' if part == 'zh' else 'en'} sandbox: {part}",
            ((f"{part}-{n}", made[1] if isinstance(made, tuple) else made.text)
             for n, made in enumerate(sandbox.documents(part, 6000, 0, 0.0))))  # fmt: skip
    add("en code: stdlib", ((path.name, path.read_text(encoding="utf-8", errors="replace")) for path in stdlib_files()))
    return trained, held


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


def trained_on(sentences: Iterable[str], told: dict[str, Any]) -> Any:
    """A SentencePiece processor."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=iter(sentences), model_writer=written, **told
    )
    return processor(written.getvalue())


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


def compare_main(arguments: argparse.Namespace, trained: Corpus, held: Corpus) -> dict[str, Any]:
    """Ours against SentencePiece's defaults and the published tokenizer, per class of text."""
    texts = [text for documents in trained.values() for text in documents]
    settings = Settings(sample_bytes=10**10)
    apart = [name for name in trained if any(word in name for word in arguments.apart)]
    for path in arguments.unseen:
        documents = [text for _, text in read(path) if text]
        held[f"{language(documents)} unseen: {path.parent.name}"] = documents
    rows: dict[str, dict[str, int]] = {}
    rows["published"] = tokens(processor(arguments.published.read_bytes()).encode, held)
    rows["ours"] = tokens(ours(texts, settings).encode_batch, held)
    lines = (line for text in texts for line in text.split("\n"))
    default = {"vocab_size": settings.vocab_size, "num_threads": 16, "minloglevel": 2}
    rows["sentencepiece defaults"] = tokens(trained_on(lines, default).encode, held)
    if apart:
        rest = [text for name, documents in trained.items() if name not in apart for text in documents]
        rows["ours, files apart"] = tokens(ours(rest, settings).encode_batch, held)
    sizes = {name: (sum(map(len, documents)), len(documents)) for name, documents in held.items()}
    print(table(["held-out text", "documents", "characters", *rows, "less than published", "than defaults", "apart"], [
        [name, f"{count:,}", f"{characters:,}", *(f"{row[name]:,}" for row in rows.values()),
         *(f"{100 * (1 - rows[ours][name] / rows[other][name]):.1f} %" if ours in rows else ""
           for ours, other in (("ours", "published"), ("ours", "sentencepiece defaults"),
                               ("ours, files apart", "published")))]
        for name, (characters, count) in sizes.items()]))  # fmt: skip
    return {
        "trained_bytes": sum(len(text.encode()) for text in texts),
        "left_out_of_files_apart": apart,
        "held_out": {name: {"characters": size, "documents": count} for name, (size, count) in sizes.items()},
        "tokens": rows,
    }


def sweep(arguments: argparse.Namespace, trained: Corpus, held: Corpus) -> dict[str, Any]:
    """Tokens with one thing changed, in per cent of what was chosen, by language and kind of text."""
    small = {name: documents[::6] for name, documents in trained.items()}
    found: dict[str, Any] = {}
    for label, (pattern, told, weights) in SWEEP.items():
        texts = [
            text
            for name, documents in small.items()
            for number, text in enumerate(documents)
            if number * (share := weights.get(name[:2], 1.0)) % 1 < share
        ]
        started = time.process_time()
        made = trained_on(words(texts, pattern), options(Settings()) | told)
        seconds = time.process_time() - started
        found[label] = {"processor_seconds": round(seconds), "tokens": tokens(made.encode, held)}
        print(label, round(seconds), flush=True)
        chosen = found["as chosen"]["tokens"]
        found[label]["per_cent_more"] = {
            name: round(100 * count / chosen[name] - 100, 2) for name, count in found[label]["tokens"].items()
        }
    rows = [[label, *(f"{more:+.1f}" for more in row["per_cent_more"].values())] for label, row in found.items()]
    print(table(["tokens, % more than as chosen", *held], rows))
    return {"trained_bytes": sum(len(t.encode()) for texts in small.values() for t in texts), "variants": found}


def defaults(arguments: argparse.Namespace, trained: Corpus, held: Corpus) -> dict[str, Any]:
    """Ours and SentencePiece's defaults on every sixth document: on the text, and on what the defaults keep of it.

    The defaults fold every run of white space into one space and apply NFKC; digits may join. "folded" is the held-out
    text with every run of white space as one space, so that both sides have the same to encode. "lossless" are the
    defaults with no more changed than it takes to lose nothing, and digits split as ours are.
    """
    texts = [text for documents in trained.values() for text in documents[::6]]
    lines = [line for text in texts for line in text.split("\n")]
    told = {"vocab_size": 32_000, "num_threads": 16, "minloglevel": 2}
    kept = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True,
            "add_dummy_prefix": False, "split_digits": True, "user_defined_symbols": ["\n", "\t"]}  # fmt: skip
    made = {
        "ours": trained_on(words(texts, WORD), options(Settings())),
        "defaults": trained_on(lines, told),
        "defaults, lossless": trained_on(lines, told | kept),
    }
    folded = {name: [" ".join(text.split()) for text in documents] for name, documents in held.items()}
    rows = {label: tokens(model.encode, held) for label, model in made.items()}
    rows |= {f"{label}, folded": tokens(model.encode, folded) for label, model in made.items()}
    print(table(["held-out text", *rows], [[name, *(f"{row[name]:,}" for row in rows.values())] for name in held]))
    return {"trained_bytes": sum(len(text.encode()) for text in texts), "tokens": rows}


def large(arguments: argparse.Namespace, trained: Corpus, held: Corpus) -> dict[str, Any]:
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

    wall, processor_time = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        figures = train(varied(), Settings(sample_bytes=size), Path(folder), seed=0)
    result = {
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
    parser.add_argument("what", choices=["main", "sweep", "defaults", "large"])
    parser.add_argument("--prose", nargs="*", type=Path, default=[], help="files of prose, one source each")
    parser.add_argument("--markdown", nargs="*", type=Path, default=[], help="files of technical Markdown")
    parser.add_argument("--unseen", nargs="*", type=Path, default=[], help="main: files that nothing is trained on")
    parser.add_argument("--apart", nargs="*", default=[], help="main: names of files for the vocabulary without them")
    parser.add_argument("--published", type=Path, help="main: a SentencePiece .model to compare with")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="large: how much text")
    arguments = parser.parse_args()
    if arguments.what == "main" and not arguments.published:
        parser.error("main needs --published")
    trained, held = load(arguments)
    measures = {"main": compare_main, "sweep": sweep, "defaults": defaults, "large": large}
    result = measures[arguments.what](arguments, trained, held)
    path = RESULTS / "tokenizer-vocabulary.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    if arguments.what == "large":
        result = [*old.get("large", []), result]
    write_json(path, old | {arguments.what: result})


if __name__ == "__main__":
    main()
