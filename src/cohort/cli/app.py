"""The command line: its commands, `--version`, and `main`, which turns errors into exit codes."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
import traceback
import warnings
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from cohort import __version__
from cohort.cli import data, reward
from cohort.cli.arguments import Command
from cohort.cli.compare import compare
from cohort.cli.console import echo, set_volume
from cohort.cli.demo import demo
from cohort.cli.doctor import doctor
from cohort.cli.evaluate import evaluate
from cohort.cli.export import export
from cohort.cli.generate import generate
from cohort.cli.methods import methods
from cohort.cli.plan import plan
from cohort.cli.plot import plot
from cohort.cli.report import report
from cohort.cli.rerun import rerun
from cohort.cli.train import train
from cohort.cli.vllm import vllm
from cohort.cli.watch import watch
from cohort.types import UserError, printable
from cohort.world import rank

TOLD_FIRST = 3.0
"""Seconds that other ranks than 0 wait with an error."""


class _Commands(TyperGroup):
    """Prints a UserError as one message without a traceback; other exceptions keep theirs."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            echo(f"{_of_rank()}error: {error}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            echo("\nstopped", err=True)
            raise typer.Exit(130) from None


def _of_rank() -> str:
    """The beginning of an error's line on other ranks than 0. They wait with theirs: a mistake that all make is told by
    rank 0, whose end makes the launcher end the others; and what another rank's end causes here comes after it."""
    number = rank()
    if number:
        time.sleep(TOLD_FIRST)
    return f"rank {number}: " if number else ""


app = typer.Typer(
    name="cohort",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich's help takes a third of the start-up time
)
app.command(cls=Command)(train)
app.command(name="eval", cls=Command)(evaluate)
app.command(cls=Command)(generate)
app.command(cls=Command)(export)
app.command(cls=Command)(compare)
app.command(cls=Command)(plan)
app.command(cls=Command)(plot)
app.command(cls=Command)(rerun)
app.command(cls=Command)(report)
app.command(cls=Command)(watch)
app.command(cls=Command)(demo)
app.command(cls=Command)(vllm)
app.command(cls=Command)(methods)
app.command(cls=Command)(doctor)
app.add_typer(reward.app, name="reward")
app.add_typer(data.app, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        echo(f"cohort {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print results, warnings and errors alone.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print details, and transformers' notices too.")] = False,
) -> None:
    """Teach a language model by comparing its own answers with each other (GRPO).

    Start with `cohort train FILE.yaml`. docs/configuration.md lists the keys, `cohort methods` the methods; on the
    command line a key is KEY=VALUE or --KEY VALUE. --quiet and --verbose can be after the command too.
    """
    set_volume(quiet=quiet, verbose=verbose, anew=True)


def _keep_only(name: str) -> None:
    """If `name` is a command, drop the other commands: typer prepares all of them, which takes longer than to report
    an error in a configuration."""
    commands = [info for info in app.registered_commands if info.callback and _name(info) == name]
    if commands:
        app.registered_commands, app.registered_groups = commands, []


def _name(info: Any) -> str:
    return str(info.name or info.callback.__name__)


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _make_errors_printable() -> None:
    """Tracebacks, warnings, and log lines of libraries can quote completions and errors of reward functions: they
    reach the terminal without control characters."""
    show_warning = warnings.formatwarning

    def of_process(*error: Any) -> None:
        sys.stderr.write(printable("".join(traceback.format_exception(*error))))

    def of_thread(details: threading.ExceptHookArgs) -> None:
        if details.exc_type is not SystemExit:
            name = details.thread.name if details.thread else "?"
            sys.stderr.write(printable(f"Exception in thread {name}:\n"))
            of_process(details.exc_type, details.exc_value, details.exc_traceback)

    sys.excepthook, threading.excepthook = of_process, of_thread
    warnings.formatwarning = lambda *warning, **more: printable(show_warning(*warning, **more))
    assert logging.lastResort is not None
    logging.lastResort.setFormatter(_Printable())


def main() -> None:
    """The entry point. Exits with 0, with 2 for a user's mistake, with 130 when interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A completion can hold characters that the terminal's encoding lacks.
            stream.reconfigure(errors="replace")
    # FutureWarnings of other packages: the user of a command can do nothing about them.
    warnings.simplefilter("ignore", FutureWarning)
    _make_errors_printable()
    _keep_only(sys.argv[1] if len(sys.argv) > 1 else "")
    try:
        # Calling `app` itself would put typer's hook for tracebacks in the place of this one.
        get_command(app)(prog_name="cohort")
    finally:
        # Skips a last garbage collection over every imported module: a fifth of the time to report a mistake.
        gc.freeze()


if __name__ == "__main__":
    main()
