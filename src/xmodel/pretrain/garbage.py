"""Python's garbage collector, held back during the steps."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def garbage_held_back() -> Iterator[Callable[[], int]]:
    """No collection starts by itself; the caller collects when nothing waits for it, by what this yields.

    A step makes few cycles of objects, but a collection walks over all that the process has ever made: some hundred
    milliseconds at any moment, and another one on every rank, for which the others wait. What exists already is set
    aside (`gc.freeze`), so that a collection looks only at what was made since. All is as before at the end.
    """
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield gc.collect
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()
