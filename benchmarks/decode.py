"""Prefill and decoding, side by side: this engine, transformers' `generate`, and llama.cpp on the same random weights.

    python -m venv /tmp/llama && /tmp/llama/bin/pip install llama-cpp-python==0.3.36    # builds for 15 to 25 minutes
    OMP_NUM_THREADS=2 python benchmarks/decode.py --llama /tmp/llama/bin/python          # the table of README.md
    python benchmarks/decode.py --dtype fp32
    python benchmarks/decode.py --device cuda --rows 1,16,128                            # one GPU

All weights are the same tensors (ours and transformers' share their memory). In a round every cell takes its turn:
prompts of `--prompt` tokens, then `--new` greedy tokens in every row, timed token by token; a ratio is the median over
rounds of the ratio within the round, so that what else the machine does weighs on all alike. transformers runs with a
dynamic cache, with a static cache, and with a static cache and a compiled forward pass (its warm-up is not counted);
its best counts. Several requests: ours join one batch, as in the engine and the server (chunks of prompts together,
then steps of all rows together); transformers once with all of them as one padded batch (here: of equal lengths, so
nothing is padded, its best case) and once one after the other, which is its rate for one. Beside it what memory allows:
the bytes of the weights over the rate at which the same threads read memory, taken anew in every round, since on a
shared machine it is another every minute.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xmodel.console import table
from xmodel.files import write_json
from xmodel.inference.batch import Batch, Row
from xmodel.inference.fast import prepare
from xmodel.model.config import to_hf
from xmodel.model.transformer import Transformer, rotary_tables
from xmodel.recipe.settings import Model

SHAPES = {  # layers, hidden, heads, kv_heads, ffn, vocabulary
    "reference": (24, 2048, 32, 4, 5632, 32_000),
    "small": (6, 256, 8, 2, 704, 8_192),
    "quickstart": (4, 192, 6, 2, 512, 4_096),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WORKER = Path(__file__).parent / "decode_worker.py"
Cell = Callable[[int], list[float]]  # rows -> when each token of the rows was there, in seconds from the start


def random_weights(config: Model, dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Transformer(config).state_dict().items()}
    draw = torch.Generator(device).manual_seed(0)
    made = {}
    for name, shape in shapes.items():
        values = torch.empty(shape, dtype=torch.float32, device=device)
        values = values.fill_(1.0) if len(shape) == 1 else values.normal_(0, 0.02, generator=draw)
        made[name] = values.to(dtype)
    return made


def our_model(config: Model, weights: dict[str, torch.Tensor], dtype: torch.dtype, device: str) -> Transformer:
    with torch.device("meta"):
        model = Transformer(config)
    model.load_state_dict(weights, assign=True)
    model.rotary = rotary_tables(config.context_length, config.hidden // config.heads, config.rope_base).to(device)
    model.compute_dtype = dtype
    return model.eval()


def their_model(config: Model, weights: dict[str, torch.Tensor], dtype: torch.dtype, device: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {key: value for key, value in to_hf(config).items() if key not in ("architectures", "model_type")}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(weights, assign=True)
    rotary = model.model.rotary_emb  # its frequencies are a buffer that the state does not hold
    with torch.device(device):
        model.model.rotary_emb = type(rotary)(model.config)
    return model.eval()


class Ours:
    """Requests that join one batch, as the engine has it: their prompts together, then steps of all rows."""

    def __init__(self, model: Transformer, prompt: list[int], new: int) -> None:
        self.model, self.prompt, self.new = model, prompt, new
        self.batches: dict[int, Batch[Row]] = {}  # kept, as an engine keeps its own: graphs of a GPU belong to it

    def __call__(self, rows: int) -> list[float]:
        if rows not in self.batches:
            self.batches[rows] = Batch(self.model, rows, len(self.prompt) + self.new)
        batch = self.batches[rows]
        began = time.perf_counter()
        all_rows = [Row(self.prompt, self.new) for _ in range(rows)]
        while prompts := [row for row in all_rows if row.length < len(row.prompt)]:
            for row, logits_V in batch.prefill(prompts):
                row.last = int(logits_V.argmax())
        stamps = [time.perf_counter() - began]
        for _ in range(self.new - 1):
            for row, token in zip(batch.going, batch.step().argmax(-1).tolist(), strict=True):
                row.last = token
            stamps.append(time.perf_counter() - began)
        for row in all_rows:
            batch.remove(row)
        return stamps


class Theirs:
    """transformers' `generate` with one setting of its cache."""

    def __init__(self, model: Any, prompt: list[int], new: int, setting: str) -> None:
        self.model, self.prompt, self.new = model, prompt, new
        self.more: dict[str, Any] = {} if setting == "dynamic" else {"cache_implementation": "static"}
        self.more["disable_compile"] = True
        if setting == "compiled":
            from transformers import CompileConfig

            compile_config: Any = CompileConfig(
                fullgraph=False, mode="default" if model.device.type == "cpu" else "reduce-overhead"
            )
            compile_config._compile_all_devices = True  # transformers compiles on accelerators only, unless told so
            self.more = {"cache_implementation": "static", "compile_config": compile_config}

    def __call__(self, rows: int) -> list[float]:
        stamps: list[float] = []
        ids = torch.tensor([self.prompt] * rows, device=self.model.device)

        def stamp(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            if ids.is_cuda:
                torch.cuda.synchronize()
            stamps.append(time.perf_counter() - began)
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        began = time.perf_counter()
        self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=self.new, min_new_tokens=self.new, do_sample=False,
            stopping_criteria=[stamp], pad_token_id=0, **self.more,
        )  # fmt: skip
        return stamps


