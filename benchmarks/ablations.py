"""One row per option against the paper's recipe, at equal tokens, with small models: held-out bits per UTF-8 byte.

    python benchmarks/ablations.py                                          # on the built-in sandbox text
    python benchmarks/ablations.py --text en=a.jsonl.gz --text zh=b.jsonl   # on your own, one file or more a language
    python benchmarks/ablations.py --rows paper,muon --rates 2e-3,4e-3 --seeds 0,1,2 --steps 1024

Every run is `xmodel pretrain` itself: 1.0 million parameters, 3 layers, context 256, 0.26 million tokens (`--steps`),
one thread, about 25 s of processor time. Each row is the paper's recipe (AdamW, warm-up, cosine to a tenth) with the
one change that its name says; a seed changes initial weights and data order. "Rates" are peak learning rates: a row is
run at all that are asked for, and its best by the mean over seeds is the one to compare.

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
  steps: STEPS
  global_batch: 4
  micro_batch: 4
  warmup_steps: WARMUP        # a twentieth of the steps
  schedule: cosine
  weight_decay: 0.1
  eval_every: 0
  eval_tokens: 16k
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


def rows(steps: int) -> dict[str, list[str]]:
    """What each row changes; settings that an option needs come with it. All see the same number of tokens."""
    muon, qk_norm = ["pretrain.optimizer=muon"], ["model.qk_norm=true"]
    wsd = {share: [*WSD, f"pretrain.decay_steps={round(steps * share)}"] for share in (0.2, 0.4)}
    stage = steps // 8  # of a quarter and then half of the batch: 1.25 stages' worth of samples to make up for
    warm_up = [f"pretrain.batch_warmup_steps={stage}", f"pretrain.steps={steps + 5 * stage // 4}"]
    return {
        "paper": [],
        "wsd": wsd[0.2],
        "wsd-40": wsd[0.4],
        "muon": muon,
        "z-loss": ["pretrain.z_loss=1e-4"],
        "qk-norm": qk_norm,
        "tied": ["model.tied_embeddings=true"],
        "batch-warm-up": ["pretrain.micro_batch=1", "pretrain.batch_warmup=[1,2]", *warm_up],
        "ema": ["pretrain.average=ema", "pretrain.average_decay=0.98"],
        "muon-wsd-40": [*muon, *wsd[0.4]],
        "muon-qk-norm": [*muon, *qk_norm],
        "best-known": [*muon, *qk_norm, *wsd[0.4]],
    }


WSD = ["pretrain.schedule=wsd", "pretrain.final_lr=0"]
RATES = "1e-3,2e-3,4e-3"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", action="append", default=[], help="LANGUAGE=FILE; default: the sandbox")
    parser.add_argument("--name", default="", help="what the text is called in the results; default: its file names")
    parser.add_argument("--rows", default=",".join(rows(0)), help="names of rows")
    parser.add_argument("--rates", default=RATES, help="peak learning rates")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=256, help="of 1,024 tokens; a multiple of 32")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "xmodel-ablations")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "ablations.json")
    options = parser.parse_args()

    text = options.name or "+".join(Path(item.partition("=")[2]).name for item in options.text) or "sandbox"
    changes, steps = rows(options.steps), options.steps
    if unknown := set(options.rows.split(",")) - set(changes):
        raise SystemExit(f"--rows {options.rows}: no {', '.join(unknown)}; the rows are {', '.join(changes)}")
    base = prepared(options.work / f"{text}-{steps}", PAPER, sources(options.text), steps)
    results: dict[str, Any] = read_json(options.results) if options.results.exists() else {"runs": []}
    results |= {"versions": versions(), "machine": platform.machine(), "recipe": PAPER}
    for seed in map(int, options.seeds.split(",")):
        for name in options.rows.split(","):
            for rate in map(float, options.rates.split(",")):
                key = {"text": text, "steps": steps, "row": name, "peak_lr": rate, "seed": seed}
                if not any(run.items() >= key.items() for run in results["runs"]):
                    results["runs"].append(key | train(base, changes[name], rate, seed))
                    write_json(options.results, results)
    print(f"\nHeld-out bits per byte, mean ± standard deviation over seeds; text: {text}\n")
    print(summary([run for run in results["runs"] if (run["text"], run["steps"]) == (text, steps)]))


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


def prepared(folder: Path, recipe: str, listed: str, steps: int) -> Run:
    """A run directory whose corpus, tokenizer and tokens stand."""
    folder.mkdir(parents=True, exist_ok=True)
    text = recipe.replace("SOURCES", listed).replace("STEPS", str(steps)).replace("WARMUP", str(steps // 20))
    (folder / "paper.yaml").write_text(text, encoding="utf-8")
    run = Run(folder / "run", load_recipe(folder / "paper.yaml"))
    carry_out(run, STAGES, ["corpus", "tokenizer", "tokens"])
    return run


def changed(base: Run, changes: Sequence[str], rate: float, seed: int) -> Recipe:
    """The paper's recipe with a row's changes."""
    given = [f"seed={seed}", f"pretrain.peak_lr={rate}", f"pretrain.final_lr={rate * TENTH}"]
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
    return {"changes": list(changes), "tokens": last["tokens"], "processor_seconds": round(seconds, 1)} | held_out


def summary(runs: Sequence[dict[str, Any]]) -> str:
    """A line per row and rate; the change is against the paper's recipe at its best rate, paired by seed."""
    lines = []
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["row"], run["peak_lr"]), []).append(run)
    papers = [group for (row, _), group in groups.items() if row == "paper"]
    best = min(papers, key=lambda group: statistics.mean(map(mean_bits, group)), default=[])
    reference = {run["seed"]: mean_bits(run) for run in best}
    for (row, rate), group in sorted(groups.items(), key=lambda item: (list(rows(0)).index(item[0][0]), item[0][1])):
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
