"""Reward functions in worker processes, which are killed when a call exceeds its time limit."""

from __future__ import annotations

import json
import math
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import IO, Any
from zlib import crc32

from cohort.rewards import supervise
from cohort.rewards.answers.verify import START_SECONDS, read_reply
from cohort.rewards.calls import (
    LOGS,
    Arguments,
    RewardFunctionError,
    about_messages,
    accepted_by,
    at_row,
    rows_of,
)
from cohort.rewards.logs import Logs
from cohort.types import TrainerState, UserError

GRACE_SECONDS = 2.0
"""At the limit a worker writes its stack and exits; one that is still alive this much later is killed."""


class Hung(Exception):
    """A call exceeded its time limit. The text has the function's stack."""


class Died(Exception):
    """A worker process ended during a call. The text has its exit code or signal."""


class Interrupted(Exception):
    """A worker process was ended during a call by Ctrl-C or by `Pool.stop`."""


class Pool:
    """One function in `processes` worker processes. They start at the first call, and again after a kill.

    With several processes the function is called on each row by itself.
    """

    def __init__(
        self, name: str, spec: str | Mapping[str, Any], processes: int, timeout: float | None, seed: int = 0
    ) -> None:
        self.name, self.timeout, self.processes, self.seed = name, timeout, processes, seed
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._stopped = False
        self._workers = [_Worker(name, spec, timeout) for _ in range(processes)]
        for worker in self._workers:
            self._idle.put(worker)

    def call(self, function: Callable[..., Any], arguments: Arguments, offered: Arguments, logs: Logs) -> list[Any]:
        """The scores of all rows, in order. RewardFunctionError where a call raises, hangs or loses its process."""
        self._stopped = False
        rows = len(offered["completions"])
        # A row for each call: what it draws, and what it logs, does not depend on the number of processes.
        size = max(1, rows) if self.processes == 1 else 1
        wanted = list(accepted_by(function, dict.fromkeys(LOGS)))
        starts = list(range(0, rows, size))

        def portion(start: int) -> dict[str, Any]:
            stop = min(start + size, rows)
            try:
                if self._stopped:
                    raise Interrupted
                return self._portion(rows_of(arguments, start, stop, rows), wanted, range(start, stop), offered)
            except Interrupted:
                raise RewardFunctionError(f"reward function {self.name!r} was interrupted") from None

        with ThreadPoolExecutor(self.processes) as threads:
            waiting = [threads.submit(portion, start) for start in starts]
            try:
                replies = [future.result() for future in waiting]
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        return self._joined(replies, logs)

    def stop(self) -> None:
        """End the calls that run in other threads, and their worker processes. The next call starts new ones."""
        self._stopped = True
        for worker in self._workers:
            worker.interrupt()

    def _portion(self, arguments: Arguments, wanted: list[str], rows: range, offered: Arguments) -> dict[str, Any]:
        """The reply for the given rows of `offered`."""
        seed = self._seed_of(rows, offered)
        try:
            reply = self._ask(self._line(arguments, wanted, len(rows), seed))
        except (Hung, Died) as error:
            i = self._first_row(arguments, wanted, rows, type(error), seed)
            where = f"\n  in rows {rows[0]} to {rows[-1]}" if i is None else at_row(i, offered)
            raise RewardFunctionError(f"reward function {self.name!r} {error}{where}") from None
        if "mistake" in reply:
            raise UserError(reply["mistake"])
        if "error" in reply:
            where = at_row(self._first_row(arguments, wanted, rows, reply["kind"], seed), offered)
            hint = about_messages(reply["error"], offered)
            raise RewardFunctionError(
                f"reward function {self.name!r} raised {reply['error']}{hint}{where}{reply['frames']}"
            )
        return reply

    def _seed_of(self, rows: range, offered: Arguments) -> int:
        """The seed of the call for these rows: by the run's seed, the step, the rows' numbers and their completions."""
        state = offered.get("trainer_state")
        step = 0 if state is None else state.global_step
        drawn_for = self.seed, step, rows, offered["completions"][rows.start : rows.stop]
        return crc32(repr(drawn_for).encode(errors="replace"))

    def _first_row(self, arguments: Arguments, wanted: list[str], rows: range, kind: Any, seed: int) -> int | None:
        """The first row that fails in the same way when scored alone; None if none does within twice the time limit."""
        if len(rows) == 1:
            return rows[0]
        worker = self._idle.get()
        try:
            worker.start()  # the time that it takes is not the function's
            deadline = math.inf if self.timeout is None else time.monotonic() + 2 * self.timeout
            for j, row in enumerate(rows):
                if time.monotonic() > deadline:
                    return None
                try:
                    reply = worker.ask(self._line(rows_of(arguments, j, j + 1, len(rows)), wanted, 1, seed))
                except (Hung, Died) as error:
                    if type(error) is kind:
                        return row
                    continue
                if reply.get("kind") == kind:
                    return row
            return None
        finally:
            self._idle.put(worker)

    def _line(self, arguments: Arguments, wanted: list[str], rows: int, seed: int) -> str:
        try:
            call = {"arguments": arguments, "logs": wanted, "rows": rows, "seed": seed}
            return json.dumps(call, default=_plain)
        except TypeError as error:
            raise UserError(
                f"reward {self.name!r} runs in a worker process, which is sent JSON: {error}. "
                "Leave the column out, or take timeout and processes away"
            ) from None

    def _ask(self, line: str) -> dict[str, Any]:
        worker = self._idle.get()
        try:
            return worker.ask(line)
        finally:
            self._idle.put(worker)

    def _joined(self, replies: list[dict[str, Any]], logs: Logs) -> list[Any]:
        into = logs.for_function(self.name)
        for reply in replies:
            for metric, values in reply["metrics"].items():
                for value in values:
                    into["log_metric"](metric, value)
        for column in dict.fromkeys(name for reply in replies for name in reply["extra"]):
            none = ([None] * len(reply["result"]) for reply in replies)
            values = [reply["extra"].get(column, empty) for reply, empty in zip(replies, none, strict=True)]
            into["log_extra"](column, [value for part in values for value in part])
        if len(replies) == 1 or not all(isinstance(reply["result"], list) for reply in replies):
            return replies[0]["result"] if replies else []
        return [score for reply in replies for score in reply["result"]]


