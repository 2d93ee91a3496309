"""Asking a run to stop: signals set a flag that the loop looks at between steps, and all ranks agree."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from xmodel.pretrain.parallel import Place


@contextmanager
def stop_signal() -> Iterator[dict[str, bool]]:
    """SIGTERM and Ctrl-C set a flag that the loop looks at between steps; a second Ctrl-C stops at once."""
    stop = {"asked": False}

    def ask(signum: int, frame: Any) -> None:
        if stop["asked"] and signum == signal.SIGINT:
            raise KeyboardInterrupt
        stop["asked"] = True

    old = {which: signal.signal(which, ask) for which in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for which, handler in old.items():
            signal.signal(which, handler)


def agreed_stop(stop: dict[str, bool], place: Place, meeting: bool) -> bool:
    """Whether to stop after this step. Several ranks agree at meeting steps only: it costs them a collective."""
    if place.world == 1:
        return stop["asked"]
    if not meeting:
        return False
    asked = torch.tensor(float(stop["asked"]), device=place.device)
    return place.sum(asked).item() > 0
