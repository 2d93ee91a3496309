"""A profile on demand: a training process that finds a number of steps in `RUN/profile.request` profiles so many.

`xmodel pretrain RUN --profile 5` writes the file, for a run that begins and for one that another process trains.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from xmodel.console import log
from xmodel.files import PARTIAL, atomic_write
from xmodel.pretrain.parallel import Place

REQUEST = "profile.request"
WARM_UP = 2  # steps that the profiler sees and forgets: its own start is slow
ROWS = 60


class Profiler:
    """Watches for requests at log lines; on the first rank only."""

    def __init__(self, run_folder: Path, place: Place, last_step: int) -> None:
        self.folder, self.request = run_folder / "profile", run_folder / REQUEST
        self.device, self.first = place.device, place.first
        self.last_step = last_step
        self.running: Any = None
        self.left = 0

    def step(self, step: int, look: bool) -> None:
        """To be called after every step; `look`: see whether a profile is asked for."""
        if self.running is not None:
            self.running.step()
            self.left -= 1
            if self.left == 0:
                self.running.stop()
                self.running = None
        elif look and self.first and self.request.exists():
            self._start(step)

    def _start(self, step: int) -> None:
        asked = self.request.read_text(encoding="utf-8").strip()
        self.request.unlink()
        if not asked.isdigit() or not int(asked):
            log(f"pretrain: {self.request} holds {asked!r}, not a number of steps; no profile is made")
            return
        steps = min(int(asked), self.last_step - step - WARM_UP)
        if steps < 1:
            log(f"pretrain: too few steps are left for a profile, which begins with {WARM_UP} that warm up")
            return
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        first, last = step + WARM_UP + 1, step + WARM_UP + steps
        self.left = WARM_UP + steps
        self.running = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(wait=0, warmup=WARM_UP, active=steps, repeat=1),
            on_trace_ready=lambda profile: self._write(profile, first, last),
        )
        self.running.start()
        log(f"pretrain: steps {first} to {last} are profiled")

    def _write(self, profile: Any, first: int, last: int) -> None:
        """trace.json for chrome://tracing and Perfetto, operators.txt for reading."""
        self.folder.mkdir(exist_ok=True)
        partial = self.folder / f"trace.json{PARTIAL}"
        profile.export_chrome_trace(str(partial))
        os.replace(partial, self.folder / "trace.json")
        key = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        averages = profile.key_averages()
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        with atomic_write(self.folder / "operators.txt", "w") as stream:
            stream.write(f"Steps {first} to {last} on {device}, torch {torch.__version__}. `Self` leaves out what an ")
            stream.write("operator calls.\n\n")
            stream.write(averages.table(sort_by=key, row_limit=ROWS, max_name_column_width=60))
        log(f"pretrain: profile of steps {first} to {last} stands in {self.folder}")
