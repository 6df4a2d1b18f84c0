"""Progress of what takes more than two seconds: on a terminal a line that moves, elsewhere a log line now and then.

A task only counts. What shows it is the display that a program has put last into `displays`; without one, the task
logs lines on `cohort.progress`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

log = logging.getLogger("cohort.progress")

Item = TypeVar("Item")

QUIET_SECONDS = 2.0
"""A task that ends sooner is not shown."""
EVERY_SECONDS = 10.0
"""Between two log lines of a task."""


class Display(Protocol):
    """Draws the tasks of `running` that are `shown`."""

    def update(self) -> None:
        """A task has been shown, or has ended. Called in any thread."""
        ...


displays: list[Display] = []
"""The last one draws the tasks."""
running: list[Task] = []
"""The tasks that have begun and not ended, in the order in which they began."""


class Task:
    """`with Task("evaluating", 1000, "prompts") as task:` ... `task.add()`; without a total, what takes its time at
    once."""

    def __init__(self, what: str, total: int = 0, unit: str = "") -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = 0
        self._items: set[int] = set()
        self.shown = False
        self._started = time.monotonic()
        self._ended = threading.Event()

    def __enter__(self) -> Task:
        running.append(self)
        threading.Thread(target=self._show, name="progress", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        running.remove(self)
        self._ended.set()
        if self.shown and displays:
            displays[-1].update()
        elif self.shown and kind is None:
            log.info("%s: done in %.0f s", self.what, self.seconds)

    def add(self, count: int = 1) -> None:
        """Count what is done."""
        self.done += count

    def ended(self, item: int, _: object) -> None:
        """Count the item unless it was counted before: a generation that ran out of memory starts again."""
        self._items.add(item)
        self.done = len(self._items)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def line(self) -> str:
        """ "evaluating: 120 of 1,000 prompts, 12 s" """
        count = f"{self.done:,} of {self.total:,} {self.unit}, " if self.total else ""
        return f"{self.what}: {count}{self.seconds:.0f} s"

    def _show(self) -> None:
        wait = QUIET_SECONDS
        while not self._ended.wait(wait):
            self.shown, wait = True, EVERY_SECONDS
            if displays:
                displays[-1].update()
            else:
                log.info(self.line())


def track(items: Sequence[Item], what: str, unit: str) -> Iterator[Item]:
    """The items, counted by a task."""
    with Task(what, len(items), unit) as task:
        for item in items:
            yield item
            task.add()


def shown_lines() -> list[str]:
    """The lines of the tasks that are shown."""
    return [task.line() for task in list(running) if task.shown]
