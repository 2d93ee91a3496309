"""Who carries out the work: this process, a pool of processes on this machine, or a Ray cluster.

A runner takes a function and items and yields (item, result) in the order in which they are finished. The function can
be repeated safely, so a worker that dies costs the item that it was at, which another one takes over.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any, TypeVar

from xmodel.console import log
from xmodel.errors import MachineError, UserError, XmodelError

Item = TypeVar("Item")
Result = TypeVar("Result")
Runner = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[tuple[Any, Any]]]

ATTEMPTS = 3  # at an item whose worker dies


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def here(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
    """One item after the other, in this process."""
    for item in items:
        yield item, function(item)


def in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[tuple[Item, Result]]:
    """Every item in one of `workers` processes, which are started for it.

    Raises:
        XmodelError, ...: what the function raised, from the first item that fails.
        MachineError: an item's worker died `ATTEMPTS` times.
    """
    context = multiprocessing.get_context("spawn")  # forked threads (Arrow's, numba's) do not survive
    waiting, deaths = deque(range(len(items))), dict.fromkeys(range(len(items)), 0)
    busy: dict[Any, tuple[Any, int | None]] = {}  # pipe -> the process, and the item that it is at

    def start() -> None:
        mine, theirs = context.Pipe()
        process = context.Process(target=_work, args=(function, theirs), daemon=True)
        process.start()
        theirs.close()
        busy[mine] = (process, None)

    def feed(pipe: Any) -> None:
        process, _ = busy[pipe]
        number = waiting.popleft() if waiting else None
        busy[pipe] = (process, number)
        if number is not None:
            pipe.send(items[number])

    try:
        for _ in range(min(workers, len(items))):
            start()
        for pipe in list(busy):
            feed(pipe)
        while any(number is not None for _, number in busy.values()):
            waited: list[Any] = wait([pipe for pipe, (_, number) in busy.items() if number is not None])
            for pipe in waited:
                process, number = busy[pipe]
                assert number is not None
                try:
                    failed, result = pipe.recv()
                except (EOFError, ConnectionResetError):
                    process.join()
                    del busy[pipe]
                    deaths[number] += 1
                    _told_of_death(process.exitcode, deaths[number], items[number])
                    waiting.appendleft(number)
                    start()
                    feed(list(busy)[-1])
                    continue
                if failed:
                    raise result
                feed(pipe)
                yield items[number], result
    finally:
        for process, _ in busy.values():
            process.kill()
            process.join()


def _told_of_death(code: int | None, deaths: int, item: object) -> None:
    how = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
    if deaths == ATTEMPTS:
        raise MachineError(
            f"corpus: a worker {how}, {ATTEMPTS} times at the same work ({item}). If memory ran out, lower "
            "corpus.workers; the same command goes on"
        )
    log(f"corpus: a worker {how}; what it was at is done again")


def _work(function: Callable[[Any], Any], pipe: Any) -> None:
    """The life of a worker process: it ends with its parent, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        try:
            answer = (False, function(item))
        except Exception as error:  # raised again by the parent
            if not isinstance(error, XmodelError):
                error.add_note(f"in a worker process:\n{traceback.format_exc()}")
            answer = (True, error)
        pipe.send(answer)


def on_ray(function: Callable[[Item], Result], items: Sequence[Item], address: str) -> Iterator[tuple[Item, Result]]:
    """Every item as a task of a Ray cluster, whose nodes share the run directory and the sources under the same paths.

    Args:
        address: of the cluster ("auto", "ray://host:10001", ...); "local" starts one on this machine.

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise UserError("--ray needs Ray: pip install 'xmodel[ray]'") from None
    begun = not ray.is_initialized()
    if begun:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        except ConnectionError as error:
            raise UserError(f"--ray {address}: no Ray cluster answers there ({error})") from None
    try:

        def carry_out(item: Item) -> Result:
            return function(item)

        task = ray.remote(num_cpus=1, max_retries=ATTEMPTS)(carry_out)
        waiting = deque(items)
        running: dict[Any, Item] = {}
        while waiting or running:
            while waiting and len(running) < 4 * max(1, int(ray.cluster_resources().get("CPU", 1))):
                item = waiting.popleft()
                running[task.remote(item)] = item
            done, _ = ray.wait(list(running), num_returns=1)
            try:
                yield running.pop(done[0]), ray.get(done[0])
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, XmodelError | OSError) else error from None
            except ray.exceptions.RayError as error:  # a worker or a node that died too often
                raise MachineError(f"corpus: Ray could not carry out the work ({error})") from None
    finally:
        if begun:
            ray.shutdown()
