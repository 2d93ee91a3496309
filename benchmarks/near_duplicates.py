"""Near duplicates: speed of the sketches beside datatrove's and datasketch's MinHash, and what is found in the sandbox.

    python -m venv /tmp/peer && /tmp/peer/bin/pip install datatrove==0.10.1 datasketch spacy jieba
    python benchmarks/near_duplicates.py --peer /tmp/peer/bin/python --english a.jsonl.gz --chinese b.jsonl.gz

Speed is UTF-8 megabytes of text a second of processor time on one core; all take turns on the same documents in the
same run, and a ratio is the median over rounds of the ratio within the round. Ours includes folding, and makes SimHash
and MinHash in one pass; datatrove's is `MinhashDedupSignature` as it comes (112 hashes, 5-grams of words, spaCy and
jieba cut the words). Without files, text of the sandbox is used; without a peer, only our side is measured.
Quality: documents of the sandbox, near duplicates by the share of characters edited; `precision` counts clean documents
that are dropped as wrong, though the sandbox can say nearly the same twice.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from xmodel.console import table
from xmodel.corpus import sandbox
from xmodel.corpus.batches import raw_batch
from xmodel.corpus.folding import folding
from xmodel.corpus.near_duplicates import find_near_duplicates, records, sketching, write_records
from xmodel.files import write_json
from xmodel.recipe.settings import NearDuplicates

LANGUAGES = {"en": "eng", "zh": "cmn"}
SETTINGS = {
    "simhash": NearDuplicates(),
    "simhash, distance 3": NearDuplicates(distance=3),
    "minhash": NearDuplicates(mode="minhash"),
    "minhash, 32 bands, threshold 0.65": NearDuplicates(mode="minhash", bands=32, threshold=0.65),
}
# For each JSON line [texts] a JSON line [processor seconds of datatrove, of datasketch].
PEER = """
import json, sys, time
from datatrove.pipeline.dedup.minhash import MinhashDedupSignature
from datasketch import MinHash
signer = MinhashDedupSignature(output_folder=sys.argv[2], language=sys.argv[1])
def datatrove(text):
    shingles = signer.get_shingles(text)
    if shingles.size:
        signer.get_signature(shingles)
def datasketch(text):
    MinHash(num_perm=128).update_batch({text[i:i + 5].encode() for i in range(len(text) - 4)})
for line in sys.stdin:
    texts, seconds = json.loads(line), []
    for sign in (datatrove, datasketch):
        sign(texts[0])
        start = time.process_time()
        for text in texts:
            sign(text)
        seconds.append(time.process_time() - start)
    print(json.dumps(seconds), flush=True)
