"""Best-fit packing and document masks: what is cut, how fast the plan is made, and what a small model learns.

    python benchmarks/packing.py plan                                  # documents cut, padding, documents a second
    python benchmarks/packing.py train                                 # concatenated, masked, packed, packed and masked
    python benchmarks/packing.py train --text docs.jsonl.gz
    python benchmarks/packing.py plan --text docs.jsonl.gz ...         # JSON lines with a field `text`

`plan` packs as many documents as `--documents` whose lengths follow a log-normal distribution (as web text does: median
400 tokens, standard deviation 1.2 of the logarithm), and those of the text; its peer is best-fit-decreasing in plain
Python, a sorted list and bisection, on the same lengths (on a tenth of them: it is slow).

`train` trains the same model on the same number of tokens four times for each of three seeds, one thread, taking turns:
windows of one long array as they are, with a document mask, best-fit windows, and both. The text is the built-in
sandbox (English, Chinese and parallel), or what is given; every tenth document is held out. Two measures: bits per byte
of held-out documents each by itself, from its beginning to at most a window's length (so stands a prompt), and of
held-out windows as each was trained (with or without a mask). Results go to results/packing.json, by name of the text.
"""

from __future__ import annotations

import argparse
import bisect
import gzip
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from xmodel.console import table
from xmodel.corpus import sandbox
from xmodel.files import read_json, write_json
from xmodel.model.documents import model_inputs
from xmodel.model.transformer import Transformer
from xmodel.pretrain.data import TrainingData, ValidationData, valid_targets
from xmodel.pretrain.optim import clip_grad_norm, guarded_step, make_optimizer
from xmodel.pretrain.parallel import Place
from xmodel.pretrain.schedule import learning_rate
from xmodel.pretrain.validate import validate
from xmodel.recipe.settings import Model, Pretrain, Tokenizer, Tokens
from xmodel.tokenizer.codec import Tokenizer as Codec
from xmodel.tokenizer.train import train as train_tokenizer
from xmodel.tokens.packing import SIZE_BITS, pack, truncated
from xmodel.tokens.shards import PADDING
from xmodel.tokens.write import write_tokens

RESULTS = Path(__file__).parent / "results" / "packing.json"
VARIANTS = {  # name -> packing, document mask
    "concatenated": ("concatenate", False),
    "document mask": ("concatenate", True),
    "best fit": ("best_fit", False),
    "best fit + mask": ("best_fit", True),
}
PLACE = Place(0, 1, torch.device("cpu"))


def plain_best_fit(sizes: list[int], room: int) -> int:
    """Best-fit-decreasing with a sorted list of (room left, window): how many windows it takes."""
    left: list[tuple[int, int]] = []
    windows: list[list[int]] = []
    for part, size in sorted(enumerate(sizes), key=lambda pair: -pair[1]):
        place = bisect.bisect_left(left, (size, -1))
        if place < len(left):
            remaining, window = left.pop(place)
        else:
            remaining, window = room, len(windows)
            windows.append([])
        windows[window].append(part)
        if remaining > size:
            bisect.insort(left, (remaining - size, window))
    return len(windows)


