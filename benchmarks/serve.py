"""The server under load, and what it costs over the bare engine.

    python benchmarks/serve.py RUN              # a run, or a folder with a model: a small one, about 2 minutes

`xmodel serve` runs in a process of its own, its clients (`serve_clients.py`, asyncio) in another, and the bare
`Engine` in this one, with the same rows, threads, prompts and lengths. Requests are greedy, and what the bare engine
answered to a prompt is what every client has to get: the same text, the same number of tokens.

Overhead: server and engine take turns, round by round; of each request the time per token is (last - first) /
(tokens - 1), as the client sees it and as the engine delivers it; of each cell the median over its requests, then
the median over rounds. Every client sends its request at once; what does not find a row waits in the queue.

Load: waves of concurrent streams, of which some read slowly and some leave in the middle. The server's resident memory
is read between waves.
"""

from __future__ import annotations

import argparse
import atexit
import hashlib
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from xmodel.console import log, table
from xmodel.files import write_json
from xmodel.inference.engine import Delta, Engine
from xmodel.inference.fast import prepare
from xmodel.inference.sampling import Sampling
from xmodel.inference.subjects import Subject, open_subject

HERE = Path(__file__).parent
OVERHEAD = ((16, 1), (16, 16), (16, 200), (200, 200))  # rows, concurrent requests
LEAST_TOKENS = 16  # answers that ended earlier say nothing about the time of a token


class Cell(NamedTuple):
    """What a number of requests, all at once, took. Times in seconds."""

    per_token: float  # median over requests
    wall: float
    processor: float  # of the process that ran the model
    tokens: int


