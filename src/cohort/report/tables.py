"""Results as tables for the terminal. Completions and names are untrusted text: control characters in them are visible
escapes, and markup is text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cohort.formulas.chance import wilson
from cohort.report.metrics import component_keys
from cohort.types import printable

LONGEST = 1200
"""Most characters of a text in a panel."""


def safe_text(text: str, style: str = "") -> Text:
    """Untrusted text for a cell, a title or a panel."""
    return Text(printable(text), style=style)


def share_with_interval(successes: float, total: int) -> str:
    """A share with its 95% interval: share_with_interval(27, 100) -> "27.0% [19.3, 36.4]"."""
    low, high = wilson(successes, total)
    return f"{successes / total:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def before_after_table(title: str, rows: Sequence[tuple[str, str, str]]) -> Table:
    """Rows of (what, before, after), such as ("accuracy", "24.0% [16.7, 33.2]", "97.0% [91.5, 99.0]")."""
    table = Table(title=safe_text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right", style="bold")
    for row in rows:
        table.add_row(*map(safe_text, row))
    return table


def examples_panel(examples: Sequence[tuple[str, str, str]], title: str = "") -> RenderableType:
    """A panel for each (problem, completion before, completion after), with the two completions side by side."""
    panels: list[RenderableType] = [safe_text(title, "bold")] if title else []
    for problem, before, after in examples:
        grid = Table(box=None, expand=True, padding=(0, 2), pad_edge=False, show_header=True)
        grid.add_column("before", ratio=1, header_style="dim", overflow="fold")
        grid.add_column("after", ratio=1, header_style="dim", overflow="fold")
        grid.add_row(_excerpt(before), _excerpt(after))
        body = Group(_excerpt(problem, style="cyan"), Text(), grid)
        panels.append(Panel(body, box=box.ROUNDED, border_style="dim"))
    return Group(*panels)


def _excerpt(text: str, style: str = "") -> Text:
    """The text, or the first and the last half of LONGEST characters of it."""
    text = text.strip()
    if len(text) > LONGEST:
        half = LONGEST // 2
        text = f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"
    return safe_text(text, style)


def evaluation_table(title: str, result: dict[str, Any]) -> Table:
    """The table of `cohort eval`. `result` has problems, samples, accuracy, interval, pass@k, maj@k and metrics."""
    problems, samples = result["problems"], result["samples"]
    table = Table(title=safe_text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column(f"{problems} problems x {samples} sample" + "s" * (samples != 1))
    table.add_column("", justify="right")
    low, high = result["interval"]
    table.add_row("accuracy", Text(f"{result['accuracy']:.1%} [{100 * low:.1f}, {100 * high:.1f}]", style="bold"))
    for kind in ("pass@k", "maj@k"):
        for k, value in result[kind].items():
            table.add_row(f"{kind[:-1]}{k}", f"{value:.1%}")
    metrics = result["metrics"]
    for key in component_keys(metrics):
        table.add_row(safe_text(f"mean score: {key.removeprefix('eval/')}"), f"{metrics[key]:.3f}")
    if "eval/completions/mean_length" in metrics:
        table.add_row("mean length", f"{metrics['eval/completions/mean_length']:.1f} tokens")
    if metrics.get("eval/completions/clipped_ratio"):
        table.add_row("cut at the length limit", f"{metrics['eval/completions/clipped_ratio']:.1%}")
    return table
