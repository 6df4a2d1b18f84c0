"""Worker processes that end together with every process that they started.

A worker has a supervisor between it and the process that uses it. The supervisor ends the worker and all its
descendants when the worker ends, when it is asked to, and when its parent ends in any way. A worker cannot do this
itself: a long regular expression stops all its threads, and a parent-death signal would come as soon as the thread
that started the worker ends. This file is the supervisor's program too, started by its path.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36

ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Signals that end a supervisor and its processes. The terminal sends it those that it sends the trainer."""
END_SECONDS = 5.0
"""Time that a supervisor has to end its processes, before it is killed itself, and the worker with it."""


def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """The supervisor of a process that runs the command. Its pipes, its exit code and its signal are the worker's."""
    supervisor = [sys.executable, "-I", "-S", __file__, str(os.getpid())]
    return subprocess.Popen(supervisor + command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a supervisor of `start`, its worker and all descendants; close its pipes."""
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    # A write buffer that still holds a request for the dead process raises when it is closed.
    process.stdin.detach().close()  # type: ignore[union-attr]
    process.stdout.close()  # type: ignore[union-attr]


def main(parent: int, command: list[str]) -> None:
    """Run the command until it ends, one of ENDS comes, standard input is closed, or the parent is gone."""
    signals, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, *ENDS):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup has the parent ignore SIGHUP
            signal.signal(number, lambda *_: None)
    # Descendants whose own parents end become children of this process, also after a double fork or setsid.
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    supervisor = os.getpid()
    worker = os.fork()
    if not worker:
        os.setpgid(0, 0)  # Ctrl-C is for the trainer and for the supervisor
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(1)
        os.execv(command[0], command)
    # The reader of the worker's output must see its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    poll = select.poll()
    poll.register(0, 0)
    poll.register(signals, select.POLLIN)
    code: int | None = None
    while code is None and os.getppid() == parent:
        ready = dict(poll.poll(1000))
        if 0 in ready:
            break
        asked = [-number for number in (os.read(signals, 4096) if signals in ready else b"") if number in ENDS]
        code = asked[0] if asked else _reap(worker)
    _end_all(worker)
    if code is not None and code < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler to reset
            signal.signal(-code, signal.SIG_DFL)
        os.kill(supervisor, -code)
    os._exit(code or 0)


def _reap(worker: int) -> int | None:
    """Reap the children that have ended; the worker's exit code, or its signal as a negative number, if it has."""
    code = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == worker:
                code = os.waitstatus_to_exitcode(ended[1])
    return code


def _end_all(worker: int) -> None:
    """Kill the descendants, generation by generation: the children of each one killed become this process's."""
    if sys.platform != "linux":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker, signal.SIGKILL)
        return
    while children := _children():
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        for pid in children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _children() -> list[int]:
    """The processes in /proc whose parent is this one."""
    children = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if fields and int(fields[1]) == os.getpid():
            children.append(int(name))
    return children


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        # The kernel reads 64-bit registers; ctypes passes plain integers as 32 bits.
        ctypes.CDLL(None).prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0)))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
