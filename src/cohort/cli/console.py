"""The rich console that a command prints on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def log_console(*, stderr: bool = False) -> Console:
    """A console on standard output or standard error. The logger `cohort` writes to it too, above a live display."""
    from rich.console import Console
    from rich.logging import RichHandler

    console = Console(stderr=stderr)
    log = logging.getLogger("cohort")
    log.handlers = [RichHandler(console=console, show_path=False, show_time=False, show_level=False)]
    log.setLevel(logging.INFO)
    return console
