"""What an export of the 1.1B model costs: seconds and the most memory, of a process of its own for each format.

    python benchmarks/export.py --folder /disk/to/measure

The reference shape (1,188,136,960 parameters) with random weights is written as a run's checkpoint in float32 (4.8 GB),
with a tokenizer of 32,000 pieces trained on generated words. Then each export runs as `xmodel export ...` does, and its
process says how long it took, its processor time, and the peak of its resident memory (VmHWM of /proc/self/status).
Beside it the way of a plain script: transformers loads the checkpoint and saves it again. The file system's cache is
warm on all sides: the checkpoint was just written. Needs 15 GB of disk.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from xmodel.console import table
from xmodel.files import write_json
from xmodel.model.checkpoint_io import WEIGHTS, write_config
from xmodel.model.transformer import Transformer
from xmodel.model.weight_stream import write_safetensors
from xmodel.recipe.settings import Model
from xmodel.recipe.settings import Tokenizer as TokenizerSettings
from xmodel.tokenizer.train import train

SHAPE = Model(layers=24, hidden=2048, heads=32, kv_heads=4, ffn=5632, vocab_size=32_000, context_length=4096)
MEASURED = """
import sys, time
from pathlib import Path
began, processor = time.perf_counter(), time.process_time()
{body}
peak = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
print(f"\\n{{time.perf_counter() - began}} {{time.process_time() - processor}} {{int(peak) * 1024}}")
"""
COMMAND = """
from xmodel.cli.main import cli
cli.main({arguments!r}, standalone_mode=False)
"""
PLAIN = """
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({checkpoint!r}, dtype=torch.bfloat16)
model.save_pretrained({out!r})
"""


def make_run(folder: Path) -> Path:
    """A run with the reference model's checkpoint, random weights, and a tokenizer of its size; the checkpoint."""
    checkpoint = folder / "checkpoints" / "step-000000001"
    checkpoint.mkdir(parents=True)
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in Transformer(SHAPE).state_dict().items()}
    draw = torch.Generator().manual_seed(0)
    tensors = (torch.empty(shape).normal_(0, 0.02, generator=draw) for shape in shapes.values())
    write_safetensors(checkpoint, shapes, tensors, torch.float32, 1 << 60)
    write_config(SHAPE, torch.float32, checkpoint)
    letters, chance = "etaoinshrdlucmfwypvbgkjqxz", random.Random(0)
    words = ["".join(chance.choices(letters, k=chance.randint(2, 9))) for _ in range(60_000)]
    texts = [" ".join(chance.choices(words, k=400)) for _ in range(2_000)]
    settings = TokenizerSettings(vocab_size=SHAPE.vocab_size, model_type="shortest")
    train(texts, settings, folder / "tokenizer", seed=0)
    (folder / "recipe.yaml").write_text(
        "name: reference\nmodel: {preset: xl}\n"
        "corpus: {sources: [{name: none, reader: sandbox, paths: [en], weight: 1.0, documents: 9}]}\n"
    )
    return checkpoint


def measure(body: str, out: Path) -> dict[str, Any]:
    """Run Python code in a process of its own; what it wrote is removed."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURED.format(body=body)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    seconds, processor, peak = done.stdout.strip().splitlines()[-1].split()
    files = [out] if out.is_file() else sorted(out.rglob("*"))
    size = sum(file.stat().st_size for file in files if file.is_file())
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    return {
        "seconds": round(float(seconds), 1),
        "processor_seconds": round(float(processor), 1),
        "peak_GB": round(int(peak) / 1e9, 2),
        "written_GB": round(size / 1e9, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: the temporary one)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "export.json")
    options = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    load = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        run, out = Path(scratch) / "run", Path(scratch) / "out"
        checkpoint = make_run(run)
        size = (checkpoint / WEIGHTS).stat().st_size
        for name, more in {
            "hf bf16": ["hf", "--dtype", "bf16"],
            "hf bf16, shards of 500 MB": ["hf", "--dtype", "bf16", "--shard-size", "500MB"],
            "hf fp32": ["hf", "--dtype", "fp32"],
            "gguf f16": ["gguf", "--type", "f16"],
            "gguf bf16": ["gguf", "--type", "bf16"],
            "gguf q8_0": ["gguf", "--type", "q8_0"],
        }.items():
            path = out.with_suffix(".gguf") if more[0] == "gguf" else out
            arguments = ["export", more[0], str(checkpoint), "--out", str(path), *more[1:]]
            rows[name] = measure(COMMAND.format(arguments=arguments), path)
            path.with_suffix(".Modelfile").unlink(missing_ok=True)
        body = PLAIN.format(checkpoint=str(checkpoint), out=str(out))
        rows["transformers: load, save_pretrained, bf16"] = measure(body, out)
    print(table(["export", *next(iter(rows.values()))], [[name, *row.values()] for name, row in rows.items()]))
    facts = {name: version(name) for name in ("torch", "safetensors", "gguf", "transformers")}
    facts |= {"python": platform.python_version()}
    settings = {"parameters": 1_188_136_960, "checkpoint_bytes": size, "cores": os.cpu_count(), "load_average": load}
    write_json(options.out, {"settings": settings, "versions": facts, "exports": rows})


if __name__ == "__main__":
    main()
