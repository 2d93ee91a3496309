"""Evaluation, side by side: our scorer and generator against lm-evaluation-harness's own `hf` backend.

    python benchmarks/evaluate.py --benchmarks DIR                                        # the CPU table of README.md
    python benchmarks/evaluate.py --benchmarks DIR --device cuda --dtype bf16 --shape reference

Both sides get the same requests, built by the harness's own task objects from the rows in DIR (laid out as
`xmodel evaluate layout` says), the same weights (exported once, read by both), tokenizer, context length and threads.
They take turns task by task, so that a busy moment of the machine falls on both; `--rounds` of them, and the ratio is
the median over rounds of the ratio within a round. Time runs from the texts to the results, the tokenizing of both
included; on a GPU it is wall clock, on a CPU processor time of all threads, which other work on the machine disturbs
less.

The weights are random, which makes no difference to speed, but for when generation stops. Answers are therefore written
by two models: one that ends its answers as a trained model does (stopping_model.py: lengths drawn from those of the
reference answers of GSM8K, `--room` tokens at most, 256 as in the harness), and one that never does, the worst case for
whoever stops rows one by one: all answers have half of the room.
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
from stopping_model import make_it_stop

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
from xmodel.tokenizer.codec import Tokenizer
from xmodel.tokenizer.train import train

SHAPES = {  # layers, hidden, heads, kv_heads, ffn, vocabulary, context
    "small": (4, 256, 8, 2, 704, 8_192, 2_048),
    "medium": (8, 512, 8, 2, 1_408, 16_384, 2_048),
    "100m": (12, 640, 10, 2, 1_728, 16_384, 2_048),
    "reference": (24, 2_048, 32, 4, 5_632, 32_000, 4_096),
}
SUITES = {  # suite -> benchmarks, the weights, and the least ratio that the suite as a whole should reach
    "mmlu, 5-shot": (("mmlu",), "random", 4.0),
    "gsm8k, 5-shot, generated": (("gsm8k",), "stopping", 4.0),
    "gsm8k cot, 8-shot, generated": (("gsm8k_cot",), "stopping", 4.0),  # the same examples before every question
    "bbh, 3-shot, generated": (("bbh_cot_fewshot",), "stopping", 4.0),
    "chinese, 0-shot": (("arc_zh", "xcopa_zh", "xnli_zh"), "random", 3.0),
    "commonsense, 0-shot": (
        ("arc_challenge", "arc_easy", "boolq", "hellaswag", "openbookqa", "piqa", "sciq", "winogrande"),
        "random",
        1.5,
    ),
    "gsm8k, endless answers": (("gsm8k",), "random", 1.0),
    "bbh, endless answers": (("bbh_cot_fewshot",), "random", 1.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmarks", type=Path, required=True, help="folder of rows")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=sorted(DTYPES))
    parser.add_argument("--shape", default="small", choices=sorted(SHAPES))
    parser.add_argument("--limit", type=int, default=32, help="rows of a benchmark; a group shares twice as many")
    parser.add_argument(
        "--room",
        type=int,
        default=256,
        help="new tokens of a generated answer at most, half of it where answers never end",
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--batch", default="8,16,32", help="batch sizes of the hf backend, with commas; its best one counts"
    )
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--suites", default="", help="only those whose name begins so, with commas")
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
    parameters = sum(parameter.numel() for parameter in model.parameters())
    save_model(model, folder, dtype=DTYPES[arguments.dtype])
    requests_cache.WORTH = sys.maxsize  # both sides encode in every round
    wanted = {suite: facts for suite, facts in SUITES.items() if suite.startswith(tuple(arguments.suites.split(",")))}
    rows: list[dict[str, Any]] = []
    totals: list[dict[str, Any]] = []
    opened, ours, backends = "", None, {}
    for suite, (names, weights, target) in sorted(wanted.items(), key=lambda each: each[1][1]):
        if weights != opened:
            if weights == "stopping":
                write_stopping(model, folder, arguments)
            opened, ours, backends = weights, None, {}  # the old ones go first
            ours = SubjectLM(open_subject(str(folder), dtype=arguments.dtype, device=arguments.device), fast=True)
            backends = open_hf(folder, arguments, context)
        assert ours is not None
        sums, walls = ({side: [0.0] * arguments.rounds for side in ("ours", *backends)} for _ in range(2))
        print(f"{suite} ...", flush=True)
        for name in names:
            requests = build(name, arguments, arguments.room if weights == "stopping" else arguments.room // 2)
            found = compare(ours, backends, requests, arguments)
            for sides, clock in ((sums, "rounds"), (walls, "wall clock")):
                for side, seconds in found.pop(clock).items():
                    sides[side] = [a + b for a, b in zip(sides[side], seconds, strict=True)]
            rows.append({"suite": suite, "task": name, "requests": len(requests), **found})
            print(json.dumps(rows[-1]), flush=True)
        (best, ratio), (_, by_wall) = best_ratio(sums), best_ratio(walls)
        figures = {"ratio": ratio, "ratio by wall clock": by_wall, "target": target, "hf batch size": best}
        totals.append({"suite": suite, **figures})
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


def write_stopping(model: Transformer, folder: Path, arguments: argparse.Namespace) -> None:
    """The same layers, with an embedding and a head that make answers as long as the reference answers of GSM8K."""
    tokenizer = Tokenizer.load(folder)
    answers = [json.loads(line)["answer"] for line in (arguments.benchmarks / "gsm8k" / "test.jsonl").open()]
    lengths = [len(ids) for ids in tokenizer.encode_batch(answers)]
    texts = [request.args[0] for name in ("gsm8k", "bbh_cot_fewshot") for request in build(name, arguments, 1)[::4]]
    make_it_stop(
        model, tokenizer, lengths, [[tokenizer.bos_id, *ids.tolist()] for ids in tokenizer.encode_batch(texts)]
    )
    save_model(model, folder, dtype=DTYPES[arguments.dtype])


def open_hf(folder: Path, arguments: argparse.Namespace, context: int) -> dict[str, Any]:
    """The harness's backend with each batch size, on one copy of the weights."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[arguments.dtype])
    model.to(arguments.device)
    opened: Any = HFLM  # a decorator of the harness hides its signature
    return {
        size: opened(
            pretrained=model,
            tokenizer=AutoTokenizer.from_pretrained(folder),
            batch_size=int(size) if size.isdigit() else size,
            max_length=context,
        )
        for size in arguments.batch.split(",")
    }


