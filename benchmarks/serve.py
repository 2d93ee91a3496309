"""The server under load, and what it costs over the bare engine.

    python benchmarks/serve.py RUN              # a run, or a folder with a model: a small one, 2 to 4 minutes

Overhead: one process holds one engine and the server around it, as `xmodel serve` does; its clients
(`serve_clients.py`, asyncio, real sockets) are another process. The same prompts go to the same engine by turns, once
by HTTP and once by `Engine.submit`, with nobody else there, and which comes first alternates. Requests are greedy, and
what the bare engine answered to a prompt is what every client has to get: the same text, the same number of tokens. Of
each request the time per token is (last - first) / (tokens - 1), as the client sees it and as the engine delivers it;
of each turn the median over its requests. A row of the table is the median over pairs of turns of server / engine, with
its 95 % interval (of order statistics: no assumption about the noise), and beside it the same of engine / engine, from
one turn to the next: what the machine alone does. Every client sends its request at once; what does not find a row
waits in the queue.

Where the time goes comes from Linux's own count for each thread: on a processor, and ready but waiting for one, because
the engine, the event loop and the clients share the machine's cores with each other and whatever else runs.

Load: waves of concurrent streams at a server in a process of its own, of which some read slowly and some leave in the
middle. The server's resident memory is read between waves.
"""

from __future__ import annotations

import argparse
import asyncio
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
from importlib.util import find_spec
from itertools import pairwise
from math import comb
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from typing import Any, NamedTuple

import torch

from xmodel.console import log, table
from xmodel.files import write_json
from xmodel.inference.engine import Delta, Engine
from xmodel.inference.fast import prepare
from xmodel.inference.sampling import Sampling
from xmodel.inference.subjects import Subject, open_subject
from xmodel.serve.app import Service
from xmodel.serve.server import bind, listen, serve

HERE = Path(__file__).parent
OVERHEAD = ((16, 1, 40), (16, 16, 30), (16, 200, 5), (200, 200, 5))  # rows, concurrent requests, turns of each
LEAST_TOKENS = 16  # answers that ended earlier say nothing about the time of a token


class Times(NamedTuple):
    """Seconds of a thread since its start."""

    processor: float
    ready: float  # for a processor, which others had

    def since(self, before: Times) -> Times:
        return Times(self.processor - before.processor, self.ready - before.ready)


