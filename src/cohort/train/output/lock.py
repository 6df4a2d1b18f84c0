"""One run, one folder: a lock that the operating system gives back when the process ends, however it ends."""

from __future__ import annotations

import datetime
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cohort.types import UserError

log = logging.getLogger("cohort")

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within the block this process alone trains in the folder. Raises UserError where another does."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(folder, descriptor)
        os.ftruncate(descriptor, 0)
        since = datetime.datetime.now(datetime.timezone.utc).isoformat(" ", "seconds")
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {since}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def require_free(folder: Path) -> None:
    """Raise UserError where another process trains in the folder. Call it before anything is written there."""
    if (folder / LOCK).is_file():
        with open(folder / LOCK, "rb") as file:
            _take(folder, file.fileno())


def _take(folder: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        who = os.pread(descriptor, 1000, 0).decode(errors="replace") or "another process"
        raise UserError(
            f"{folder} is the folder of a run that goes on ({who}): wait for it, stop it, or give another output_dir"
        ) from None
    except OSError as error:
        log.info("%s cannot be locked (%s): take care that only one run writes there", folder, error.strerror)
