"""Signals that end a run: it saves a checkpoint at the end of the step, and at once ends on a second one."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from cohort.types import Terminated

log = logging.getLogger("cohort")

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""What an operator, a terminal, a closed terminal and Slurm (--signal=USR1@120) send."""

ONE_WISH = 2.0
"""Seconds in which further signals are the same wish: Ctrl-C reaches torchrun too, which sends its ranks one more."""


class Asked:
    """The signal that asks the run to end; 0: none has."""

    number = 0
    since = 0.0
    """When it came, by time.monotonic()."""

    def stop(self) -> None:
        """Raise what ends the run: KeyboardInterrupt for Ctrl-C, else Terminated."""
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated(self.number or signal.SIGTERM)


@contextmanager
def asked_to_end() -> Iterator[Asked]:
    """In the block, a first signal is noted and a second one ends it. Only in the main thread, where Python handles
    signals; one that is ignored, as SIGHUP under nohup, stays ignored."""
    asked = Asked()

    def note(number: int, frame: FrameType | None) -> Any:
        if asked.number:
            if time.monotonic() - asked.since >= ONE_WISH:
                asked.number = number
                asked.stop()
            return
        asked.number, asked.since = number, time.monotonic()
        log.warning(
            "%s: the run ends after this step, with a checkpoint; a second signal ends it at once and loses the step",
            signal.Signals(number).name,
        )

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
        before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is note:
                signal.signal(number, handler)
