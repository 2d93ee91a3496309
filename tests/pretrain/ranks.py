"""Real training runs with several ranks over gloo, without starting Python for each: one process imports, then forks.

Run as a program: `python ranks.py JOB.json`; a job lists runs, see `main`. Kept apart from pytest, whose process has
threads by then and must not fork.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch._dynamo  # an optimizer imports it: better once than in every fork

from xmodel.errors import XmodelError
from xmodel.files import checksum, write_json
from xmodel.model.transformer import Transformer
from xmodel.pretrain import loop
from xmodel.pretrain.data import TrainingData
from xmodel.recipe.settings import Corpus, Model, Pretrain, Recipe, Source

SHAPE = Model(layers=2, heads=2, kv_heads=1, hidden=16, ffn=24, context_length=16, position_table=16, vocab_size=65)
TRAIN = Pretrain(
    steps=16, global_batch=12, micro_batch=1, peak_lr=3e-3, final_lr=3e-4, warmup_steps=2, precision="fp32",
    compile="off", device="cpu", eval_every=3, eval_tokens=200, save_every=100, log_every=1, trackers=[],
    timeout_minutes=1,
)  # fmt: skip


def make_tokens(folder: Path) -> None:
    """A tokens folder of two sources and a held-out text, from a fixed seed."""
    random = np.random.default_rng(0)
    manifest: dict[str, Any] = {"bos": False, "vocab_size": 65, "dtype": "uint16", "tokenizer": "made up"}
    for split, names in (("train", ("a", "b")), ("validation", ("en",))):
        (folder / split).mkdir(parents=True)
        manifest[split] = {}
        for name in names:
            file = folder / split / f"{name}-00000.bin"
            random.integers(0, 65, 1500).astype("<u2").tofile(file)
            np.array([1500], "<i8").tofile(file.with_suffix(".ends"))
            entry = {"file": f"{split}/{file.name}", "tokens": 1500, "checksum": checksum(file)}
            entry["ends_checksum"] = checksum(file.with_suffix(".ends"))
            manifest[split][name] = {"tokens": 1500, "shards": [entry]}
    np.full(65, 2, "<u2").tofile(folder / "piece-bytes.bin")
    manifest["piece_bytes"] = {"file": "piece-bytes.bin", "checksum": checksum(folder / "piece-bytes.bin")}
    write_json(folder / "manifest.json", manifest)


def recipe(**settings: Any) -> Recipe:
    sources = [Source(name="a", weight=0.7), Source(name="b", weight=0.3)]
    return Recipe(corpus=Corpus(sources=sources), model=replace(SHAPE), pretrain=replace(TRAIN, **settings))


def rank_main(run: dict[str, Any], tokens: Path, folder: Path, rank: int, port: int) -> None:
    """One rank of one run; leaves by os._exit with 0, or the error's exit code."""
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": run["world"], "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in environment.items()} | {"MASTER_ADDR": "127.0.0.1"}
    plain_batch, plain_forward, calls = TrainingData.batch, Transformer.forward, {"train": 0}

    def batch(
        self: TrainingData, step: int, settings: Pretrain, rank: int, world: int, left_out: int = 0
    ) -> np.ndarray:
        rows = plain_batch(self, step, settings, rank, world, left_out)
        digests = [hashlib.sha256(row.tobytes()).hexdigest()[:12] for row in rows]
        with open(folder / f"batches-{rank}.jsonl", "a") as stream:
            stream.write(json.dumps({"batch": step - 1 + left_out // settings.global_batch, "rows": digests}) + "\n")
        return rows

    def forward(self: Transformer, *inputs: Any, **named: Any) -> torch.Tensor:
        """As it is, except that some passes of one rank return what `run["faults"]` says."""
        out = plain_forward(self, *inputs, **named)
        if self.training:
            fault = run.get("faults", {}).get(str(calls["train"])) if rank == run["world"] - 1 else None
            calls["train"] += 1
            if fault == "nan":
                return out * torch.nan
            if fault == "inf":  # the gradients stay finite
                return out + torch.inf
            if fault == "spike":
                return out * 50
        return out

    def score(model: Transformer) -> list[dict[str, Any]]:
        """Only the first rank is asked: it has to be able to use the model alone."""
        for length in (5, 9):
            hidden = model.hidden(torch.zeros(1, length, dtype=torch.int64))
            assert model.head(hidden).isfinite().all()
        if run.get("stop") and calls["train"] > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return []

    TrainingData.batch, Transformer.forward = batch, forward  # type: ignore[method-assign]
    loop.peak_flops = lambda device, dtype: (1e12, "not measured")  # which takes a third of a second
    try:
        loop.pretrain(recipe(**run.get("settings", {})), tokens, folder, score)
        code = 0
    except XmodelError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stderr.flush()
    os._exit(code)


def free_port() -> int:
    """A port for ranks to meet at: below those that Linux gives to whoever asks for any one, meanwhile."""
    while True:
        port = Random().randrange(20_000, 32_000)
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port


def start(run: dict[str, Any], tokens: Path) -> list[int]:
    """Fork the ranks of a run; their process ids."""
    folder = Path(run["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    port, children = free_port(), []
    for rank in range(run["world"]):
        child = os.fork()
        if child == 0:
            rank_main(run, tokens, folder, rank, port)
        children.append(child)
    return children


def ended(children: list[int]) -> list[int]:
    """Wait for all; their exit codes, negative for a signal."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def chaos(run: dict[str, Any], tokens: Path) -> dict[str, float]:
    """Start the run again and again and kill it at random moments, then let it end; what was done to it.

    Moments: before the first step, after a random number of steps, or while a checkpoint is being written. Victims: all
    ranks, one rank (the others have to end by themselves), or one rank by SIGTERM (all have to save and leave).
    """
    random = Random(run["seed"])
    folder = Path(run["folder"])
    done = {
        "kill_all": 0,
        "kill_one": 0,
        "terminate_one": 0,
        "while_saving": 0,
        "before_a_step": 0,
        "survivor_seconds": 0.0,
    }
    wanted = run["kills"]
    while wanted:
        rows = lines(folder)
        children = start(run, tokens)
        moment = random.choices(("steps", "saving", "starting"), (5, 4, 1))[0]
        target = rows + random.randint(2, 6)
        how = random.choice(("kill_all", "kill_one", "terminate_one")) if run["world"] > 1 else "kill_all"
        if moment == "starting":
            time.sleep(random.random() * 0.5)
        while moment != "starting" and (left := os.waitpid(children[0], os.WNOHANG)) == (0, 0):
            saving = moment == "saving" and any((folder / "checkpoints").glob("*.partial"))
            if lines(folder) >= target and (saving or moment == "steps"):
                break
            time.sleep(0.0005)
        else:
            if moment != "starting":  # it came to its end: nothing is left to kill
                codes = [os.waitstatus_to_exitcode(left[1]), *ended(children[1:])]
                assert set(codes) == {0}, ("not killed", moment, codes)
                return done
        time.sleep(random.random() * 0.01)
        in_save = any((folder / "checkpoints").glob("*.partial"))
        victims = children if how == "kill_all" else [random.choice(children)]
        for victim in victims:
            os.kill(victim, signal.SIGTERM if how == "terminate_one" else signal.SIGKILL)
        killed = time.perf_counter()
        codes = ended(children)
        expected = {"kill_all": {-9, 0}, "kill_one": {-9, 1, 0}, "terminate_one": {75, -15, 1, 0}}[how]
        assert set(codes) <= expected, (how, moment, codes)
        done["survivor_seconds"] = max(done["survivor_seconds"], round(time.perf_counter() - killed, 2))
        done[how] += 1
        done["while_saving"] += in_save
        done["before_a_step"] += lines(folder) <= rows
        wanted -= 1
    assert set(ended(start(run, tokens))) == {0}
    return done


def hang(run: dict[str, Any], tokens: Path) -> dict[str, int]:
    """Stop one of two ranks after some steps: exit code of the other, which has to give up by itself."""
    waiting, hung = start(run, tokens)
    while lines(Path(run["folder"])) < 4:
        time.sleep(0.01)
    os.kill(hung, signal.SIGSTOP)
    (code,) = ended([waiting])
    os.kill(hung, signal.SIGKILL)
    ended([hung])
    return {"code": code}


def lines(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def main(job_file: Path) -> None:
    """Carry out a job: {"tokens": folder, "runs": [{"folder", "world", "settings", "stop", "faults", "codes"}]}.

    `stop`: SIGTERM to the first rank at the first evaluation after training began. `faults`: {number of the training
    pass of the last rank (0: the dry run): "nan" | "inf" | "spike"}. `codes`: exit codes that are expected, [0] if
    absent. `kills`, `seed`: see `chaos`; `hang`: see there. What these did is printed as a line of JSON.
    """
    job = json.loads(job_file.read_text())
    tokens = Path(job["tokens"])
    if not tokens.exists():
        make_tokens(tokens)
    torch.set_num_threads(1)
    for run in job["runs"]:
        if "kills" in run or "hang" in run:
            print(json.dumps(chaos(run, tokens) if "kills" in run else hang(run, tokens)), flush=True)
            continue
        codes = set(ended(start(run, tokens)))
        assert codes <= set(run.get("codes", [0])), (run, codes)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
