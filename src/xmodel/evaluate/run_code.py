"""HumanEval's answers carried out: each with its tests, in a process of its own, only where `--run-code` asks for it.

An answer passes as in the metric `code_eval` of Hugging Face's evaluate: prompt, answer and tests run as one program in
an empty namespace and come to their end within three seconds. That metric is a script of the hub, which the harness
loads when it reads the task; this needs no network.

The processes have bounds (memory, size of files, time), an empty folder and no environment variables of the caller; to
start others, to remove or move files and to connect anywhere is refused (`code_eval` takes most of these away, too).
They are no sandbox: what they run may read, and write to, whatever the user may.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import Any

SECONDS = 3.0
# Reads the program from standard input; says the word of its argument behind it, on a copy of standard output that the
# program does not know: ending early, by whatever means, does not pass.
CHILD = """
import os, resource, sys
for limit, most in ((resource.RLIMIT_AS, 4 << 30), (resource.RLIMIT_FSIZE, 64 << 20), (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(limit, (most, most))
refused = {"subprocess.Popen", "socket.connect", "socket.bind", "shutil.rmtree", "shutil.move"}
taken = "system exec fork forkpty posix_spawn kill killpg remove rename rmdir truncate chmod chown chdir link"
refused |= {"os." + name for name in taken.split()}
def hook(event, arguments):
    if event in refused:
        raise PermissionError(event)
word, told, nowhere = sys.argv.pop(), os.dup(1), os.open(os.devnull, os.O_WRONLY)
os.dup2(nowhere, 1), os.dup2(nowhere, 2)
program = compile(sys.stdin.read(), "answer", "exec")
sys.addaudithook(hook)
exec(program, {})
os.write(told, word.encode())
"""


def passes(program: str, seconds: float = SECONDS) -> bool:
    """Whether a program runs to its end in time, without an exception."""
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", CHILD, word],
            cwd=folder,
            env={"PATH": os.defpath, "LANG": "C.UTF-8"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(program.encode("utf-8", "replace"), timeout=seconds)
        except subprocess.TimeoutExpired:
            said = b""
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and all that it has started
            process.communicate()
    return said == word.encode()


@cache
def _outcome(program: str) -> bool:
    return passes(program)


def build_predictions(resps: Sequence[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The harness's filter of that name: the prompt before each answer. All are run here, several at a time."""
    programs = [[doc["prompt"] + answer for answer in answers] for answers, doc in zip(resps, docs, strict=True)]
    whole = [
        with_tests(program, f"{doc['test']}\ncheck({doc['entry_point']})")
        for answers, doc in zip(programs, docs, strict=True)
        for program in answers
    ]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(_outcome, dict.fromkeys(whole)))
    return programs


def pass_at_k(references: Sequence[str], predictions: Sequence[Sequence[str]], **_: Any) -> dict[str, float]:
    """The harness's metric of that name for k = 1: the share of the answers that pass."""
    outcomes = [
        _outcome(with_tests(one, tests)) for tests, each in zip(references, predictions, strict=True) for one in each
    ]
    return {"pass@1": sum(outcomes) / len(outcomes)}


def with_tests(program: str, tests: str) -> str:
    return f"{program}\n{tests}"
