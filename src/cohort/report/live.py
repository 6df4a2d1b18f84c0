"""A training callback that shows the progress of a run: a panel on a terminal, a few lines elsewhere."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from cohort import progress
from cohort.report.console import SafeConsole, can_move, live
from cohort.report.metrics import component_keys
from cohort.report.tables import safe_text
from cohort.report.verdict import verdict
from cohort.world import rank

BARS = "▁▂▃▄▅▆▇█"
LINES = 10
"""Lines that a run prints if the output is not a terminal and the run does not set logging_steps."""

NUMBERS = {
    "reward_std": ("spread within groups", "{:.3f}"),
    "frac_reward_zero_std": ("groups without spread", "{:.0%}"),
    "kl": ("KL to the reference", "{:.4f}"),
    "teacher/kl": ("KL to the teacher", "{:.4f}"),
    "completions/mean_length": ("completion length", "{:.1f} tokens"),
    "tokens_per_second": ("speed", "{:,.0f} tokens/s"),
    "learning_rate": ("learning rate", "{:.2e}"),
}
"""Metric -> (label, format), in the order of the panel."""
THEIRS = {"ProgressCallback", "PrinterCallback", "NotebookProgressCallback"}
"""Classes of transformers that show a run."""
IN_ONE_LINE = ("reward_std", "completions/mean_length", "tokens_per_second")
"""The metrics that are printed in a line."""


def sparkline(values: list[float], width: int = 32) -> str:
    """Values as bars scaled from their minimum to their maximum: [0, 1, 2] -> "▁▄█". More than `width` values are
    averaged in groups of neighbours."""
    values = [value for value in values if math.isfinite(value)]
    count = min(width, len(values))
    edges = [i * len(values) // count for i in range(count + 1)] if count else []
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, span = min(means, default=0.0), max(means, default=0.0) - min(means, default=0.0)
    # Equal values get a bar of medium height.
    return "".join(BARS[min(7, int(8 * (mean - low) / span)) if span else 3] for mean in means)


class LiveDisplay:
    """`with LiveDisplay("GRPO") as display: Trainer(..., callbacks=[display]).train()`, one for each run.

    Leaving the `with` block restores the terminal, also after an exception. With the run's `disable_tqdm` it prints
    lines on a terminal too.
    """

    def __init__(self, title: str, console: Console | None = None, stage: str = ""):
        self.title, self.stage, self.console = title, stage, console or SafeConsole()
        self.row: dict[str, Any] = {}
        self.series: list[float] = []
        self.held_out: list[float] = []
        self.held_out_key = ""
        self.printed = 0
        self.every_row = False
        self.pending = False
        self.live: Live | None = None
        # The speed is averaged over the whole run: rich's default window of 30 seconds is too short for long steps.
        self.progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TimeElapsedColumn(),
            TextColumn("elapsed"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            speed_estimate_period=math.inf,
            expand=True,
        )
        self.task = self.progress.add_task("", start=False, total=None)

    def __enter__(self) -> LiveDisplay:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Restore the terminal. May be called more than once."""
        if self.live is not None:
            self.live.refresh()  # rich's own last refresh leaves notebooks out
            self.live.stop()
            self.live = None
            progress.displays.remove(self)

    def update(self) -> None:
        """Called when a task of `progress` is shown or has ended: the panel has its line."""
        if self.live is not None:
            self.live.refresh()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress.start_task(self.task)
        self.progress.update(self.task, total=state.max_steps, completed=state.global_step)
        lines = getattr(args, "disable_tqdm", False)
        self.every_row = lines or "logging_steps" in getattr(args, "model_fields_set", ())
        if can_move(self.console) and not lines:
            self.live = live(self.console, self._panel)
            self.live.start(refresh=True)
            progress.displays.append(self)
        else:
            self._print(f"{state.max_steps} steps")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs is None or "train_runtime" in logs or any(name.startswith("eval") for name in logs):
            return  # of an evaluation, which on_evaluate shows, or of the whole run
        self.row = dict(logs)
        value = self.row.get(self._main())
        if value is not None:
            self.series.append(value)
        self._show(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress.update(self.task, completed=state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, row: dict[str, Any] | None = None, **_: Any) -> None:
        metrics = row or {}
        keys = [*component_keys(metrics), "eval/reward", "eval/loss"]
        key = self.held_out_key or next((key for key in keys if key in metrics), "")
        if key in metrics:
            self.held_out_key = key
            self.held_out.append(metrics[key])
        self._show(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.pending and self.live is None:
            self._print_numbers(state)
        self.close()

    def _main(self) -> str:
        return "reward" if "reward" in self.row else "loss"

    def _show(self, state: Any) -> None:
        self.progress.update(self.task, completed=state.global_step)
        self.pending = True
        if self.live is not None:
            self.live.refresh()
        elif self.row:
            due = state.global_step if self.every_row else state.global_step * LINES // max(1, state.max_steps)
            # The last line is printed in on_train_end, after an evaluation that may follow the last step.
            if self.printed < due and state.global_step < state.max_steps:
                self.printed = due
                self._print_numbers(state)

    def _print_numbers(self, state: Any) -> None:
        self.pending = False
        numbers = [f"{label} {value}" for label, value, _ in self._lines(IN_ONE_LINE)]
        self._print(f"step {state.global_step}/{state.max_steps}: " + ", ".join(numbers))

    def _print(self, text: str) -> None:
        head = f"{self.title} ({self.stage})" if self.stage else self.title
        self.console.print(safe_text(f"{head}: {text}"), soft_wrap=True)

    def _lines(self, keys: Iterable[str]) -> list[tuple[str, str, str]]:
        """(label, value, sparkline) of the reward or loss, the held-out score, and those metrics of `keys` that the row
        has."""
        lines = []
        if self.series:
            form = "{:.3f}" if self._main() == "reward" else "{:.4f}"
            lines.append((self._main(), form.format(self.series[-1]), self._sparkline(self.series)))
        if self.held_out:
            lines.append((*self._held_out(), self._sparkline(self.held_out)))
        for key in keys:
            if key in self.row:
                label, form = NUMBERS[key]
                lines.append((label, form.format(self.row[key]), ""))
        return lines

    def _held_out(self) -> tuple[str, str]:
        name = self.held_out_key.removeprefix("eval/")
        best = min(self.held_out) if name == "loss" else max(self.held_out)
        form = "{:.1%}" if name == "accuracy" else "{:.3f}"
        last, first, best_text = (form.format(value) for value in (self.held_out[-1], self.held_out[0], best))
        more = f" (first {first}, best {best_text})" if len(self.held_out) > 1 else ""
        return f"held-out {name}", last + more

    def _sparkline(self, values: list[float]) -> str:
        narrow = self.console.options.ascii_only or self.console.width < 80
        return "" if narrow else sparkline(values, min(32, self.console.width - 70))

    def _panel(self) -> RenderableType:
        table = Table.grid(padding=(0, 3))
        for column in ("label", "value", "bars"):
            table.add_column(style={"label": "dim", "value": "", "bars": "cyan"}[column], no_wrap=True)
        for i, (label, value, bars) in enumerate(self._lines(NUMBERS)):
            table.add_row(safe_text(label), Text(value, style="bold" if i < 2 else ""), Text(bars))
        title = safe_text(self.title, "bold")
        stage = safe_text(self.stage) if self.stage else None
        tasks = [safe_text(line) for line in progress.shown_lines()]
        content = Group(self.progress, table, *tasks)
        return Panel(content, title=title, subtitle=stage, title_align="left", border_style="cyan")


def silent_display() -> LiveDisplay:
    """A display that shows nothing, for a run that is a part of something else."""
    return LiveDisplay("", SafeConsole(quiet=True, force_terminal=False, force_jupyter=False))


@contextmanager
def default_display(callbacks: list[Any], title: str, folder: str) -> Iterator[None]:
    """Add a display to a run's callbacks until the block ends, then print the verdict on the run in `folder`; not where
    one of them shows the run already. A worker process and other ranks than 0 show nothing: several would draw on one
    terminal."""
    shown = any(isinstance(each, LiveDisplay) or THEIRS & _names(each) for each in callbacks)
    if shown or rank() or multiprocessing.parent_process() is not None:
        yield
        return
    with LiveDisplay(title) as display:
        callbacks.append(display)
        try:
            yield
        finally:
            callbacks.remove(display)
        if (Path(folder) / "metrics.jsonl").is_file():
            for line in verdict(folder):
                display.console.print(Text(line), soft_wrap=True)


def _names(callback: Any) -> set[str]:
    return {kind.__name__ for kind in type(callback).__mro__}
