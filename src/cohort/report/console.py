"""Where commands and scripts show notices, warnings and progress: a console that is safe for untrusted text
(completions, names of columns, keys, files), the log handler, the status lines."""

from __future__ import annotations

import logging
import multiprocessing
import sys
import threading
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.segment import Segment
from rich.spinner import Spinner
from rich.text import Text

from cohort import progress
from cohort.types import printable
from cohort.world import rank

if TYPE_CHECKING:
    from cohort.config import TrainingConfig

log = logging.getLogger("cohort")


class SafeConsole(Console):
    """A rich console that prints text as it is read: without markup and emoji codes, and with control characters as
    visible escapes. Only rich's own codes, of colours and of a live display, reach the terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        # rich renders the parts of tables and panels by this method too, so that their widths count the escapes.
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


class LogLines(logging.Handler):
    """Prints notices on a console and warnings on standard error, one line each, not padded to the console's width."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console, self.errors = console, SafeConsole(stderr=True)

    def emit(self, record: logging.LogRecord) -> None:
        # On a terminal, what is not printed by the console of a live display would be written into it.
        apart = record.levelno >= logging.WARNING and not (self.console.is_terminal and self.errors.is_terminal)
        console = self.errors if apart else self.console
        console.print(Text(self.format(record)), soft_wrap=True)


class Status:
    """Shows running tasks as lines at the bottom of a terminal, while there are any."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live: Live | None = None
        self._spinner = Spinner("dots")
        self._lock = threading.Lock()

    def update(self) -> None:
        with self._lock:
            if progress.shown_lines():
                if self._live is None:
                    self._live = live(self.console, self._lines, transient=True)
                    self._live.start(refresh=True)
            elif self._live is not None:
                self._live.stop()
                self._live = None

    def _lines(self) -> RenderableType:
        self._spinner.update(text=Text("\n".join(progress.shown_lines())))
        return self._spinner


def live(console: Console, draw: Callable[[], RenderableType], transient: bool = False) -> Live:
    """A display that calls `draw` four times a second. What is printed on a terminal meanwhile appears above it; what
    is printed into a file or a pipe still goes there."""
    return Live(
        console=console,
        get_renderable=draw,
        refresh_per_second=4,
        transient=transient,
        redirect_stdout=console.is_jupyter or sys.stdout.isatty(),
        redirect_stderr=console.is_jupyter or sys.stderr.isatty(),
    )


def can_move(console: Console) -> bool:
    """Whether the console can draw over what it has drawn: a terminal, or a notebook with its widgets."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


def show_on(console: Console, bars: bool = True) -> None:
    """Print what `cohort` logs on the console, warnings on standard error, and progress: with `bars` on a terminal as
    lines that move, else as log lines."""
    log.handlers = [LogLines(console)]
    log.setLevel(logging.ERROR if rank() else logging.INFO)
    progress.displays[:] = [Status(console)] if bars and console.is_terminal else []


def show_in_script(config: TrainingConfig) -> None:
    """In a program that is no command: print what `cohort` logs, unless the program has set up logging itself, and
    take the level from `log_level`. Other ranks than 0 log errors alone. Worker processes leave both to the program."""
    if not log.hasHandlers() and multiprocessing.parent_process() is None:
        show_on(SafeConsole(), bars=not config.disable_tqdm)
    if config.log_level != "passive" and not rank():
        log.setLevel(logging.DEBUG if config.log_level == "detail" else config.log_level.upper())