class _Worker:
    """One process that answers one call at a time."""

    def __init__(self, name: str, spec: str | Mapping[str, Any], timeout: float | None) -> None:
        self.name, self.spec, self.timeout = name, spec, timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._where: Any = None
        self._end: Any = None
        self._lock = threading.Lock()
        self._asked: subprocess.Popen[bytes] | None = None
        """The process while it works on a call; None when it was interrupted."""

    def ask(self, line: str) -> dict[str, Any]:
        process = self.start()
        with self._lock:
            self._asked = process
        try:
            return self._reply(process, line)
        finally:
            with self._lock:
                interrupted, self._asked = self._asked is None, None
            if interrupted and self._process is not None:
                self._end()
                self._process = None

    def _reply(self, process: subprocess.Popen[bytes], line: str) -> dict[str, Any]:
        limit = math.inf if self.timeout is None else self.timeout + GRACE_SECONDS
        try:
            _send(process, line)
            reply: dict[str, Any] | None = read_reply(process, limit)
        except BrokenPipeError:
            reply = None
        if reply is None:
            raise self._failed(process)
        return reply

    def interrupt(self) -> None:
        with self._lock:
            process, self._asked = self._asked, None
        if process is not None:
            process.send_signal(signal.SIGINT)

    def _failed(self, process: subprocess.Popen[bytes]) -> Exception:
        # A process that is still alive exceeded the limit; one that ended may have written its stack.
        ended = _ended(process)
        self._where.seek(0)
        stack = _stack(self._where.read().decode(errors="replace"))
        self._end()
        self._process = None
        if self.timeout is not None and (stack or not ended):
            return Hung(f"did not return within its time limit of {self.timeout:g} s{stack}")
        code = process.returncode
        if code == -signal.SIGINT:
            return Interrupted()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return Died(f"lost its worker process, which {how}")

    def start(self) -> subprocess.Popen[bytes]:
        """The running process; starts one if there is none."""
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._where = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the process lives
        process = self._process = supervise.start(
            [sys.executable, str(Path(__file__).with_name("pool_worker.py"))],
            pass_fds=(self._where.fileno(),),
            stderr=subprocess.PIPE if sys.stderr.isatty() else None,
            env=os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
        )
        self._end = weakref.finalize(self, _kill, process, self._where, os.getpid())
        if process.stderr is not None:
            threading.Thread(target=_relay, args=(process.stderr,), name="prints of a reward", daemon=True).start()
        setup = {"path": sys.path, "name": self.name, "spec": self.spec, "timeout": self.timeout}
        setup["where"] = self._where.fileno()
        _send(process, json.dumps(setup))
        greeting = read_reply(process, START_SECONDS)
        if greeting == {"ready": True}:
            return process
        self._end()
        self._process = None
        if greeting is None:
            raise RewardFunctionError(f"the worker process of reward {self.spec!r} ended before it was ready")
        if "mistake" in greeting:
            raise UserError(greeting["mistake"])
        raise RewardFunctionError(
            f"reward {self.spec!r} cannot be loaded in a worker process: {greeting['error']}{greeting['frames']}"
        )


def _relay(stream: IO[bytes]) -> None:
    """Print what a worker process prints, where this process prints: on a terminal, above a live display."""
    with stream:
        for line in stream:
            sys.stderr.write(line.decode(errors="replace"))


def _send(process: subprocess.Popen[bytes], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line.encode() + b"\n")
    process.stdin.flush()


def _ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:
        return False
    return True


def _kill(process: subprocess.Popen[bytes], where: Any, owner: int) -> None:
    # A process that this one forked runs the finalizers at its end too.
    if os.getpid() == owner:
        supervise.end(process)
        where.close()


def _stack(dump: str) -> str:
    """The main thread's stack, innermost call first, without the frames of pool_worker.py; at most 12 frames."""
    frames = dump.rpartition("(most recent call first):\n")[2].splitlines()
    own_frames = [frame.strip() for frame in frames if frame.strip() and "pool_worker.py" not in frame]
    return "".join(f"\n  {frame}" for frame in own_frames[:12])


def _plain(value: Any) -> Any:
    if isinstance(value, TrainerState):
        return {field.name: getattr(value, field.name) for field in fields(TrainerState)} | {"log_history": []}
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is not a JSON value")
