"""Running untrusted programs in parallel, in two processes each, which end before the verdict is returned."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, TypeVar

from cohort.rewards.sandbox.folder import scratch, size
from cohort.rewards.sandbox.layers import TMP_SIZE, Layers, Limits, confinement, python
from cohort.rewards.sandbox.plan import Plan
from cohort.rewards.sandbox.tester import STARTED
from cohort.rewards.sandbox.wire import WireError, decode, encode
from cohort.types import UserError

PYTHON_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}
ENDED = "the program ended"
WATCH_SECONDS = 0.02
"""Time between two looks at the size of a program's folder: a disk takes some tens of MiB meanwhile."""
FEW_BYTES = 1 << 20
"""A program that has written more is stopped while its files are counted."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Verdict:
    """Verdict(passed=2, total=3, reason="assert add(1, 2) == 4: AssertionError: ")"""

    passed: int
    total: int
    reason: str = ""

    @property
    def ok(self) -> bool:
        return self.passed == self.total


def side_by_side(function: Callable[[Item], Result], items: Iterable[Item], processes: int | None) -> list[Result]:
    """The results in order. `processes` items run at a time; None: two for each usable processor, because a program's
    two processes wait for each other half of the time."""
    available = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    with ThreadPoolExecutor(processes or 2 * (available or 1)) as pool:
        return list(pool.map(function, items))


def run_tests(sources: Sequence[str], plan: Plan, share: bool, limits: Limits, layers: Layers) -> Verdict:
    """Judge one Python program. Raises RuntimeError where the sandbox does not start.

    sources: readings of the completion, best first; `choose.choose` takes one by the names that it defines.
    share: go on after the first failure.
    """
    job = encode((asdict(plan), list(sources), share))
    total = len(plan.statements) or plan.assertions or 1
    ours, theirs = socket.socketpair()
    with ours, theirs:
        program = _start("program", layers, theirs.fileno(), confinement(layers, limits))
        try:
            theirs.close()
            # Tests come from the dataset, not from the model: limits, Landlock and seccomp are enough for them.
            outer = Layers("not for tests", layers.landlock, layers.seccomp)
            tester = _start("tester", outer, ours.fileno(), confinement(outer, limits))
            try:
                ours.close()
                answer = _verdict(tester, job, total, limits)
            finally:
                _stop(tester)
            if answer[:1] == ("unstarted",):
                program.kill()
                said = program.communicate()[1].decode(errors="replace").strip()
                raise RuntimeError(f"the program's process did not start; see `cohort doctor`. It said: {said[-1000:]}")
            passed, total, reason = answer
            if reason.endswith(ENDED):
                reason += _how(program, limits)
        finally:
            _stop(program)
    return Verdict(passed, total, reason)


def _how(program: subprocess.Popen[bytes], limits: Limits) -> str:
    """The signal or exit status of a program that has ended, for a message."""
    try:
        status = program.wait(1)
    except subprocess.TimeoutExpired:
        return ""
    # bubblewrap exits with 128 plus the signal's number if a signal ended the command.
    number = -status if status < 0 else status - 128
    if number in (signal.SIGKILL, signal.SIGXCPU):
        return f": over {limits.cpu_seconds:g} seconds of processor time"
    return f": {signal.strsignal(number)}" if number > 0 else f": exit {status}"


def _start(role: str, layers: Layers, fd: int, confined: dict[str, Any]) -> subprocess.Popen[bytes]:
    """A process of `sandbox.program` or `sandbox.tester`, with one end of the socket between them."""
    pipe = subprocess.PIPE if role == "tester" else subprocess.DEVNULL
    return subprocess.Popen(
        python(layers, f"from sandbox.{role} import main; main({fd}, {confined!r})"),
        stdin=pipe,
        stdout=pipe,
        stderr=subprocess.PIPE,
        pass_fds=[fd],
        env=PYTHON_ENVIRONMENT,
        cwd="/",
        start_new_session=True,
    )


def _verdict(tester: subprocess.Popen[bytes], job: bytes, total: int, limits: Limits) -> tuple[Any, ...]:
    try:
        written, errors = tester.communicate(job, limits.wall_seconds)
    except subprocess.TimeoutExpired:
        return 0, total, f"still running after {limits.wall_seconds:g} seconds"
    said = errors.decode(errors="replace").strip()[-1000:]
    if written[:1] != STARTED:
        raise RuntimeError(f"the tests' process did not start; see `cohort doctor`. It said: {said}")
    try:
        answer = decode(written[1:])
    except (WireError, ValueError):
        return 0, total, f"the tests ended with exit {tester.returncode}: {said}"
    assert type(answer) is tuple and len(answer) in (1, 3), answer
    return answer


def _stop(process: subprocess.Popen[bytes]) -> None:
    # Without a sandbox, a program's own processes are in its group.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def run_command(
    command: str, source: str, cases: Sequence[tuple[str, str]], share: bool, limits: Limits, layers: Layers
) -> Verdict:
    """Judge a program in any language by what it prints: cases are (standard input, expected output).

    command: a template with `{file}`, such as `perl {file}.pl`; no shell reads it. Trailing whitespace of lines and
    of the whole does not count. Raises UserError for a template that cannot run.
    """
    try_command(command, limits, layers)
    passed, reason = 0, ""
    for given, expected in cases:
        with scratch() as folder:
            output, problem = _output(_arguments(command, folder, source), given, folder, limits, layers)
        same = not problem and _lines(output) == _lines(expected)
        passed += same
        if not same:
            reason = reason or problem or f"printed {output[:200]!r}, expected {expected[:200]!r}"
            if not share:
                break
    return Verdict(passed, len(cases), reason)


@lru_cache(maxsize=64)
def try_command(command: str, limits: Limits, layers: Layers) -> None:
    """Raises UserError where the template is wrong or its interpreter does not start in the sandbox.

    An interpreter that starts reads its program: it runs an empty one, or says something else about an empty file
    than about a missing one, as a compiler does. One that does not start says the same about both.
    """
    said = []
    for source in ("", None):
        with scratch() as folder, tempfile.TemporaryFile() as errors:
            _, problem = _output(_arguments(command, folder, source), "", folder, limits, layers, errors)
            if not problem:
                return
            errors.seek(0)
            text = errors.read(1 << 20).decode("utf-8", "replace").replace(folder, "").strip()
            said.append((problem, text))
    # Addresses and process numbers differ from one start to the next.
    same = [(problem, re.sub(r"0x[0-9a-fA-F]+|[0-9]+", "0", text)) for problem, text in said]
    if same[0] == same[1]:
        problem, text = said[0]
        raise UserError(
            f"unit_tests' command {command!r} does not start in the sandbox, so every program would fail: {problem}; "
            f"it said {text[-500:]!r}. It can read the system's folders, itself and the `lib` next to its own folder, "
            f"has {limits.memory >> 20} MiB of memory (memory_mb), and cannot start other processes"
        )


def _arguments(command: str, folder: str, source: str | None) -> list[str]:
    """The template's words for the program's file, which is written into the folder; None: no file."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"unit_tests' command {command!r}: {error}") from None
    if command.count("{file}") != 1:
        raise UserError(f"unit_tests' command {command!r}: it must name the program's file once, as {{file}}")
    interpreter = shutil.which(words[0]) if "\0" not in command else None
    if interpreter is None:
        raise UserError(f"unit_tests' command {command!r}: no such program: {words[0]!r}")
    place = next(i for i, word in enumerate(words) if "{file}" in word)
    before, after = words[place].split("{file}")
    # `-f{file}` and `--file={file}` are options with a file; other letters belong to the file's name.
    option = before if before.startswith("-") or before.endswith("=") else ""
    name = f"{before[len(option) :]}program{after}"
    if "/" in name:
        raise UserError(
            f"unit_tests' command {command!r}: {{file}} stands for a whole path; add letters to it, no folders"
        )
    file = os.path.join(folder, name)
    if source is not None:
        with open(file, "wb") as opened:
            opened.write(_encoded(source))
    return [os.path.realpath(interpreter), *words[1:place], option + file, *words[place + 1 :]]


