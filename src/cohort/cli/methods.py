"""`cohort methods`: the table of methods."""

from __future__ import annotations

from cohort.cli.console import log_console


def methods() -> None:
    """Print the table of methods: where completions come from, and how rewards become gradients."""
    from cohort.methods.table import METHODS
    from cohort.report.methods import methods_tables

    console = log_console()
    for table in methods_tables(list(METHODS.values())):
        console.print(table)
