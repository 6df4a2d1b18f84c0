"""The live progress display: a callback that draws what a run is doing."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

BARS = "▁▂▃▄▅▆▇█"
# metric -> (label, format); the first of a run's that are there are shown
SHOWN = {
    "loss": ("loss", "{:.4f}"),
    "reward": ("reward", "{:.3f}"),
    "reward_std": ("spread within groups", "{:.3f}"),
    "frac_reward_zero_std": ("groups without spread", "{:.0%}"),
    "completions/mean_length": ("completion length", "{:.1f} tokens"),
    "completions/clipped_ratio": ("truncated", "{:.1%}"),
    "kl": ("KL to the reference", "{:.4f}"),
    "entropy": ("entropy", "{:.3f}"),
    "tokens_per_second": ("speed", "{:,.0f} tokens/s"),
    "learning_rate": ("learning rate", "{:.2e}"),
}


def sparkline(values: list[float], width: int = 32) -> str:
    """The values as a line of bars, each the mean of its share of them: [0, 1, 2] -> "▁▄█"."""
    if not values:
        return ""
    width = min(width, len(values))
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join(BARS[min(7, int((value - low) / span * 7.999))] for value in means)


class LiveDisplay:
    """`with LiveDisplay("GRPO") as display: Trainer(..., callbacks=[display])`. On a terminal a panel that redraws
    itself; elsewhere a plain line now and then."""

    def __init__(self, title: str, console: Console | None = None):
        self.title, self.console = title, console or Console()
        self.logs: dict[str, Any] = {}
        self.rewards: list[float] = []
        self.held_out: list[float] = []
        self.progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TimeElapsedColumn(),
            TextColumn("elapsed,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            expand=True,
        )
        self.task: Any = None
        self.live: Live | None = None
        self.told = 0.0

    def __enter__(self) -> LiveDisplay:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the terminal back, whatever happened."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.task = self.progress.add_task("", total=state.max_steps, completed=state.global_step)
        if self.console.is_terminal:
            self.live = Live(self._panel(), console=self.console, refresh_per_second=4, transient=False)
            self.live.start()
        else:
            self.console.print(f"{self.title}: {state.max_steps} steps")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        self.logs = logs or {}
        if "reward" in self.logs:
            self.rewards.append(self.logs["reward"])
        self.progress.update(self.task, completed=state.global_step)
        self._draw(state, last=state.global_step == state.max_steps)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, Any] | None = None, **_: Any) -> None:
        name = next((key for key in ("eval/accuracy", "eval/reward", "eval/loss") if key in (metrics or {})), None)
        if name is not None and metrics is not None:
            self.held_out.append(metrics[name])
            self.held_out_name = name.removeprefix("eval/")
            if self.live is None:
                self.console.print(f"{self.title}: held-out {self.held_out_name} {metrics[name]:.3f}")
        self._draw(state, last=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.close()

    def _draw(self, state: Any, last: bool) -> None:
        if self.live is not None:
            self.live.update(self._panel())
        elif last or time.monotonic() - self.told > 10:
            self.told = time.monotonic()
            values = ", ".join(
                f"{label} {form.format(self.logs[key])}" for key, (label, form) in SHOWN.items() if key in self.logs
            )
            self.console.print(f"{self.title}: step {state.global_step}/{state.max_steps}: {values}")

    def _panel(self) -> RenderableType:
        table = Table.grid(padding=(0, 3))
        if self.rewards:
            table.add_row("reward", f"{self.rewards[-1]:.3f}", sparkline(self.rewards))
        if self.held_out:
            value = f"{self.held_out[-1]:.1%}" if self.held_out_name == "accuracy" else f"{self.held_out[-1]:.3f}"
            table.add_row(f"held-out {self.held_out_name}", f"[bold]{value}[/bold]", sparkline(self.held_out))
        for key, (label, form) in SHOWN.items():
            if key in self.logs and not (key == "reward" or (key == "loss" and self.rewards)):
                table.add_row(label, form.format(self.logs[key]), "")
        return Panel(Group(self.progress, table), title=self.title, title_align="left", border_style="cyan")