def _encoded(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _output(
    argv: list[str], given: str, folder: str, limits: Limits, layers: Layers, errors: Any = subprocess.DEVNULL
) -> tuple[str, str]:
    """(standard output, the reason of a failure or "")."""
    # An interpreter may be outside the system's folders: it and the `lib` next to its `bin` must be readable.
    needed = [argv[0], os.path.join(os.path.dirname(os.path.dirname(argv[0])), "lib")]
    # Under bubblewrap a program writes in its private /tmp, which has a size and leaves nothing behind.
    private = layers.bubblewrap is None
    home = "/tmp" if private else folder
    needed += [folder] if private else []
    confined = confinement(layers, limits, "" if private else folder, tuple(needed), execute=True)
    code = f"from sandbox.kernel import confine; import os; confine(**{confined!r}); os.execv({argv[0]!r}, {argv!r})"
    # Files, not pipes, because the limit on a file's size then applies to the output.
    with tempfile.TemporaryFile() as read, tempfile.TemporaryFile() as written:
        read.write(_encoded(given))
        read.seek(0)
        process = subprocess.Popen(
            python(layers, code, tuple(needed)),
            stdin=read,
            stdout=written,
            stderr=errors,
            env={"PATH": "/usr/bin:/bin", "HOME": home, "TMPDIR": home, "LC_ALL": "C.UTF-8"},
            cwd=folder,
            start_new_session=True,
        )
        try:
            problem = _ended(process, folder, limits)
        finally:
            _stop(process)
        written.seek(0)
        text = written.read(limits.file_size).decode("utf-8", "replace")
    return text, problem


def _ended(process: subprocess.Popen[bytes], folder: str, limits: Limits) -> str:
    """Wait until the program ends, runs too long or has written too much; the reason of a failure or ""."""
    until = time.monotonic() + limits.wall_seconds
    status, written, counting = None, 0, 0.0
    while status is None and time.monotonic() < until:
        with suppress(subprocess.TimeoutExpired):
            status = process.wait(max(WATCH_SECONDS, counting))
        # Counting many files takes a while, in which the program would write more.
        pause, started = status is None and written > FEW_BYTES, time.monotonic()
        if pause:
            process.send_signal(signal.SIGSTOP)
        written = size(folder, process.pid, TMP_SIZE)
        if written >= TMP_SIZE:
            return f"wrote over {TMP_SIZE >> 20} MiB of files"
        if pause:
            process.send_signal(signal.SIGCONT)
            counting = time.monotonic() - started
            until += counting
    if status is None:
        return f"still running after {limits.wall_seconds:g} seconds"
    return f"exit {status}" if status else ""


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]
