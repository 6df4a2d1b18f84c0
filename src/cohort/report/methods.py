"""`cohort methods`: the table of methods and the functions that its rows name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from cohort.report.tables import safe_text

SOURCES = {
    "demonstrations": "demonstrations",
    "start": "starting model, once",
    "preferences": "preference pairs",
    "policy": "current policy",
}
PARTS = {
    "credit": "Credit: rewards to advantages A, once per batch",
    "coefficient": "Coefficient: the objective J of one token and GC, its slope by log pi, at each gradient step",
    "weight": "Weight: w of each token, so that the gradient is the sum of w GC grad log pi",
}


def methods_tables(methods: Sequence[Any]) -> Iterator[Table]:
    """A table of the methods (rows of `cohort.methods.table`), then a table for each kind of function with what the
    functions compute."""
    table = Table(title=Text("Methods"), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("method", no_wrap=True)
    for heading in ("data source", "reward", *PARTS):
        table.add_column(heading)
    for row in methods:
        names = [readable_name(getattr(row, part)) for part in PARTS]
        table.add_row(safe_text(row.name, "bold"), SOURCES[row.source], safe_text(row.reward), *map(safe_text, names))
    yield table
    for part, title in PARTS.items():
        functions = dict.fromkeys(getattr(row, part) for row in methods)
        meanings = Table(
            title=Text(f"\n{title}"), title_justify="left", title_style="bold", box=None, show_header=False
        )
        meanings.add_column(style="cyan", no_wrap=True)
        meanings.add_column(overflow="fold")
        for function in functions:
            meanings.add_row(safe_text(readable_name(function)), safe_text(first_paragraph(function)))
        yield meanings


def loss_tables(loss_types: Mapping[str, Any], preference_losses: Mapping[str, Callable[..., Any]]) -> Iterator[Table]:
    """A table of GRPO's loss types (`formulas/loss_types.py`), then one of DPO's losses (`formulas/preference.py`)."""
    table = Table(title=Text("loss_type of grpo and its relatives"), title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("loss_type", "objective J of one token", "weight"):
        table.add_column(heading, overflow="fold")
    for name, kind in loss_types.items():
        weight = first_paragraph(kind.weight).partition(": ")[0].partition(", ")[0]
        table.add_row(Text(name, style="bold"), safe_text(first_paragraph(kind.surrogate)), Text(weight))
    yield table
    table = Table(title=Text("loss_type of dpo"), title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("loss_type", "loss of a pair"):
        table.add_column(heading, overflow="fold")
    for name, function in preference_losses.items():
        table.add_row(Text(name, style="bold"), safe_text(first_paragraph(function)))
    yield table


def readable_name(function: Callable[..., Any]) -> str:
    """group_outcome -> "group outcome"."""
    return function.__name__.replace("_", " ")


def first_paragraph(function: Callable[..., Any]) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((function.__doc__ or "").strip().split("\n\n")[0].split())
