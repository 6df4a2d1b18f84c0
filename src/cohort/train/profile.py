"""`profile: true`: a trace of a few steps for Perfetto, and where their time went."""

from __future__ import annotations

import atexit
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from cohort.config import TrainingConfig
from cohort.types import printable

log = logging.getLogger("cohort")

TRACE = "trace.json"
TABLE = "profile.txt"
STEPS = 2
"""Steps in the trace. One step before them warms up, where the run has more than one."""
TOP = 12
"""Operations in the table."""
GPU_MEGABYTES = 2047
"""Memory for records of the GPU's work, taken as it fills; the most that fits a 32-bit number of bytes. A decoding step
makes some hundred records a layer: with Kineto's own 128 MB a trace ends among the first tokens."""
CUT = "The GPU's part of the trace is not whole: its records filled {} MB. Trace shorter or fewer completions."
PHASES = {
    "generate": "seconds/generate",
    "reward": "seconds/reward",
    "score (reference)": "seconds/reference",
    "score (teacher)": "seconds/teacher",
    "score (values)": "seconds/values",
    "update": "seconds/update",
}


def profilers(config: TrainingConfig) -> list[Profiler]:
    """The callback for `profile`."""
    return [Profiler(Path(config.output_dir))] if config.profile else []


class Profiler:
    """A callback that traces the second and third step of a run, a resumed one's too."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.rows: list[dict[str, float]] = []
        self.running: profile | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        left = state.max_steps - state.global_step
        self.first = state.global_step + min(1, max(0, left - 1))
        self.last = min(state.max_steps, self.first + STEPS)
        self._start_if_due(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.running is not None:
            self.rows.append(state.log_history[-1])
            if state.global_step >= self.last:
                self._stop()
        else:
            self._start_if_due(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.running is not None:
            self._stop()

    def _start_if_due(self, step: int) -> None:
        if step == self.first and self.first < self.last:
            on_gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            if on_gpu:
                make_room_for_records()
                torch.cuda.synchronize()  # what earlier steps launched is not of this one
            self.running = profile(activities=[ProfilerActivity.CPU, *on_gpu])
            self.running.start()

    def _stop(self) -> None:
        assert self.running is not None
        self.running.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.running.export_chrome_trace(str(self.folder / TRACE))
        steps = f"steps {self.first + 1} to {self.first + len(self.rows)}"
        text = "\n".join([f"Profile of {steps}", "", *phase_lines(self.rows), "", *operation_lines(self.running)])
        if gpu_records_ended():
            log.warning(CUT.format(GPU_MEGABYTES))
            text += "\n\n" + CUT.format(GPU_MEGABYTES)
        (self.folder / TABLE).write_text(text + "\n", encoding="utf-8")
        print(printable(f"{text}\n\nThe trace, for https://ui.perfetto.dev: {self.folder / TRACE}"))
        self.running = None


def make_room_for_records() -> None:
    """Let PyTorch's profiler keep GPU_MEGABYTES of records, unless the user has configured it. Kineto reads the name of
    its configuration once in a process, before its first trace, and the file before each."""
    if "KINETO_CONFIG" in os.environ:
        return
    handle, name = tempfile.mkstemp(prefix="cohort-kineto-", suffix=".conf")
    os.write(handle, f"ACTIVITIES_MAX_GPU_BUFFER_SIZE_MB={GPU_MEGABYTES}\n".encode())
    os.close(handle)
    os.environ["KINETO_CONFIG"] = name
    atexit.register(Path(name).unlink, missing_ok=True)


def gpu_records_ended() -> bool:
    """Whether the last trace ran out of room for records of the GPU."""
    has_ended = getattr(torch.autograd, "_is_kineto_stopped", None)
    return torch.cuda.is_available() and has_ended is not None and bool(has_ended())


def phase_lines(rows: list[dict[str, float]]) -> list[str]:
    """A line with the seconds and the share of each phase."""
    whole = sum(row["seconds/step"] for row in rows)
    spent = {name: sum(row.get(key, 0.0) for row in rows) for name, key in PHASES.items()}
    spent = {name: seconds for name, seconds in spent.items() if seconds}
    spent["other"] = max(0.0, whole - sum(spent.values()))
    lines = [f"{'phase':<20}{'seconds':>10}{'share':>8}"]
    return lines + [f"{name:<20}{seconds:>10.3f}{seconds / whole:>8.1%}" for name, seconds in spent.items()]


def operation_lines(found: profile) -> list[str]:
    """Lines with the operations that took the most time themselves, on the GPU where there is one."""
    events = found.key_averages()
    on_gpu = any(event.self_device_time_total for event in events)
    # Annotations of phases are in the trace; here they would count what runs inside them.
    names = {"generate", "reward", "reference", "update"}

    def own(event: Any) -> float:
        return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6

    ordered = sorted((event for event in events if event.key not in names), key=own, reverse=True)[:TOP]
    whole = sum(own(event) for event in events) or 1.0
    lines = [f"{'operation':<44}{'seconds':>10}{'share':>8}{'calls':>10}"]
    return lines + [f"{e.key[:43]:<44}{own(e):>10.3f}{own(e) / whole:>8.1%}{e.count:>10}" for e in ordered]