def build(name: str, arguments: argparse.Namespace, room: int) -> list[Any]:
    """The harness's requests for the first rows of a benchmark's tasks; answers have `room` tokens at most."""
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
            request.arguments[1]["max_gen_toks"] = room
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
    walls: dict[str, list[float]] = {side: [] for side in run}
    results: dict[str, Any] = {}
    for _ in range(arguments.rounds):
        for side, function in run.items():
            these = copy.deepcopy(requests)
            started, wall = clock(), time.perf_counter()
            results[side] = function(these)
            seconds[side].append(clock() - started)
            walls[side].append(time.perf_counter() - wall)
    best, ratio = best_ratio(seconds)
    return {
        "ours s": round(statistics.median(seconds["ours"]), 2),
        "hf s": round(statistics.median(seconds[best]), 2),
        "hf batch": best,
        "ratio": ratio,
        **agreement(kind, requests, results["ours"], results[best]),
        "rounds": seconds,
        "wall clock": walls,
    }


def best_ratio(seconds: dict[str, list[float]]) -> tuple[str, float]:
    """The backend's best batch size, and its time over ours: the median of the ratios within a round."""
    best = min((statistics.median(times), side) for side, times in seconds.items() if side != "ours")[1]
    ratios = [peer / own for peer, own in zip(seconds[best], seconds["ours"], strict=True)]
    return best, round(statistics.median(ratios), 2)


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
