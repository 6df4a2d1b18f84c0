"""The rich console that a command prints on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def log_console(*, stderr: bool = False, bars: bool = True) -> Console:
    """A console on standard output or standard error. Notices of the logger `cohort` and progress are printed on it,
    above a live display, and warnings on standard error. Without `bars`, progress is log lines on a terminal too."""
    from rich.console import Console

    from cohort.report.console import show_on

    console = Console(stderr=stderr)
    show_on(console, bars)
    return console