class Turn(NamedTuple):
    """What a number of requests, all at once, took; seconds."""

    per_token: float  # median over requests
    tokens: int
    wall: float
    engine: Times
    loop: Times
    clients: float = 0.0  # processor time of their process
    events: int = 0


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

    def wave(self, port: int, requests: Sequence[dict[str, Any]]) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        order = {"host": "127.0.0.1", "port": port, "requests": requests}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def stop(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(10)


class Alone(NamedTuple):
    """What the bare engine gave."""

    per_token: float
    wall: float
    longest_first: float  # from the beginning to an answer's first text
    longest_gap: float  # between two texts of an answer
    answers: list[tuple[int, str]]  # of each prompt the number of tokens, and what it says


def bare(engine: Engine, prompts: Sequence[list[int]], new_tokens: int) -> Alone:
    """All prompts at once through the engine."""
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

    began = time.perf_counter()
    for index, prompt in enumerate(prompts):
        engine.submit(prompt, Sampling(new_tokens), receiver(index))
    done.wait()
    wall = time.perf_counter() - began
    spans = [(count, each[-1] - each[0]) for count, each in zip(counts, times, strict=True)]
    answers = [(count, digest("".join(text))) for count, text in zip(counts, texts, strict=True)]
    gap = max(after - before for each in times for before, after in pairwise(each))
    return Alone(per_token(spans), wall, max(each[0] for each in times) - began, gap, answers)


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


class Both:
    """An engine and the server around it, in this process."""

    def __init__(self, subject: Subject, rows: int, clients: Clients) -> None:
        self.engine, self.clients = Engine(subject, rows=rows), clients
        self.service = Service(subject, self.engine)
        self.service.warm_up()
        self.listener = bind("127.0.0.1", 0)
        listen(self.listener)
        self.port = self.listener.getsockname()[1]
        self.stop = asyncio.Event()
        self.loops: SimpleQueue[asyncio.AbstractEventLoop] = SimpleQueue()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self.thread.start()
        self.loop = self.loops.get()

    async def _serve(self) -> None:
        self.loops.put(asyncio.get_running_loop())
        await serve(self.service, self.listener, drain=10, stop=self.stop)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join()
        self.listener.close()

    def alone(self, prompts: Sequence[list[int]], new_tokens: int) -> tuple[Turn, list[tuple[int, str]]]:
        """A turn of the engine, and its answers."""
        before = self._times()
        found = bare(self.engine, prompts, new_tokens)
        tokens = sum(count for count, _ in found.answers)
        return Turn(found.per_token, tokens, found.wall, *self._since(before)), found.answers

    def served(self, requests: Sequence[dict[str, Any]], answers: Sequence[tuple[int, str]]) -> Turn:
        """A turn of the server; every answer has to be the engine's."""
        before = self._times()
        wave = self.clients.wave(self.port, requests)
        times, seen = self._since(before), wave["clients"]
        if errors := wrong(seen, answers):
            raise SystemExit("\n".join(errors))
        time_per_token = per_token([(client["tokens"], client["seconds"]) for client in seen])
        tokens, events = (sum(client[name] for client in seen) for name in ("tokens", "events"))
        return Turn(time_per_token, tokens, wave["seconds"], *times, wave["processor"], events)

    def _times(self) -> tuple[Times, Times]:
        """Of the engine's thread and of the event loop's."""
        engine = next(each for each in threading.enumerate() if each.name == "xmodel-engine")
        return thread_times(engine), thread_times(self.thread)

    def _since(self, before: tuple[Times, Times]) -> tuple[Times, Times]:
        now = self._times()
        return now[0].since(before[0]), now[1].since(before[1])


def thread_times(thread: threading.Thread) -> Times:
    processor, ready, _ = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()
    return Times(int(processor) / 1e9, int(ready) / 1e9)


def overhead(both: Both, prompts: Sequence[list[int]], new_tokens: int, turns: int) -> dict[str, Any]:
    """One row of the table: that many requests at once, by turns through both."""
    requests = [ask(prompt, new_tokens) for prompt in prompts]
    _, answers = both.alone(prompts[:16], new_tokens)
    both.served(requests[:16], answers)  # whatever is new to either is so no more
    _, answers = both.alone(prompts, new_tokens)
    alone, through = [], []
    for number in range(turns):
        if number % 2:
            through.append(both.served(requests, answers))
        turn, again = both.alone(prompts, new_tokens)
        alone.append(turn)
        assert again == answers
        if not number % 2:
            through.append(both.served(requests, answers))
    over = [100 * (ours.per_token / base.per_token - 1) for ours, base in zip(through, alone, strict=True)]
    noise = [100 * (after.per_token / before.per_token - 1) for before, after in pairwise(alone)]
    low, high = interval(over)
    found: dict[str, Any] = {"rows": both.engine.rows, "requests": len(prompts), "turns": turns}
    found["engine ms per token"] = round(1e3 * median(turn.per_token for turn in alone), 3)
    found["server ms per token"] = round(1e3 * median(turn.per_token for turn in through), 3)
    found |= {"overhead %": round(median(over), 1), "from %": round(low, 1), "to %": round(high, 1)}
    found["engine against itself, from %"], found["to %, itself"] = (round(end, 1) for end in interval(noise))
    for name, each in (("engine", alone), ("server", through)):
        found[f"{name}: microseconds per token"] = {
            what: round(1e6 * median(value(turn) / turn.tokens for turn in each), 2)
            for what, value in (
                ("wall", lambda turn: turn.wall),
                ("engine's thread, on a processor", lambda turn: turn.engine.processor),
                ("engine's thread, waiting for a processor", lambda turn: turn.engine.ready),
                ("event loop, on a processor", lambda turn: turn.loop.processor),
                ("event loop, waiting for a processor", lambda turn: turn.loop.ready),
                ("clients, on a processor", lambda turn: turn.clients),
            )
        }
    work = [
        100 * ((ours.engine.processor + ours.loop.processor) / (base.engine.processor + base.loop.processor) - 1)
        for ours, base in zip(through, alone, strict=True)
    ]
    found["overhead % of processor time"] = round(median(work), 1)
    found["processor from %"], found["processor to %"] = (round(end, 1) for end in interval(work))
    found["events per token"] = round(median(turn.events / turn.tokens for turn in through), 3)
    found["pairs %"] = [round(each, 1) for each in over]
    return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Two of the values between which the median lies with 95 % confidence; the extremes where they are few."""
    ordered, number = sorted(values), len(values)
    rank, tail = 0, 2.0**-number
    while number - rank - 1 > rank + 1 and 2 * (tail := tail + comb(number, rank + 1) / 2.0**number) <= 0.05:
        rank += 1
    return ordered[rank], ordered[-1 - rank]


def load(
    engine: Engine, server: Server, clients: Clients, prompts: Sequence[list[int]], new_tokens: int, waves: int
) -> list[dict[str, Any]]:
    """Waves of concurrent streams; of ten clients one reads slowly and one leaves."""
    found = []
    for number in range(waves):
        alone = bare(engine, prompts, new_tokens)  # in another process: the waits that are the model's own
        kinds = ["slow" if i % 10 == 3 else "leaves" if i % 10 == 7 else "healthy" for i in range(len(prompts))]
        requests = [
            ask(prompt, new_tokens, kind, leave_after=1 + i % 8)
            for i, (prompt, kind) in enumerate(zip(prompts, kinds, strict=True))
        ]
        before = server.resident_MB()
        wave = clients.wave(server.port, requests)
        time.sleep(0.3)  # requests whose clients left end
        seen = wave["clients"]
        healthy = [client for client in seen if client["kind"] == "healthy" and not client["error"]]
        log(f"wave {number + 1} of {waves}: {len(wrong(seen, alone.answers))} errors")
        found.append(
            {
                "wave": number + 1,
                "clients": len(seen),
                "errors": wrong(seen, alone.answers),
                "tokens": sum(client.get("tokens", 0) for client in seen),
                "seconds": round(wave["seconds"], 2),
                "longest gap ms": round(1e3 * max(client["longest_gap"] for client in healthy), 1),
                "engine's longest gap ms": round(1e3 * alone.longest_gap, 1),
                "longest first ms": round(1e3 * max(client["wait"] for client in healthy), 1),
                "engine's longest first ms": round(1e3 * alone.longest_first, 1),
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
            answers = bare(engine, drawn, new_tokens).answers
            found += [prompt for prompt, (count, _) in zip(drawn, answers, strict=True) if count == new_tokens]
    return found[:number]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", metavar="RUN|DIR")
    parser.add_argument(
        "--threads", type=int, default=1, help="of the model; the clients need a core, too (%(default)s)"
    )
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--turns", type=float, default=1.0, help="times the usual number of turns")
    parser.add_argument("--waves", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "serve.json")
    options = parser.parse_args()
    began, busy = time.perf_counter(), round(os.getloadavg()[0], 1)
    torch.set_num_threads(options.threads)
    subject = open_subject(options.target)
    subject = subject._replace(model=prepare(subject.model))
    prompts = draw_prompts(subject, max(requests for _, requests, _ in OVERHEAD), options.new_tokens)
    clients, rows = Clients(), []
    for size in dict.fromkeys(rows for rows, _, _ in OVERHEAD):
        both = Both(subject, size, clients)
        for number, turns in ((requests, turns) for rows, requests, turns in OVERHEAD if rows == size):
            turns = max(2, round(options.turns * turns))
            rows.append(overhead(both, prompts[:number], options.new_tokens, turns))
            log(f"{size} rows, {number} requests: {rows[-1]['overhead %']:+} % a token")
        both.close()
    size = OVERHEAD[-1][0]
    server = Server(options.target, size, options.threads)
    with Engine(subject, rows=size) as engine:
        waves = load(engine, server, clients, prompts, options.new_tokens, options.waves)
    if code := server.stop():
        raise SystemExit(f"the server ended with {code}:\n" + "".join(server.log))
    clients.stop()
    columns = [name for name, value in rows[0].items() if not isinstance(value, dict | list)]
    print(table(columns, [[row[name] for name in columns] for row in rows]))
    parts = ("engine: microseconds per token", "server: microseconds per token")
    names = ["rows", "requests", "", *rows[0][parts[0]]]
    print(
        table(names, [[row["rows"], row["requests"], part[:6], *row[part].values()] for row in rows for part in parts])
    )
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
        "new_tokens": options.new_tokens, "cores": os.cpu_count(), "load_average": busy,
        "load_average_at_the_end": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    http = "httptools" if find_spec("httptools") else "h11"  # uvicorn's choice
    facts = {name: version(name) for name in ("torch", "starlette", "uvicorn", http)}
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
