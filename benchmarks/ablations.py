"""One row per option against the paper's recipe, at equal tokens, with small models: held-out bits per UTF-8 byte.

    python benchmarks/ablations.py                                          # on the built-in sandbox text
    python benchmarks/ablations.py --text en=a.jsonl.gz --text zh=b.jsonl   # on your own, one file or more a language
    python benchmarks/ablations.py --rows paper,muon --rates 2e-3,4e-3 --seeds 0,1,2

Every run is `xmodel pretrain` itself: 1.0 million parameters, 3 layers, context 256, 0.4 million tokens, one thread,
under a minute of processor time. Each row is the paper's recipe (AdamW, warm-up, cosine to a tenth) with the one change
that its name says; a seed changes initial weights and data order. "Rates" are peak learning rates: a row is run at all
that are asked for, and its best by the mean over seeds is the one to compare. The held-out text is the same for all.

The results file is written after every run, and what stands in it is not run again: a sweep that was killed goes on.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from xmodel.console import table
from xmodel.files import read_json, write_json
from xmodel.recipe.load import load_recipe
from xmodel.recipe.settings import Recipe
from xmodel.run import Run, carry_out, versions
from xmodel.stages import STAGES

SANDBOX = """
    - {name: sandbox-en, reader: sandbox, paths: [en], language: en, weight: 0.4, documents: 6k}
    - {name: sandbox-zh, reader: sandbox, paths: [zh], language: zh, weight: 0.4, documents: 6k}
    - {name: sandbox-parallel, reader: sandbox, paths: [parallel], weight: 0.2, documents: 3k}
"""
PAPER = """
name: ablations
seed: 0
corpus:
  sources: SOURCES
  holdout: 0.03
tokenizer: {vocab_size: 2048, character_coverage: 0.98, sample_bytes: 2M}
tokens: {bos: false}
model: {layers: 3, heads: 4, kv_heads: 2, hidden: 128, ffn: 320, context_length: 256}
pretrain:
  steps: 384
  global_batch: 4
  micro_batch: 4
  warmup_steps: 20        # a twentieth of the steps
  schedule: cosine
  weight_decay: 0.1
  eval_every: 0
  eval_tokens: 20k
  save_every: 100k
  keep: 1
  log_every: 64
  precision: bf16
  compile: "off"
  device: cpu
  trackers: []
evaluate: {limit_during: 0}
"""
TENTH = 0.1  # final_lr of the paper's recipe, as a share of peak_lr
BEST = ["pretrain.optimizer=muon", "model.qk_norm=true", "pretrain.schedule=wsd", "pretrain.decay_steps=154"]
ROWS: dict[str, list[str]] = {  # name: what is changed; settings of other options come with the option
    "paper": [],
    "wsd": ["pretrain.schedule=wsd", "pretrain.decay_steps=77"],
    "wsd, decay 40 %": ["pretrain.schedule=wsd", "pretrain.decay_steps=154"],
    "muon": ["pretrain.optimizer=muon"],
    "z-loss": ["pretrain.z_loss=1e-4"],
    "qk-norm": ["model.qk_norm=true"],
    "tied": ["model.tied_embeddings=true"],
    "batch warm-up": [
        "pretrain.micro_batch=1",
        "pretrain.batch_warmup=[1,2]",
        "pretrain.batch_warmup_steps=64",
        "pretrain.steps=464",
    ],
    "ema": ["pretrain.average=ema", "pretrain.average_decay=0.98"],
    "best known": BEST,
}
RATES = "2e-3,4e-3,8e-3"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", action="append", default=[], help="LANGUAGE=FILE; default: the sandbox")
    parser.add_argument("--name", default="", help="what the text is called in the results; default: its file names")
    parser.add_argument("--rows", default=",".join(ROWS), help="names of rows, separated by commas")
    parser.add_argument("--rates", default=RATES, help="peak learning rates")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "xmodel-ablations")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "ablations.json")
    options = parser.parse_args()

    text = options.name or "+".join(Path(item.partition("=")[2]).name for item in options.text) or "sandbox"
    base = prepared(options.work / text, sources(options.text))
    results = read_json(options.results) if options.results.exists() else {"runs": []}
    results |= {"versions": versions(), "machine": platform.machine(), "recipe": PAPER, "rows": ROWS}
    for seed in map(int, options.seeds.split(",")):
        for name in names(options.rows):
            for rate in map(float, options.rates.split(",")):
                key = {"text": text, "row": name, "peak_lr": rate, "seed": seed, "changes": ROWS[name]}
                if not any(run.items() >= key.items() for run in results["runs"]):
                    results["runs"].append(key | train(base, ROWS[name], rate, seed))
                    write_json(options.results, results)
                    print(results["runs"][-1], flush=True)
    print(f"\nHeld-out bits per byte, mean ± standard deviation over seeds; text: {text}\n")
    print(summary([run for run in results["runs"] if run["text"] == text]))


def names(given: str) -> list[str]:
    """Names of rows; a name may have a comma in it."""
    found = [name for name in ROWS if f",{name}," in f",{given},"]
    if len(",".join(found)) != len(given):
        raise SystemExit(f"--rows {given}: the rows are {'; '.join(ROWS)}")
    return found


def sources(texts: Sequence[str]) -> str:
    """The recipe's sources: the sandbox, or files of the caller, each language with half of the samples."""
    if not texts:
        return SANDBOX
    pairs = [item.partition("=")[::2] for item in texts]
    counts = {language: sum(other == language for other, _ in pairs) for language, _ in pairs}
    shares = [round(1e6 / len(counts) / counts[language]) for language, _ in pairs]
    shares[0] += 1_000_000 - sum(shares)
    return "".join(
        f"\n    - {{name: text-{n}, reader: jsonl, paths: ['{Path(path).resolve()}'], language: {language}, "
        f"weight: {share / 1e6}}}"
        for n, ((language, path), share) in enumerate(zip(pairs, shares, strict=True))
    )


