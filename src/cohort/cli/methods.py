"""`cohort methods`: the table of methods."""

from __future__ import annotations

from typing import Annotated

import typer

from cohort.cli.console import log_console


def methods(
    rows: Annotated[list[str] | None, typer.Argument(help="Rows of your own: path/to/file.py:row.")] = None,
) -> None:
    """Print the table of methods: where completions come from, and how rewards become gradients."""
    from cohort.methods.named import find_method
    from cohort.methods.table import METHODS
    from cohort.report.methods import methods_tables

    console = log_console()
    for table in methods_tables([*METHODS.values(), *map(find_method, rows or [])]):
        console.print(table)
