"""`cohort methods`: the table of methods."""

from __future__ import annotations

from typing import Annotated

import typer

from cohort.cli.console import log_console


def methods(
    rows: Annotated[list[str] | None, typer.Argument(help="Rows of your own: path/to/file.py:row.")] = None,
) -> None:
    """Print the table of methods: where completions come from, and how rewards become gradients; then the losses."""
    from cohort.formulas.loss_types import LOSS_TYPES
    from cohort.formulas.preference import PREFERENCE_LOSSES
    from cohort.methods.named import find_method
    from cohort.methods.table import METHODS
    from cohort.report.methods import loss_tables, methods_tables

    console = log_console()
    for table in methods_tables([*METHODS.values(), *map(find_method, rows or [])]):
        console.print(table)
    for table in loss_tables(LOSS_TYPES, PREFERENCE_LOSSES):
        console.print(table)
