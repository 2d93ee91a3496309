"""Figures of the step that the host may not wait for: they are taken on the device and read at a log line.

The norm of an update is exact, whatever the optimizer does: the weights are copied before the steps that are logged,
and subtracted after. The copy is made when the activations are gone, so the peak of memory does not rise.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xmodel.pretrain.optim import global_norm
from xmodel.pretrain.parallel import Place
from xmodel.recipe.settings import Pretrain

PARTS = ("param_norm", "grad_norm", "update_norm")


class Watch:
    """Watches the steps between two log lines. The loop calls, in this order: `batch`, `before`, `after`, `figures`.

    Every rank calls them at the same steps: norms of sharded parameters are collectives.
    """

    def __init__(self, model: nn.Module, settings: Pretrain, place: Place) -> None:
        self.parameters = list(model.parameters())
        self.groups = by_layer(model)
        self.settings, self.device = settings, place.device
        self.norms: dict[str, Tensor] = {}
        self.layer_norms: dict[str, dict[str, Tensor]] = {}
        self.copies: list[Tensor] | None = None
        self.forget()

    def forget(self) -> None:
        """Begin a new interval."""
        self.waited = 0.0
        self.marks: list[tuple[Any, Any]] = []

    def batch(self, batches: Iterator[Tensor]) -> Tensor:
        """The next batch; counts the seconds that the host waits for it, and marks the step's beginning."""
        self.begun = mark(self.device)
        started = time.perf_counter()
        rows_BT = next(batches)
        self.waited += time.perf_counter() - started
        return rows_BT

    def logged(self, step: int) -> bool:
        return step % self.settings.log_every == 0 or step == self.settings.steps

    def by_layer(self, step: int) -> bool:
        return self.settings.norms_every > 0 and step % self.settings.norms_every == 0

    @torch.no_grad()
    def before(self, step: int) -> None:
        """Before clipping and the optimizer's step: copies the weights where their change will be told."""
        if self.by_layer(step):
            self.layer_norms = {"grad_norm": {name: _grad_norm(group) for name, group in self.groups.items()}}
        if self.logged(step) or self.by_layer(step):
            self.copies = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def after(self, step: int) -> None:
        """After the optimizer's step: what it changed. A skipped step has changed nothing."""
        self.marks.append((self.begun, mark(self.device)))
        if self.copies is None:
            return
        for copy, parameter in zip(self.copies, self.parameters, strict=True):
            copy.sub_(parameter)
        self.norms = {"param_norm": global_norm(self.parameters), "update_norm": global_norm(self.copies)}
        if self.by_layer(step):
            place = {id(parameter): index for index, parameter in enumerate(self.parameters)}
            for name, group in self.groups.items():
                changes = [self.copies[place[id(parameter)]] for parameter in group]
                self.layer_norms.setdefault("param_norm", {})[name] = global_norm(group)
                self.layer_norms.setdefault("update_norm", {})[name] = global_norm(changes)
        self.copies = None

    def layers(self, step: int) -> dict[str, Any] | None:
        """The row of norms by layer where it is due; the host waits for the device."""
        if not self.by_layer(step):
            return None
        return {"kind": "layers", "step": step} | {
            part: {name: norm.item() for name, norm in self.layer_norms[part].items()} for part in PARTS
        }

    def figures(self, seconds: float) -> dict[str, float]:
        """Norms, memory, share of the time spent waiting for data, and seconds a step, of `seconds` of steps."""
        times = sorted(seconds_between(*pair) for pair in self.marks)
        figures = {name: norm.item() for name, norm in self.norms.items()}
        figures |= {"data_wait": round(self.waited / max(seconds, 1e-9), 4)} | memory(self.device)
        if times:
            figures |= {
                "step_seconds_median": round(times[len(times) // 2], 4),
                "step_seconds_max": round(times[-1], 4),
            }
        self.forget()
        return figures


def by_layer(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters in groups: `embedding`, `0` ... `23` for the blocks, `norm`, `head`."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if "layers" in parts:
            group = parts[parts.index("layers") + 1]
        else:
            group = {"embed_tokens": "embedding", "lm_head": "head"}.get(parts[-2], parts[-2])
        groups.setdefault(group, []).append(parameter)
    return groups


def _grad_norm(group: list[nn.Parameter]) -> Tensor:
    return global_norm([parameter.grad for parameter in group if parameter.grad is not None])


def mark(device: torch.device) -> Any:
    """This moment in the order of the device's work: on CUDA an event, which nobody waits for, else a clock reading."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(begun: Any, ended: Any) -> float:
    """Seconds from one mark to another; both must have been reached."""
    return ended - begun if isinstance(begun, float) else begun.elapsed_time(ended) / 1000


def memory(device: torch.device) -> dict[str, float]:
    """Highest memory so far, in bytes: allocated and reserved on CUDA, resident on a CPU."""
    if device.type == "cuda":
        return {
            "memory_peak": torch.cuda.max_memory_allocated(device),
            "memory_reserved": torch.cuda.max_memory_reserved(device),
        }
    with contextlib.suppress(OSError, StopIteration):  # ru_maxrss would be inherited from the process before
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return {"memory_peak": 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])}
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"memory_peak": peak if sys.platform == "darwin" else 1024 * peak}