def prepared(folder: Path, listed: str) -> Run:
    """A run directory whose corpus, tokenizer and tokens stand."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "paper.yaml"
    file.write_text(PAPER.replace("SOURCES", listed), encoding="utf-8")
    run = Run(folder / "run", load_recipe(file))
    carry_out(run, STAGES, ["corpus", "tokenizer", "tokens"])
    return run


def changed(base: Run, changes: Sequence[str], rate: float, seed: int) -> Recipe:
    """The paper's recipe with a row's changes."""
    given = [f"seed={seed}", f"pretrain.peak_lr={rate}", f"pretrain.final_lr={rate * TENTH}"]
    if "pretrain.schedule=wsd" in changes:
        given.append("pretrain.final_lr=0")
    return load_recipe(base.folder.parent / "paper.yaml", [*given, *changes])


def train(base: Run, changes: Sequence[str], rate: float, seed: int) -> dict[str, Any]:
    """One run: held-out bits per byte by language, tokens, seconds."""
    from xmodel.pretrain.loop import pretrain

    recipe = changed(base, changes, rate, seed)
    folder = Path(tempfile.mkdtemp(dir=base.folder.parent))
    try:
        started = time.process_time()
        last = pretrain(recipe, base.path("tokens"), folder, lambda model: [])
        seconds = time.process_time() - started
    finally:
        shutil.rmtree(folder)
    held_out = {key: last[key] for key in ("bits_per_byte_en", "bits_per_byte_zh") if key in last}
    return {"tokens": last["tokens"], "processor_seconds": round(seconds, 1)} | held_out


def summary(runs: Sequence[dict[str, Any]]) -> str:
    """A line per row and rate; the change is against the paper's recipe at its best rate, paired by seed."""
    lines = []
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["row"], run["peak_lr"]), []).append(run)
    papers = [group for (row, _), group in groups.items() if row == "paper"]
    best = min(papers, key=lambda group: statistics.mean(map(mean_bits, group)), default=[])
    reference = {run["seed"]: mean_bits(run) for run in best}
    for (row, rate), group in sorted(groups.items(), key=lambda item: (list(ROWS).index(item[0][0]), item[0][1])):
        cells = [row, f"{rate:g}", str(len(group)), f"{group[0]['tokens'] / 1e6:.3f}M"]
        cells += [spread([run[f"bits_per_byte_{language}"] for run in group]) for language in ("en", "zh")]
        gains = [mean_bits(run) - reference[run["seed"]] for run in group if run["seed"] in reference]
        cells += [spread(gains, "+.4f") if gains else ""]
        cells += [f"{statistics.median(run['processor_seconds'] for run in group):.0f}"]
        lines.append(cells)
    return table(["row", "peak_lr", "seeds", "tokens", "en", "zh", "mean against paper", "processor s"], lines)


def mean_bits(run: dict[str, Any]) -> float:
    return (run["bits_per_byte_en"] + run["bits_per_byte_zh"]) / 2


def spread(values: Sequence[float], form: str = ".4f") -> str:
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return format(statistics.mean(values), form) + deviation


if __name__ == "__main__":
    main()