class Server:
    """`xmodel serve` in a process of its own."""

    def __init__(self, target: str, rows: int, threads: int) -> None:
        command = [sys.executable, "-m", "xmodel", "serve", target, "--port", "0"]
        command += ["--rows", str(rows), "--threads", str(threads)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
        )
        atexit.register(self.process.kill)  # nothing outlives a benchmark that fails
        self.log: list[str] = []
        assert self.process.stderr
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                break
        else:
            raise SystemExit("the server did not start:\n" + "".join(self.log))
        threading.Thread(target=self.log.extend, args=(self.process.stderr,), daemon=True).start()

    def processor(self, thread: bool = False) -> float:
        """Processor seconds so far: of all its threads, or of the main one, which runs the event loop."""
        tasks = Path(f"/proc/{self.process.pid}/task")
        paths = [tasks / str(self.process.pid)] if thread else tasks.iterdir()
        return sum(int((path / "schedstat").read_text().split()[0]) for path in paths) / 1e9

    def resident_MB(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1000

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


class Clients:
    """The process of the clients."""

    def __init__(self) -> None:
        command = [sys.executable, str(HERE / "serve_clients.py")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        atexit.register(self.process.kill)

    def wave(self, server: Server, requests: Sequence[dict[str, Any]]) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        order = {"host": "127.0.0.1", "port": server.port, "requests": requests}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def stop(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(10)


def bare(engine: Engine, prompts: Sequence[list[int]], new_tokens: int) -> tuple[Cell, list[tuple[int, str]]]:
    """All prompts at once through the engine; also each answer's number of tokens and what it says."""
    times: list[list[float]] = [[] for _ in prompts]
    texts: list[list[str]] = [[] for _ in prompts]
    counts = [0] * len(prompts)
    left, done = len(prompts), threading.Event()

    def receiver(index: int) -> Any:
        def deliver(delta: Delta) -> None:
            nonlocal left
            times[index].append(time.perf_counter())
            texts[index].append(delta.text)
            if delta.finish:
                counts[index] = delta.new_tokens
                left -= 1
                if not left:
                    done.set()

        return deliver

    began, processor = time.perf_counter(), time.process_time()
    for index, prompt in enumerate(prompts):
        engine.submit(prompt, Sampling(new_tokens), receiver(index))
    done.wait()
    wall, processor = time.perf_counter() - began, time.process_time() - processor
    spans = [(count, each[-1] - each[0]) for count, each in zip(counts, times, strict=True)]
    answers = [(count, digest("".join(text))) for count, text in zip(counts, texts, strict=True)]
    return Cell(per_token(spans), wall, processor, sum(counts)), answers


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def per_token(spans: Sequence[tuple[int, float]]) -> float:
    return median(seconds / (count - 1) for count, seconds in spans if count >= LEAST_TOKENS)


def ask(prompt: list[int], new_tokens: int, kind: str = "healthy", leave_after: int = 0) -> dict[str, Any]:
    body = {"prompt": prompt, "max_tokens": new_tokens, "temperature": 0, "stream": True}
    body["stream_options"] = {"include_usage": True}
    return {"kind": kind, "leave_after": leave_after, "body": body}


def wrong(clients: Sequence[dict[str, Any]], answers: Sequence[tuple[int, str]]) -> list[str]:
    """What did not go as it has to, a line each."""
    found = []
    for client, (tokens, text) in zip(clients, answers, strict=True):
        if client["error"]:
            found.append(f"{client['kind']}: {client['error']}")
        elif client["kind"] != "leaves" and (client["tokens"], client["text"]) != (tokens, text):
            found.append(f"{client['kind']}: {client['tokens']} tokens in place of {tokens}, or another text")
    return found


def overhead(
    engine: Engine, server: Server, clients: Clients, prompts: Sequence[list[int]], new_tokens: int, rounds: int
) -> dict[str, Any]:
    """One row of the table: that many requests at once, by turns through both.

    A turn of few requests is short, and a shared machine does not run evenly; these take more turns.
    """
    rounds *= max(1, min(8, 64 // len(prompts)))
    through, alone, loop, client_processor, events = [], [], [], [], []
    bare(engine, prompts[:16], new_tokens)
    clients.wave(server, [ask(prompt, new_tokens) for prompt in prompts[:16]])
    for _ in range(rounds):
        cell, answers = bare(engine, prompts, new_tokens)
        alone.append(cell)
        processor, in_loop = server.processor(), server.processor(thread=True)
        wave = clients.wave(server, [ask(prompt, new_tokens) for prompt in prompts])
        processor, in_loop = server.processor() - processor, server.processor(thread=True) - in_loop
        if errors := wrong(wave["clients"], answers):
            raise SystemExit("\n".join(errors))
        spans = [(client["tokens"], client["seconds"]) for client in wave["clients"]]
        through.append(Cell(per_token(spans), wave["seconds"], processor, cell.tokens))
        loop.append(in_loop / cell.tokens)
        client_processor.append(wave["processor"] / cell.tokens)
        events.append(sum(client["events"] for client in wave["clients"]) / cell.tokens)

    def both(name: str, value: Any, digits: int) -> dict[str, float]:
        pairs = [(value(ours), value(base)) for ours, base in zip(through, alone, strict=True)]
        ratios = [ours / base for ours, base in pairs]
        return {
            f"engine {name}": round(median(base for _, base in pairs), digits),
            f"server {name}": round(median(ours for ours, _ in pairs), digits),
            f"overhead % of {name}": round(100 * (median(ratios) - 1), 1),
            f"lowest % of {name}": round(100 * (min(ratios) - 1), 1),
            f"highest % of {name}": round(100 * (max(ratios) - 1), 1),
        }

    return {
        "rows": engine.rows,
        "requests": len(prompts),
        **both("ms per token", lambda cell: 1e3 * cell.per_token, 3),
        **both("wall ms per token of all", lambda cell: 1e3 * cell.wall / cell.tokens, 4),
        **both("processor ms per token", lambda cell: 1e3 * cell.processor / cell.tokens, 4),
        "loop ms per token": round(1e3 * median(loop), 4),
        "clients ms per token": round(1e3 * median(client_processor), 4),
        "events per token": round(median(events), 3),
    }


def load(
    engine: Engine, server: Server, clients: Clients, prompts: Sequence[list[int]], new_tokens: int, waves: int
) -> list[dict[str, Any]]:
    """Waves of concurrent streams; of ten clients one reads slowly and one leaves."""
    answers = bare(engine, prompts, new_tokens)[1]
    found = []
    for number in range(waves):
        kinds = ["slow" if i % 10 == 3 else "leaves" if i % 10 == 7 else "healthy" for i in range(len(prompts))]
        requests = [
            ask(prompt, new_tokens, kind, leave_after=1 + i % 8)
            for i, (prompt, kind) in enumerate(zip(prompts, kinds, strict=True))
        ]
        before = server.resident_MB()
        wave = clients.wave(server, requests)
        time.sleep(0.3)  # requests whose clients left end
        seen = wave["clients"]
        healthy = [client for client in seen if client["kind"] == "healthy" and not client["error"]]
        log(f"wave {number + 1} of {waves}: {len(wrong(seen, answers))} errors")
        found.append(
            {
                "wave": number + 1,
                "clients": len(seen),
                "errors": wrong(seen, answers),
                "tokens": sum(client.get("tokens", 0) for client in seen),
                "seconds": round(wave["seconds"], 2),
                "longest gap ms": round(1e3 * max(client["longest_gap"] for client in healthy), 1),
                "longest first ms": round(1e3 * max(client["wait"] for client in healthy), 1),
                "RSS before MB": round(before, 1),
                "RSS after MB": round(server.resident_MB(), 1),
            }
        )
    return found


def draw_prompts(subject: Subject, number: int, new_tokens: int) -> list[list[int]]:
    """Prompts of 8 to 40 random tokens that a greedy answer does not end early."""
    chance = random.Random(0)
    ids = range(300, subject.tokenizer.vocab_size)  # behind control and byte pieces
    begin = subject.tokenizer.bos_id if subject.bos else subject.tokenizer.eos_id
    found: list[list[int]] = []
    with Engine(subject, rows=64, queue=4 * number) as engine:
        while len(found) < number:
            drawn = [[begin, *chance.choices(ids, k=chance.randint(8, 40))] for _ in range(number)]
            answers = bare(engine, drawn, new_tokens)[1]
            found += [prompt for prompt, (count, _) in zip(drawn, answers, strict=True) if count == new_tokens]
    return found[:number]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", metavar="RUN|DIR")
    parser.add_argument(
        "--threads", type=int, default=1, help="of the model; the clients need a core, too (%(default)s)"
    )
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--waves", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "serve.json")
    options = parser.parse_args()
    began, busy = time.perf_counter(), round(os.getloadavg()[0], 1)
    torch.set_num_threads(options.threads)
    subject = open_subject(options.target)
    subject = subject._replace(model=prepare(subject.model))
    prompts = draw_prompts(subject, max(requests for _, requests in OVERHEAD), options.new_tokens)
    clients, rows, waves = Clients(), [], []
    for size in dict.fromkeys(rows for rows, _ in OVERHEAD):
        server = Server(options.target, size, options.threads)
        with Engine(subject, rows=size) as engine:
            for number in (requests for rows, requests in OVERHEAD if rows == size):
                rows.append(overhead(engine, server, clients, prompts[:number], options.new_tokens, options.rounds))
                percent = rows[-1]["overhead % of ms per token"]
                log(f"{size} rows, {number} requests: {percent:+} % a token")
            if size == OVERHEAD[-1][0]:
                waves = load(engine, server, clients, prompts, options.new_tokens, options.waves)
        if code := server.stop():
            raise SystemExit(f"the server ended with {code}:\n" + "".join(server.log))
    clients.stop()
    columns = ["rows", "requests", "engine ms per token", "server ms per token", "overhead % of ms per token"]
    columns += ["lowest % of ms per token", "highest % of ms per token", "overhead % of wall ms per token of all"]
    columns += ["overhead % of processor ms per token", "loop ms per token", "clients ms per token", "events per token"]
    print(table(columns, [[row[name] for name in columns] for row in rows]))
    print(
        table(
            [*waves[0]], [[len(cell) if isinstance(cell, list) else cell for cell in wave.values()] for wave in waves]
        )
    )
    for error in dict.fromkeys(error for wave in waves for error in wave["errors"]):
        print(error)
    about = subject.about
    settings = {
        "parameters": about["parameters"], "dtype": about["dtype"], "threads": options.threads,
        "new_tokens": options.new_tokens, "rounds": options.rounds, "cores": os.cpu_count(), "load_average": busy,
    }  # fmt: skip
    facts = {name: version(name) for name in ("torch", "starlette", "uvicorn", "h11")}
    facts |= {"python": platform.python_version()}
    seconds = round(time.perf_counter() - began, 1)
    write_json(
        options.out, {"settings": settings, "versions": facts, "seconds": seconds, "overhead": rows, "load": waves}
    )
    print(f"{seconds} s")
    if any(wave["errors"] for wave in waves):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
