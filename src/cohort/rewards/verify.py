"""math-verify behind a process that can be killed: its own time limit needs signals, which threads do not get, and
9^9^9^9 takes all the time there is."""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
import threading
from selectors import EVENT_READ, DefaultSelector

LIMIT_SECONDS = 2.0
START_SECONDS = 60.0


class Verifier:
    """One worker process, started at its first comparison and again after a kill. Safe to share between threads."""

    def __init__(self, limit_seconds: float = LIMIT_SECONDS):
        self.limit_seconds = limit_seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def equal(self, candidate: str, reference: str) -> bool:
        """Whether math-verify holds them equal; False where it does not finish in time."""
        with self._lock:
            process = self._start()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps([candidate, reference]) + "\n")
                process.stdin.flush()
                answer = self._read(process, self.limit_seconds)
            except BrokenPipeError:
                answer = ""
            if answer not in ("true", "false"):
                self._kill()
            return answer == "true"

    def _start(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._kill()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cohort.rewards.verify_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
            )
            if self._read(self._process, START_SECONDS) != "ready":
                self._kill()
                raise RuntimeError("the math-verify worker did not start: is math-verify installed?")
        return self._process

    @staticmethod
    def _read(process: subprocess.Popen[str], seconds: float) -> str:
        assert process.stdout is not None
        with DefaultSelector() as selector:
            selector.register(process.stdout, EVENT_READ)
            return process.stdout.readline().strip() if selector.select(seconds) else ""

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                try:
                    pipe.close()
                except BrokenPipeError:  # what was still to be flushed to the dead
                    pass
            self._process = None

    def close(self) -> None:
        with self._lock:
            self._kill()


_verifier = Verifier()
atexit.register(_verifier.close)


def mathematically_equal(candidate: str, reference: str) -> bool:
    """Whether math-verify holds two answers equal, each as plain text or LaTeX; False beyond LIMIT_SECONDS."""
    return _verifier.equal(candidate, reference)
