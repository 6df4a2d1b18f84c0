"""Judging untrusted answers in worker processes with a time limit."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
import time
from functools import lru_cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from cohort.rewards import supervise
from cohort.types import UserError

SECONDS = 2.0
"""Time limit of one judgement, enforced inside the worker."""
GRACE_SECONDS = 5.0
"""A worker that has not replied this long after the limit is killed."""
START_SECONDS = 120.0


class Worker:
    """One process that answers requests one at a time. It starts at the first request, and again if it died."""

    def __init__(self, kind: str, seconds: float = SECONDS) -> None:
        self.kind = kind
        self.seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def ask(self, request: list[Any]) -> Any | None:
        """The worker's reply; None if the request exceeded the time limit or killed the worker."""
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            process = self._running()
            try:
                process.stdin.write(line)  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
                reply = read_reply(process, self.seconds + GRACE_SECONDS)
            except BrokenPipeError:
                reply = None
            if reply is None:
                self.close()
                return None
            return reply[0] if reply else None

    def close(self) -> None:
        """Kill the process, if this one started it. The next request starts another."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        supervise.end(process)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        self.close()
        atexit.unregister(self.close)
        atexit.register(self.close)
        self._owner = os.getpid()
        process = self._process = supervise.start(
            [sys.executable, str(Path(__file__).with_name("verify_worker.py")), self.kind, str(self.seconds)],
            stderr=subprocess.DEVNULL,
            # One thread: the memory limit is not spent on thread pools. Fixed hashes: repeatable judgements.
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
        )
        greeting = read_reply(process, START_SECONDS)
        if greeting != "ready":
            self.close()
            if greeting is None:
                raise RuntimeError(f"the {self.kind} worker ended before it was ready: exit {process.returncode}")
            raise UserError(f"judging answers needs a package that is missing: {greeting}")
        return process


def read_reply(process: subprocess.Popen[bytes], seconds: float) -> Any | None:
    """One JSON line from the process; None if none arrives within `seconds`."""
    deadline = time.monotonic() + seconds
    received = b""
    while not received.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        if not wait([process.stdout], min(left, 3600)):  # type: ignore[list-item]
            continue
        piece = os.read(process.stdout.fileno(), 65536)  # type: ignore[union-attr]
        if not piece:
            return None
        received += piece
    return json.loads(received)


_math = Worker("math")


@lru_cache(maxsize=4096)
def equal(candidate: str | tuple[str, ...], reference: str | tuple[str, ...]) -> bool:
    """math-verify's judgement of two LaTeX answers, or of all pairs of two tuples; False if it exceeds the time limit.

    Thread-safe.
    """
    return _math.ask([candidate, reference]) is True
