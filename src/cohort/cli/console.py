"""What a command prints on: the rich console, and `echo` for plain lines. Untrusted text drives neither."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

import typer

from cohort.types import UserError, printable
from cohort.world import rank

if TYPE_CHECKING:
    from cohort.report.console import SafeConsole


def echo(text: object = "", *, nl: bool = True, err: bool = False) -> None:
    """typer.echo with control characters as visible escapes: lines name columns and files, and quote completions."""
    typer.echo(printable(str(text)), nl=nl, err=err)


def write_data(text: str) -> None:
    """Write data to standard output: into a pipe or a file exactly as it is, on a terminal as `echo` does."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def set_volume(*, quiet: bool, verbose: bool, anew: bool = False) -> None:
    """Take --quiet and --verbose, which can be before the command and after it; `anew`: before it."""
    Volume.quiet = quiet or (Volume.quiet and not anew)
    Volume.verbose = verbose or (Volume.verbose and not anew)
    if Volume.quiet and Volume.verbose:
        raise UserError("--quiet and --verbose exclude each other: give one of them")
    if Volume.verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "info")  # read when transformers is imported


class Volume:
    """How much the command prints of its work."""

    quiet = False
    """Results, warnings and errors alone."""
    verbose = False
    """Details of `cohort`, and transformers' notices too."""


def log_console(*, stderr: bool = False, bars: bool = True) -> SafeConsole:
    """A console on standard output or standard error. Notices of the logger `cohort` and progress are printed on it,
    above a live display, and warnings on standard error. Without `bars`, progress is log lines on a terminal too."""
    from cohort.report.console import SafeConsole, show_on

    console = SafeConsole(stderr=stderr)
    show_on(console, bars and not Volume.quiet)
    if (Volume.quiet or Volume.verbose) and not rank():
        logging.getLogger("cohort").setLevel(logging.WARNING if Volume.quiet else logging.DEBUG)
    return console
