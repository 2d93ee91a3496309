"""Filters: this software's rules against datatrove's Gopher quality and repetition filters, on the same text.

Both sides compute everything on every document, on one core, and take turns in rounds; the time is processor time, and
a ratio is the median over the rounds of the ratio within the round. Our side is all the rules of docs/corpus-filters.md
(folding and phrase search included), datatrove's side the two Gopher filters with limits that nothing fails, so that
neither stops early on a document. datatrove lives in an environment of its own:

    python -m venv /tmp/datatrove
    /tmp/datatrove/bin/pip install datatrove==0.10.1 nltk spacy jieba
    python benchmarks/corpus_filters.py --datatrove /tmp/datatrove/bin/python --en DOCS.jsonl.gz --zh DOCS.jsonl.gz
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from xmodel.console import table
from xmodel.corpus.batches import batched
from xmodel.corpus.filters import filtering
from xmodel.corpus.folding import folding
from xmodel.corpus.lines import cleaning, collect
from xmodel.corpus.sources import read
from xmodel.recipe.settings import Filters, Source

RESULT = Path(__file__).parent / "results" / "corpus-filters.json"

# "zh" would be split at white space only; this code gets the segmenter (jieba) that the filters need for Chinese.
DATATROVE_CODES = {"en": "eng_Latn", "zh": "cmn_Hani"}

# Reads a JSON list of texts and the language from standard input; for each line that follows, runs both filters over
# the texts and prints the processor time.
PEER = """
import json, sys, time
from datatrove.data import Document
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
language, texts = json.loads(sys.stdin.readline())
documents = [Document(text=text, id=str(number)) for number, text in enumerate(texts)]
never = 10**9
quality = GopherQualityFilter(
    min_doc_words=0, max_doc_words=never, min_avg_word_length=0, max_avg_word_length=never, max_symbol_word_ratio=never,
    max_bullet_lines_ratio=never, max_ellipsis_lines_ratio=never, max_non_alpha_words_ratio=1e-9, min_stop_words=1,
    language=language,
)
repetition = GopherRepetitionFilter(
    dup_line_frac=never, dup_para_frac=never, dup_line_char_frac=never, dup_para_char_frac=never,
    top_n_grams=[(n, never) for n in (2, 3, 4)], dup_n_grams=[(n, never) for n in range(5, 11)], language=language,
)
for _ in range(2):  # loads the tokenizer
    quality.filter(documents[0]), repetition.filter(documents[0])
print("ready", flush=True)
for line in sys.stdin:
    seconds = []
    for step in (quality, repetition):
        start = time.process_time()
        for document in documents:
            step.filter(document)
        seconds.append(time.process_time() - start)
    print(json.dumps(seconds), flush=True)
"""


def texts_of(paths: list[str], size: float) -> list[str]:
    """Documents of JSON-lines files, spread evenly, up to about `size` MB."""
    source = Source(name="benchmark", paths=[str(Path(path).resolve()) for path in paths])
    everything = [text for batch in read(source, "", seed=0) for text in batch["text"].to_pylist()]
    whole = sum(len(text.encode()) for text in everything) / 1e6
    return everything[:: max(1, round(whole / size))]


def measure(language: str, texts: list[str], peer: str, rounds: int) -> dict[str, float]:
    """Processor time of both sides on the same texts, in MB/s, and the ratio."""
    size = sum(len(text.encode()) for text in texts) / 1e6
    batches = list(batched((str(number), text, None) for number, text in enumerate(texts)))
    settings = Filters()
    counts = collect(batches)

    def judge() -> None:
        for batch in batches:
            filtering(folding(batch), settings, stated="auto")

    def clean() -> None:
        for batch in batches:
            cleaning(folding(batch), settings.lines, counts)

    def seconds(run: Callable[[], None]) -> float:
        start = time.process_time()
        run()
        return time.process_time() - start

    judge()  # compiles, or loads what was compiled
    clean()
    command = [peer, "-c", PEER]
    rows: list[tuple[float, float, float, float]] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps([DATATROVE_CODES[language], texts]), file=process.stdin, flush=True)
        assert process.stdout.readline().strip() == "ready", "datatrove did not start"
        for _ in range(rounds):
            print(file=process.stdin, flush=True)
            quality, repetition = json.loads(process.stdout.readline())
            rows.append((seconds(judge), seconds(clean), quality, repetition))
        process.stdin.close()
    ours, cleaned, quality, repetition = (statistics.median(column) for column in zip(*rows, strict=True))
    return {
        "megabytes": round(size, 2),
        "documents": len(texts),
        "rules_mb_s": round(size / ours, 1),
        "cleaning_mb_s": round(size / cleaned, 1),
        "datatrove_quality_mb_s": round(size / quality, 3),
        "datatrove_repetition_mb_s": round(size / repetition, 3),
        "datatrove_mb_s": round(size / (quality + repetition), 3),
        "ratio": round(statistics.median((row[2] + row[3]) / row[0] for row in rows), 1),
        "ratio_with_cleaning": round(statistics.median((row[2] + row[3]) / (row[0] + row[1]) for row in rows), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datatrove", required=True, help="the Python of an environment with datatrove")
    parser.add_argument("--en", nargs="+", required=True, help="JSON-lines files of English text")
    parser.add_argument("--zh", nargs="+", required=True, help="JSON-lines files of Chinese text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=float, default=3.0, help="of text for each language")
    options = parser.parse_args()
    results = {
        language: measure(language, texts_of(paths, options.megabytes), options.datatrove, options.rounds)
        for language, paths in (("en", options.en), ("zh", options.zh))
    }
    names = ["megabytes", "rules_mb_s", "cleaning_mb_s", "datatrove_mb_s", "ratio", "ratio_with_cleaning"]
    print(table(["language", *names], [[key, *(str(row[name]) for name in names)] for key, row in results.items()]))
    RESULT.write_text(json.dumps({"datatrove": "0.10.1", "rounds": options.rounds, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
