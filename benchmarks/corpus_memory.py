"""Memory of the corpus stage on much text, and its outcome after kills.

    python benchmarks/corpus_memory.py --gigabytes 4 --text pages-en.jsonl.gz pages-zh.jsonl.gz

Writes that much JSON lines (documents put together from paragraphs of the given texts, else of the sandbox, drawn at
random), takes them through the corpus stage with two workers, and notes the largest resident memory of each process
while it runs: in all, and without the pages of mapped files, which the system may drop. With --kills N the stage is
then run again, killed N times at random moments (the whole session, or one worker by itself), and must end in the same
bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from corpus_stage import documents, mixed

from xmodel.console import log, table
from xmodel.files import write_json

FILE_BYTES = 100_000_000


def write_text(folder: Path, texts: list[str], size: float) -> float:
    """JSON lines of about `size` bytes of text; returns megabytes."""
    folder.mkdir(parents=True)
    written = copy = 0
    stream, held = None, 0
    while written < size:
        for number, text in enumerate(mixed(texts, copy)):
            if stream is None or held > FILE_BYTES:
                if stream is not None:
                    stream.close()
                stream, held = open(folder / f"{written:012d}.jsonl", "w", encoding="utf-8"), 0  # noqa: SIM115
            stream.write(json.dumps({"id": f"{copy}-{number}", "text": text}, ensure_ascii=False) + "\n")
            written += len(text.encode())
            held += len(text.encode())
        copy += 1
    if stream is not None:
        stream.close()
    return written / 1e6


def carry_out(recipe: Path, run: Path, kill_after: float | None = None) -> dict[str, Any] | None:
    """Run the stage; what its processes took at most, or None if it was killed after so many seconds."""
    command = [sys.executable, "-m", "xmodel", "corpus", str(recipe), "corpus.workers=2", "--dir", str(run)]
    started = time.perf_counter()
    most: dict[str, float] = {"resident": 0, "own": 0, "driver": 0}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        driver = psutil.Process(process.pid)
        while process.poll() is None:
            time.sleep(0.05)
            try:
                workers = driver.children(recursive=True)
                for one in (driver, *workers):
                    figures = one.memory_info()
                    own = (figures.rss - figures.shared) / 1e6
                    most["resident"] = max(most["resident"], figures.rss / 1e6)
                    most["own"] = max(most["own"], own)
                    if one is driver:
                        most["driver"] = max(most["driver"], own)
            except psutil.Error:
                continue
            if kill_after is not None and time.perf_counter() - started > kill_after:
                if workers and random.random() < 0.5:
                    random.choice(workers).kill()
                    kill_after = None  # the driver goes on by itself
                else:
                    for one in (*workers, driver):
                        one.send_signal(signal.SIGKILL)
                    process.wait()
                    return None
        if process.returncode:
            raise SystemExit(f"the corpus stage failed with exit code {process.returncode}")
    return {name: round(value) for name, value in most.items()} | {"seconds": round(time.perf_counter() - started)}


def fingerprint(folder: Path) -> str:
    """One hash of all files of the finished corpus."""
    whole = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with open(path, "rb") as stream:
                whole.update(str(path.relative_to(folder)).encode())
                whole.update(hashlib.file_digest(stream, "blake2b").digest())
    return whole.hexdigest()


def main() -> None:
    """Measure, print the table, write results/corpus-memory.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4)
    parser.add_argument("--text", nargs="*", default=[], metavar="FILE", help="JSON lines, also .gz (default: sandbox)")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--folder", help="where to work (default: a temporary folder)")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="corpus-memory-", dir=arguments.folder))
    texts = [text for path in arguments.text for text in documents("", path)]
    if not texts:
        made = documents("en", None)
        texts = [next(made) for _ in range(20_000)]
    megabytes = write_text(work / "text", texts, arguments.gigabytes * 1e9)
    source = {"name": "text", "paths": [str(work / "text")], "weight": 1.0}
    recipe = work / "recipe.yaml"
    recipe.write_text(json.dumps({"name": "big", "corpus": {"sources": [source]}, "model": {"preset": "nano"}}))
    log(f"{megabytes:.0f} MB of text written")
    whole = carry_out(recipe, work / "whole")
    assert whole is not None
    result: dict[str, Any] = {"megabytes": round(megabytes), "workers": 2, "memory_mb": whole}
    funnel = json.loads((work / "whole" / "corpus" / "funnel.json").read_text())
    result["documents"] = {name: funnel["total"][name]["documents"] for name in ("read", "kept")}
    rows = [[f"{megabytes:.0f}", *(str(whole[name]) for name in ("seconds", "driver", "own", "resident"))]]
    print(table(["MB", "seconds", "driver MB", "largest MB of its own", "largest MB resident"], rows))
    if arguments.kills:
        wanted, killed = fingerprint(work / "whole" / "corpus"), 0
        shutil.rmtree(work / "whole")
        for _ in range(arguments.kills):
            after = random.uniform(0.02, 0.6) * whole["seconds"]
            killed += carry_out(recipe, work / "killed", after) is None
        while carry_out(recipe, work / "killed") is None:
            pass
        result |= {"kills": killed, "same_bytes": fingerprint(work / "killed" / "corpus") == wanted}
        print(f"{killed} kills of all processes, others of one worker: same bytes: {result['same_bytes']}")
    write_json(Path(__file__).parent / "results" / "corpus-memory.json", result)
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
