"""Results as tables for the terminal. Completions are other people's text: they are shown, never interpreted."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cohort.report.intervals import wilson


def share(successes: float, total: int) -> str:
    """`27.4% [23.7, 31.5]`: a share with its 95% interval."""
    low, high = wilson(successes, total)
    return f"{successes / total:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def before_after_table(title: str, rows: list[tuple[str, str, str]]) -> Table:
    """(what, before, after) rows."""
    table = Table(title=title, title_justify="left")
    for name in ("", "before", "after"):
        table.add_column(name, justify="left" if not name else "right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def examples_panel(examples: list[tuple[str, str, str]]) -> RenderableType:
    """(problem, completion before, completion after), side by side."""
    panels = []
    for problem, before, after in examples:
        grid = Table.grid(padding=(0, 4), expand=False)
        grid.add_row(Text("before", style="dim"), Text("after", style="dim"))
        grid.add_row(Text(before), Text(after))
        panels.append(Panel(grid, title=Text(problem), title_align="left", expand=False))
    return Group(*panels)


def evaluation_table(model: str, result: dict[str, Any]) -> Table:
    """What `cohort eval` prints."""
    table = Table(title=Text(f"{model}: {result['problems']} problems, {result['samples']} samples each"))
    table.add_column("")
    table.add_column("value", justify="right")
    low, high = result["interval"]
    table.add_row("accuracy", f"{result['accuracy']:.1%} [{100 * low:.1f}, {100 * high:.1f}]")
    for kind in ("pass@k", "maj@k"):
        for k, value in result[kind].items():
            table.add_row(kind.replace("k", str(k)), f"{value:.1%}")
    for name, value in result["metrics"].items():
        if name not in ("eval/samples",):
            table.add_row(Text(name.removeprefix("eval/")), f"{value:.3f}")
    return table