class Llama:
    """llama.cpp in a process of its own, on a file."""

    def __init__(self, python: str, file: Path, threads: int, prompt: list[int], new: int, rows: int) -> None:
        settings = {"file": str(file), "threads": threads, "prompt": prompt, "new": new, "rows": rows}
        self.process = subprocess.Popen(
            [python, str(WORKER), json.dumps(settings)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.version = self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def __call__(self, rows: int) -> list[float]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{rows}\n")
        self.process.stdin.flush()
        return self._answer()


def write_gguf(path: Path, config: Model, weights: dict[str, torch.Tensor], kind: str) -> None:
    """The weights as llama.cpp reads them, without a tokenizer."""
    import gguf

    from xmodel.export.gguf import interleaved

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.ffn)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_rope_dimension_count(config.hidden // config.heads)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.layers)
    for name, tensor in weights.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = interleaved(tensor, config.heads if "q_proj" in name else config.kv_heads)
        target = gguf.GGMLQuantizationType.F32 if tensor.dim() == 1 else gguf.GGMLQuantizationType[kind.upper()]
        values = gguf.quantize(tensor.float().numpy(), target)
        writer.add_tensor(names.get_name(name, (".weight",)) or "", values, raw_dtype=target)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def memory_rate(numbers: torch.Tensor) -> float:
    """Bytes a second that all threads read, the median of a few times."""
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        float(numbers.sum())
        seconds.append(time.perf_counter() - began)
    return numbers.nbytes / statistics.median(seconds)


def measure(
    cells: dict[str, tuple[Cell, list[int]]], rounds: int, device: str
) -> tuple[dict[str, dict[int, list[list[float]]]], list[float]]:
    """cell -> rows -> of each round the stamps; and of each round the rate of memory.

    Before the first round each cell runs once, uncounted.
    """
    found: dict[str, dict[int, list[list[float]]]] = {}
    numbers, memory = torch.ones(1 << (27 if device == "cpu" else 29), dtype=torch.int64, device=device), []
    for number in range(rounds + 1):
        for name, (cell, rows) in cells.items():
            for count in rows:
                began = time.perf_counter()
                stamps = cell(count)
                print(f"round {number}, {name}, {count} rows: {time.perf_counter() - began:.1f} s", file=sys.stderr)
                if number:
                    found.setdefault(name, {}).setdefault(count, []).append(stamps)
        if number:
            memory.append(memory_rate(numbers))
    return found, memory


def summary(stamps: list[list[float]], rows: int, prompt: int) -> dict[str, Any]:
    """Rates of each round."""
    return {
        "prefill": [rows * prompt / each[0] for each in stamps],
        "decode": [rows / statistics.median(np.diff(each)) for each in stamps],  # a median: of what is not disturbed
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="reference", choices=SHAPES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bf16", choices=DTYPES)
    parser.add_argument("--rows", default="1,16", help="numbers of concurrent requests")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=24, help="new tokens of a request")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llama", metavar="PYTHON", help="of an environment with llama-cpp-python")
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled cell of transformers")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    torch.set_grad_enabled(False)
    dtype, device, many = DTYPES[options.dtype], options.device, [int(rows) for rows in options.rows.split(",")]
    layers, hidden, heads, kv_heads, ffn, vocabulary = SHAPES[options.shape]
    config = Model(
        layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads, ffn=ffn, vocab_size=vocabulary,
        context_length=2048, position_table=2048,
    )  # fmt: skip
    weights = random_weights(config, dtype, device)
    size = sum(tensor.nbytes for name, tensor in weights.items() if "embed_tokens" not in name)
    prompt = torch.randint(16, vocabulary, (options.prompt,), generator=torch.Generator().manual_seed(1)).tolist()
    theirs, new = their_model(config, weights, dtype, device), options.new
    cells: dict[str, tuple[Cell, list[int]]] = {}
    settings = ["dynamic", "static"] if options.no_compile else ["dynamic", "static", "compiled"]
    for setting in settings:
        rows = many[:1] if setting == "compiled" and device == "cpu" else many  # minutes of compilation for each
        cells[f"transformers, {setting}"] = Theirs(theirs, prompt, new, setting), rows
    cells["xmodel"] = Ours(prepare(our_model(config, weights, dtype, device)), prompt, new), many
    if device == "cpu":
        cells["xmodel, int8"] = Ours(prepare(our_model(config, weights, dtype, device), "int8"), prompt, new), many
    load = round(os.getloadavg()[0], 1)
    versions = {name: version(name) for name in ("torch", "transformers", "numba")} | {
        "python": platform.python_version()
    }
    with tempfile.TemporaryDirectory() as folder:
        llamas = []
        for kind in ({"fp32": "f32", "bf16": "bf16"}[options.dtype], "q8_0") if options.llama else ():
            path = Path(folder) / f"{kind}.gguf"
            write_gguf(path, config, weights, kind)
            llamas.append(Llama(options.llama, path, torch.get_num_threads(), prompt, new, max(many)))
            cells[f"llama.cpp, {kind}"], versions["llama-cpp-python"] = (llamas[-1], many), llamas[-1].version
        found, memory = measure(cells, options.rounds, device)
        for llama in llamas:
            llama.process.terminate()
    rate = statistics.median(memory)
    rows_of_table, cells_out = [], []
    for count in many:
        each = {name: summary(of[count], count, len(prompt)) for name, of in found.items() if count in of}
        mine = [name for name in each if name.startswith("transformers")]
        for name, rates in each.items():

            def over(rival: list[list[float]], key: str, rates: dict[str, Any] = rates) -> float:
                """The median over rounds of this cell over the best of its rivals."""
                best = [max(values) for values in zip(*rival, strict=True)]
                return statistics.median(a / b for a, b in zip(rates[key], best, strict=True))

            decode = over([each[rival]["decode"] for rival in mine], "decode")
            alone = [summary(found[rival][1], 1, len(prompt))["decode"] for rival in mine if 1 in found[rival]]
            serial = over(alone, "decode") if alone else None
            prefill = over([each[rival]["prefill"] for rival in mine], "prefill")
            tokens = {key: statistics.median(rates[key]) for key in ("prefill", "decode")}
            half = 1 if "int8" not in name and "q8_0" not in name else torch.finfo(dtype).bits / 8
            share = statistics.median(a / count * size / half / b for a, b in zip(rates["decode"], memory, strict=True))
            cells_out.append(
                {"cell": name, "rows": count, "rates": rates, "decode_over_transformers": decode,
                 "decode_over_transformers_one_by_one": serial, "prefill_over_transformers": prefill,
                 "of_memory_rate": share}
            )  # fmt: skip
            rows_of_table.append(
                [count, name, f"{tokens['decode']:.1f}", f"{decode:.2f}", f"{serial:.2f}" if serial else "",
                 f"{100 * share:.0f} %", f"{tokens['prefill']:.0f}", f"{prefill:.2f}"]
            )  # fmt: skip
    head = ["requests", "cell", "decode tokens/s", "over transformers", "over it one by one", "of memory's rate",
            "prefill tokens/s", "over transformers"]  # fmt: skip
    print(table(head, rows_of_table))
    print(f"memory is read at {rate / 1e9:.1f} GB/s; the weights of a step are {size / 1e9:.2f} GB")
    where = torch.cuda.get_device_name() if device == "cuda" else _processor()
    about = {
        "shape": options.shape, "dtype": options.dtype, "device": where, "threads": torch.get_num_threads(),
        "prompt": len(prompt), "new": new, "rounds": options.rounds, "load_average": load,
        "memory_bytes_per_second": memory, "weight_bytes": size, "parameters": sum(w.numel() for w in weights.values()),
    }  # fmt: skip
    name = "" if options.dtype == "bf16" and options.shape == "reference" else f"-{options.dtype}-{options.shape}"
    out = options.out or Path(__file__).parent / "results" / f"decode-{device}{name}.json"
    write_json(out, {"settings": about, "versions": versions, "cells": cells_out})


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