def plan_row(name: str, sizes: np.ndarray, length: int) -> dict[str, Any]:
    """Cut and padding shares of these documents, and documents a second of processor time on both sides."""
    ends = np.cumsum(sizes)
    pack(ends[:100], 0, length)  # compiled
    started = time.process_time()
    parts, firsts = pack(ends, 0, length)
    seconds, windows = time.process_time() - started, len(firsts) - 1
    cut, cut_by_concatenation = truncated(ends, 0, length)
    used = int((parts & np.uint64((1 << SIZE_BITS) - 1)).sum())
    few = sizes[: max(1000, len(sizes) // 10)]
    few_parts, few_firsts = pack(np.cumsum(few), 0, length)
    few_sizes = (few_parts & np.uint64((1 << SIZE_BITS) - 1)).astype(int).tolist()
    started = time.process_time()
    assert plain_best_fit(few_sizes, length + 1) == len(few_firsts) - 1, "both are best-fit-decreasing"
    plain = len(few) / (time.process_time() - started)
    return {
        "text": name,
        "documents": len(sizes),
        "mean_tokens": round(float(sizes.mean()), 1),
        "window": length,
        "cut_by_concatenation": cut_by_concatenation / len(sizes),
        "cut_by_best_fit": cut / len(sizes),
        "padding": 1 - used / (windows * (length + 1)),
        "documents_per_second": round(len(sizes) / seconds),
        "plain_python_documents_per_second": round(plain),
    }


def plan(options: argparse.Namespace) -> list[dict[str, Any]]:
    generator = np.random.default_rng(0)
    lengths = np.minimum(generator.lognormal(math.log(400), 1.2, options.documents).astype(np.int64) + 2, 10**6)
    cases = [("log-normal", lengths, window) for window in (1024, 2048, 4096, 8192)]
    texts = {"sandbox": sandbox_texts(), **{path.name.split(".")[0]: read_texts(path) for path in options.text}}
    for name, documents in texts.items():
        codec = tokenizer_of(documents, options.vocabulary)
        sizes = np.array([len(ids) + 2 for ids in codec.encode_batch(documents)], np.int64)
        cases += [(name, sizes, window) for window in (256, 512, 2048)]
    rows = [plan_row(*case) for case in cases]
    shown = [
        [
            row["text"],
            f"{row['documents']:,}",
            f"{row['mean_tokens']:,.0f}",
            f"{row['window']:,}",
            *(f"{row[key]:.2%}" for key in ("cut_by_concatenation", "cut_by_best_fit", "padding")),
            f"{row['documents_per_second'] / 1e6:.2f}M",
            f"{row['documents_per_second'] / row['plain_python_documents_per_second']:.0f}",
        ]
        for row in rows
    ]
    headers = ["text", "documents", "mean tokens", "window", "cut: concatenated", "cut: best fit", "padding"]
    print(table([*headers, "documents/s", "x plain Python"], shown))
    return rows


def sandbox_texts() -> list[str]:
    return [made.text for part in ("en", "zh", "parallel") for made in sandbox.documents(part, 1000, 0)]


def read_texts(path: Path) -> list[str]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path, encoding="utf-8") as stream:
        return [json.loads(line)["text"] for line in stream]


def tokenizer_of(documents: list[str], vocabulary: int) -> Codec:
    some = documents[:: max(1, sum(map(len, documents)) // 500_000)]  # SentencePiece is slow
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(some, Tokenizer(vocab_size=vocabulary, character_coverage=0.99), Path(folder), seed=0)
        return Codec.load(Path(folder))


def documents_alone(model: Transformer, codec: Codec, texts: list[str], length: int) -> float:
    """Bits per byte of documents, each by itself from its beginning, up to a window's length."""
    nats = size = 0.0
    rows = [[codec.bos_id, *ids, codec.eos_id][: length + 1] for ids in codec.encode_batch(texts)]
    for first in range(0, len(rows), 16):
        batch = np.full((len(rows[first : first + 16]), length + 1), PADDING, np.int64)
        for row, ids in zip(batch, rows[first : first + 16], strict=True):
            row[: len(ids)] = ids
            size += int(codec.piece_bytes[ids[1:]].sum())
        with torch.no_grad():
            nats += float(model.loss(**model_inputs(torch.from_numpy(batch))))
    return nats / math.log(2) / size


def trained(
    folder: Path, source: str, variant: str, seed: int, shape: Model, settings: Pretrain
) -> tuple[Transformer, float]:
    """A model after all steps, and the targets that it saw."""
    settings.packing, settings.document_mask = VARIANTS[variant]  # type: ignore[assignment]
    end = Codec.eos_id if settings.document_mask else None
    data = TrainingData(folder, [(0, {source: 1.0})], seed, shape.context_length, settings.packing)
    model = Transformer(shape)
    model.init_weights(seed)
    model.compute_dtype = torch.bfloat16
    optimizer = make_optimizer(model, settings)
    targets = 0
    for step in range(1, settings.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        rows = torch.from_numpy(data.batch(step, settings, 0, 1))
        valid = valid_targets(rows, settings, end, PLACE)
        (model(**model_inputs(rows, end)) / valid).backward()
        guarded_step(optimizer, clip_grad_norm(model.parameters(), settings.clip))
        optimizer.zero_grad()
        targets += int(valid)
    return model.eval(), targets


def train(options: argparse.Namespace) -> dict[str, Any]:
    name = options.text[0].name.split(".")[0] if options.text else "sandbox"
    texts = [text for path in options.text for text in read_texts(path)] if options.text else sandbox_texts()
    held, kept = texts[::10], [text for number, text in enumerate(texts) if number % 10]
    codec = tokenizer_of(kept, options.vocabulary)
    shape = Model(
        layers=2, heads=4, kv_heads=2, hidden=96, ffn=256, vocab_size=codec.vocab_size, context_length=options.length
    )
    batch = options.step_tokens // options.length
    settings = Pretrain(
        steps=options.steps, global_batch=batch, micro_batch=batch, peak_lr=3e-3, final_lr=1e-4, warmup_steps=20
    )
    found: dict[str, dict[str, list[float]]] = {
        variant: {"alone": [], "as_trained": [], "targets": [], "seconds": []} for variant in VARIANTS
    }
    with tempfile.TemporaryDirectory() as place:
        corpus, folder = Path(place, "corpus"), Path(place, "tokens")
        for split, source, some in (("train", name, kept), ("validation", "en", held)):
            (corpus / split).mkdir(parents=True)
            pq.write_table(pa.table({"text": some}), corpus / split / f"{source}.parquet")
        folder.mkdir()
        manifest = write_tokens(corpus, codec, Tokens(), folder)
        for seed in options.seeds:
            for variant, figures in found.items():
                started = time.process_time()
                model, targets = trained(folder, name, variant, seed, shape, settings)
                figures["seconds"].append(round(time.process_time() - started, 1))
                end = Codec.eos_id if VARIANTS[variant][1] else None
                windows = ValidationData(folder, options.length, 200_000, 16, end)
                figures["alone"].append(documents_alone(model, codec, held, options.length))
                figures["as_trained"].append(validate(model, windows, PLACE)[0]["bits_per_byte"])
                figures["targets"].append(targets)
                print(seed, variant, {key: round(values[-1], 4) for key, values in figures.items()}, flush=True)
        plan = read_json(folder / f"packed-{options.length}" / f"{name}.json")
    rows = []
    for variant, figures in found.items():
        cells = [variant]
        for key in ("alone", "as_trained"):
            against = [a - b for a, b in zip(figures[key], found["concatenated"][key], strict=True)]
            cells += [shown(figures[key]), shown(against) if variant != "concatenated" else ""]
        rows.append(
            [*cells, f"{statistics.mean(figures['targets']):,.0f}", f"{statistics.mean(figures['seconds']):.0f}"]
        )
    tokens = manifest["train"][name]["tokens"]
    print(f"{name}: {tokens:,} tokens in {plan['documents']:,} documents, windows of {options.length}")
    print(f"{options.steps} steps of {options.step_tokens} tokens, seeds {options.seeds}")
    headers = ["windows", "documents alone", "difference", "windows as trained", "difference", "targets", "seconds"]
    print(table(headers, rows))
    facts = {key: plan[key] for key in ("documents", "cut", "cut_by_concatenation", "windows", "padding")}
    return {
        "tokens": tokens,
        "vocabulary": codec.vocab_size,
        "window": options.length,
        "steps": options.steps,
        "step_tokens": options.step_tokens,
        "seeds": options.seeds,
        "shape": {key: getattr(shape, key) for key in ("layers", "heads", "kv_heads", "hidden", "ffn")},
        "peak_lr": settings.peak_lr,
        "plan": facts,
        "bits_per_byte": found,
    }


def shown(values: list[float]) -> str:
    """Mean ± standard deviation over the seeds."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {spread:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("plan", "train"))
    parser.add_argument("--text", nargs="+", type=Path, default=[], help="JSON lines with a field `text`, plain or .gz")
    parser.add_argument("--documents", type=int, default=1_000_000, help="plan: of the log-normal distribution")
    parser.add_argument("--length", type=int, default=512, help="train: context length")
    parser.add_argument("--steps", type=int, default=100, help="train: optimizer steps")
    parser.add_argument("--step-tokens", type=int, default=2048, help="train: tokens in a step")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--vocabulary", type=int, default=2048)
    options = parser.parse_args()
    torch.set_num_threads(1)
    functions: dict[str, Callable[[argparse.Namespace], Any]] = {"plan": plan, "train": train}
    result = functions[options.what](options)
    text = options.text[0].name.split(".")[0] if options.text else "sandbox"
    name = "plan" if options.what == "plan" else f"train {text}"
    old = read_json(RESULTS) if RESULTS.exists() else {}
    versions = {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}
    write_json(RESULTS, old | versions | {"machine": platform.machine(), name: result})


if __name__ == "__main__":
    main()
