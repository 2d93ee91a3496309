"""Evaluation, side by side: our scorer and generator against lm-evaluation-harness's own `hf` backend.

    python benchmarks/evaluate.py --benchmarks DIR                                        # the CPU table of README.md
    python benchmarks/evaluate.py --benchmarks DIR --device cuda --dtype bf16 --shape reference

Both sides get the same requests, built by the harness's own task objects from the rows in DIR (laid out as
`xmodel evaluate layout` says), the same random weights (exported once, read by both), tokenizer, context length and
threads. They take turns task by task, so that a busy moment of the machine falls on both; `--rounds` of them, and the
ratio is the median over rounds of the ratio within a round. Time runs from the texts to the results, the tokenizing of
both included; on a GPU it is wall clock, on a CPU processor time of all threads, which other work on the machine
disturbs less. Random weights make no difference to speed, but for when generation stops: with them a stop
text hardly ever comes up, and answers have `--room` tokens on both sides (256 is the harness's own bound).
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from xmodel.console import table
from xmodel.evaluate import requests_cache
from xmodel.evaluate.harness import SubjectLM
from xmodel.evaluate.paper import BENCHMARKS, definitions
from xmodel.evaluate.tasks import open_task, prepare
from xmodel.files import write_json
from xmodel.inference.subjects import DTYPES, open_subject
from xmodel.model.checkpoint_io import save_model
from xmodel.model.transformer import Transformer
from xmodel.recipe.settings import Model
from xmodel.recipe.settings import Tokenizer as TokenizerSettings
from xmodel.tokenizer.train import train

SHAPES = {  # layers, hidden, heads, kv_heads, ffn, vocabulary, context
    "small": (4, 256, 8, 2, 704, 8_192, 2_048),
    "medium": (8, 512, 8, 2, 1_408, 16_384, 2_048),
    "100m": (12, 640, 10, 2, 1_728, 16_384, 2_048),
    "reference": (24, 2_048, 32, 4, 5_632, 32_000, 4_096),
}
SUITES = {  # suite -> benchmarks, and the least ratio that the suite as a whole should reach
    "mmlu, 5-shot": (("mmlu",), 4.0),
    "gsm8k, 5-shot, generated": (("gsm8k",), 4.0),
    "bbh, 3-shot, generated": (("bbh_cot_fewshot",), 4.0),  # as gsm8k, but the same examples before every question
    "chinese, 0-shot": (("arc_zh", "xcopa_zh", "xnli_zh"), 3.0),
    "commonsense, 0-shot": (
        ("arc_challenge", "arc_easy", "boolq", "hellaswag", "openbookqa", "piqa", "sciq", "winogrande"),
        1.5,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmarks", type=Path, required=True, help="folder of rows")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=sorted(DTYPES))
    parser.add_argument("--shape", default="small", choices=sorted(SHAPES))
    parser.add_argument("--limit", type=int, default=32, help="rows of a benchmark; a group shares twice as many")
    parser.add_argument("--room", type=int, default=256, help="new tokens of a generated answer at most")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--batch", default="16", help="batch sizes of the hf backend, with commas; its best one counts")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--suites", default="", help="only those whose name begins so")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    logging.disable(logging.WARNING)
    os.environ["TQDM_DISABLE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder))
    path = Path(__file__).parent / "results" / f"evaluate-{arguments.device.split(':')[0]}.json"
    write_json(path, result)
    print(table(list(result["table"][0]), [list(map(str, row.values())) for row in result["table"]]))
    print(f"written to {path.name}")


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    layers, hidden, heads, kv_heads, ffn, vocabulary, context = SHAPES[arguments.shape]
    make_tokenizer(arguments.benchmarks, folder, vocabulary)
    shape = Model(
        layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads, ffn=ffn, vocab_size=vocabulary,
        context_length=context, position_table=context, init_std=0.05,
    )  # fmt: skip
    model = Transformer(shape)
    model.init_weights(0)
    save_model(model, folder, dtype=DTYPES[arguments.dtype])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    del model
    requests_cache.WORTH = sys.maxsize  # both sides encode in every round
    subject = open_subject(str(folder), dtype=arguments.dtype, device=arguments.device)
    backends = {size: open_hf(folder, size, arguments, context) for size in arguments.batch.split(",")}
    ours = SubjectLM(subject)
    rows: list[dict[str, Any]] = []
    totals: list[dict[str, Any]] = []
    for suite, (names, target) in SUITES.items():
        if not suite.startswith(arguments.suites):
            continue
        sums = {side: [0.0] * arguments.rounds for side in ("ours", *backends)}
        print(f"{suite} ...", flush=True)
        for name in names:
            requests = build(name, arguments)
            found = compare(ours, backends, requests, arguments)
            for side, seconds in found.pop("rounds").items():
                sums[side] = [a + b for a, b in zip(sums[side], seconds, strict=True)]
            rows.append({"suite": suite, "task": name, "requests": len(requests), **found})
            print(json.dumps(rows[-1]), flush=True)
        best = min((statistics.median(seconds), side) for side, seconds in sums.items() if side != "ours")[1]
        ratio = statistics.median(peer / own for peer, own in zip(sums[best], sums["ours"], strict=True))
        totals.append({"suite": suite, "ratio": round(ratio, 2), "target": target, "hf batch size": best})
        print(json.dumps(totals[-1]), flush=True)
    names = ("torch", "transformers", "lm_eval", "tokenizers")
    return {
        "settings": {key: value for key, value in vars(arguments).items() if key != "benchmarks"},
        "model": {"shape": SHAPES[arguments.shape], "parameters": parameters},
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if arguments.device.startswith("cuda") else None,
        },
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in names},
        "suites": totals,
        "table": rows,
    }


def make_tokenizer(benchmarks: Path, folder: Path, vocabulary: int) -> None:
    """A tokenizer for the texts of the rows themselves, with as many pieces as they allow."""
    texts = [line for path in sorted(benchmarks.glob("*/*.jsonl")) for line in path.open(encoding="utf-8")]
    for size in (vocabulary, 16_384, 8_192, 4_096):
        try:
            train(texts, TokenizerSettings(vocab_size=min(size, vocabulary)), folder, seed=0, add_bos=True)
            return
        except Exception as error:
            if size == 4_096:
                raise
            print(f"{size} pieces are too many for these rows ({str(error).splitlines()[0]})", flush=True)


def open_hf(folder: Path, size: str, arguments: argparse.Namespace, context: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    dtype = {"fp32": "float32", "bf16": "bfloat16"}[arguments.dtype]
    size_ = int(size) if size.isdigit() else size
    opened: Any = HFLM  # a decorator of the harness hides its signature
    return opened(str(folder), device=arguments.device, dtype=dtype, batch_size=size_, max_length=context)


def build(name: str, arguments: argparse.Namespace) -> list[Any]:
    """The harness's requests for the first rows of a benchmark's tasks."""
    benchmark = next(each for each in BENCHMARKS if each.name == name)
    ready, _ = prepare({benchmark: list(definitions(benchmark))}, arguments.benchmarks)
    found = []
    for prepared in ready:
        task = open_task(prepared)
        limit = arguments.limit if len(ready) == 1 else max(1, 2 * arguments.limit // len(ready))
        task.build_all_requests(limit=limit, rank=0, world_size=1)
        found += task.instances
    for request in found:
        if request.request_type == "generate_until":
            request.arguments[1]["max_gen_toks"] = arguments.room
    return found


def compare(
    ours: SubjectLM, backends: dict[str, Any], requests: list[Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Seconds of both sides round by round, and how far their results agree."""
    kind = requests[0].request_type
    run: dict[str, Any] = {"ours": getattr(ours, kind)}
    run |= {size: lambda these, lm=lm: getattr(lm, kind)(these, disable_tqdm=True) for size, lm in backends.items()}
    clock = time.perf_counter if arguments.device.startswith("cuda") else time.process_time
    seconds: dict[str, list[float]] = {side: [] for side in run}
    results: dict[str, Any] = {}
    for _ in range(arguments.rounds):
        for side, function in run.items():
            these = copy.deepcopy(requests)
            started = clock()
            results[side] = function(these)
            seconds[side].append(clock() - started)
    best = min((statistics.median(times), side) for side, times in seconds.items() if side != "ours")[1]
    ratio = statistics.median(peer / own for peer, own in zip(seconds[best], seconds["ours"], strict=True))
    return {
        "ours s": round(statistics.median(seconds["ours"]), 2),
        "hf s": round(statistics.median(seconds[best]), 2),
        "hf batch": best,
        "ratio": round(ratio, 2),
        **agreement(kind, requests, results["ours"], results[best]),
        "rounds": seconds,
    }


def agreement(kind: str, requests: list[Any], ours: list[Any], theirs: list[Any]) -> dict[str, Any]:
    if kind == "generate_until":
        same = sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours)
        return {"largest difference": "", "equal": f"{100 * same:.1f} % of strings"}
    difference = max(abs(a[0] - b[0]) for a, b in zip(ours, theirs, strict=True))
    docs: dict[tuple[str, int], list[int]] = {}
    for place, request in enumerate(requests):
        docs.setdefault((request.task_name, request.doc_id), []).append(place)
    same = sum(
        max(places, key=lambda i: ours[i][0]) == max(places, key=lambda i: theirs[i][0]) for places in docs.values()
    )
    flags = sum(a[1] == b[1] for a, b in zip(ours, theirs, strict=True))
    equal = f"{100 * same / len(docs):.1f} % of choices, {100 * flags / len(ours):.1f} % of greedy flags"
    return {"largest difference": f"{difference:.1e}", "equal": equal}


if __name__ == "__main__":
    main()