"""


def read_texts(path: Path | None, part: str, size: int) -> list[str]:
    """Texts of at least `size` bytes: of a JSON-lines file, or of the sandbox."""
    if path is None:
        return [document.text for document in sandbox.documents(part, size // 400, 0)]
    texts: list[str] = []
    held = 0
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as stream:
        for line in stream:
            texts.append(json.loads(line)["text"][:20_000])
            held += len(texts[-1].encode())
            if held >= size:
                break
    return texts


def seconds(function: Callable[[], Any]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def speed(texts: list[str], language: str, peer: str | None, rounds: int) -> dict[str, Any]:
    """Megabytes a second of each, and the ratios to the peers."""
    ours = NearDuplicates()
    many = raw_batch([str(number) for number in range(len(texts))], texts)
    few = texts[: max(1, len(texts) // 20)]  # the peers are slow
    megabytes, megabytes_few = (sum(len(text.encode()) for text in some) / 1e6 for some in (texts, few))
    rates: dict[str, list[float]] = {"folding": [], "folding + sketch": [], "sketch": []}
    folded = sketching(folding(many), ours)
    process = None
    if peer is not None:
        command = [peer, "-c", PEER, LANGUAGES[language], tempfile.mkdtemp()]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        rates |= {"datatrove": [], "datasketch": []}
    for _ in range(rounds):
        rates["folding"].append(megabytes / seconds(lambda: folding(many)))
        rates["sketch"].append(megabytes / seconds(lambda: sketching(folded, ours)))
        rates["folding + sketch"].append(megabytes / seconds(lambda: sketching(folding(many), ours)))
        if process is not None and process.stdin is not None and process.stdout is not None:
            process.stdin.write(json.dumps(few) + "\n")
            process.stdin.flush()
            taken = json.loads(process.stdout.readline())
            rates["datatrove"].append(megabytes_few / taken[0])
            rates["datasketch"].append(megabytes_few / taken[1])
    if process is not None and process.stdin is not None:
        process.stdin.close()
        process.wait()
    result: dict[str, Any] = {name: round(statistics.median(values), 2) for name, values in rates.items()}
    for name in ("datatrove", "datasketch"):
        if name in rates:
            ratio = [mine / theirs for mine, theirs in zip(rates["folding + sketch"], rates[name], strict=True)]
            result[f"times {name}"] = round(statistics.median(ratio), 1)
    return result | {"megabytes": round(megabytes, 1)}


def quality(settings: NearDuplicates, part: str, count: int) -> dict[str, Any]:
    """Recall by the share of characters edited, clean documents dropped, precision, seconds of the decision."""
    chosen = [d for d in sandbox.documents(part, count, 11, 0.25) if d.label == "clean" or "duplicate" in d.label]
    batch = sketching(folding(raw_batch([d.id for d in chosen], [d.text for d in chosen])), settings)
    with tempfile.TemporaryDirectory() as name:
        write_records(Path(name, "r.npy"), [records(batch, settings)], settings)
        start = time.process_time()
        (kept,) = find_near_duplicates([Path(name, "r.npy")], settings, Path(name, "index"))
        taken = time.process_time() - start
    made = Counter(document.label for document in chosen)
    dropped = Counter(document.label for document, first in zip(chosen, kept, strict=True) if first >= 0)
    result: dict[str, Any] = {label: round(dropped[label] / made[label], 4) for label in sorted(made)}
    true = sum(dropped.values()) - dropped["clean"]
    return result | {"precision": round(true / (true + dropped["clean"]), 4), "seconds": round(taken, 2)}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="python of a virtual environment that has datatrove and datasketch")
    parser.add_argument("--english", type=Path, help="JSON lines with a field text")
    parser.add_argument("--chinese", type=Path)
    parser.add_argument("--megabytes", type=float, default=8, help="of text for the speed, per language")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--documents", type=int, default=10_000, help="of each part of the sandbox, for the quality")
    options = parser.parse_args()

    results: dict[str, Any] = {"speed, MB/s of processor time": {}, "quality": {}}
    for language, path in (("en", options.english), ("zh", options.chinese)):
        texts = read_texts(path, language, int(options.megabytes * 1e6))
        results["speed, MB/s of processor time"][language] = speed(texts, language, options.peer, options.rounds)
    rows = results["speed, MB/s of processor time"]
    print(table(("", *rows["en"]), [[language, *map(str, row.values())] for language, row in rows.items()]))

    labels = ("exact_duplicate", *(f"near_duplicate_{share}" for share in ("01", "02", "05", "10", "20")), "clean")
    for name, settings in SETTINGS.items():
        quality(settings, "en", 200)  # compiles
        results["quality"][name] = {part: quality(settings, part, options.documents) for part in sandbox.PARTS}
    shown = [
        [name, part, *(f"{row[label]:.3f}" for label in labels), f"{row['precision']:.3f}", f"{row['seconds']:.1f}"]
        for name, parts in results["quality"].items()
        for part, row in parts.items()
    ]
    print(table(("mode", "part", "exact", "1 %", "2 %", "5 %", "10 %", "20 %", "clean", "precision", "s"), shown))
    results["documents of each part"] = options.documents
    results["numpy"] = np.__version__
    write_json(Path(__file__).parent / "results" / "near-duplicates.json", results)


if __name__ == "__main__":
    main()
