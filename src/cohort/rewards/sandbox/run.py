"""Running untrusted programs in parallel, in two processes each, which end before the verdict is returned."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from cohort.rewards.sandbox.layers import Layers, Limits, confinement, python
from cohort.rewards.sandbox.plan import Plan
from cohort.rewards.sandbox.tester import STARTED
from cohort.rewards.sandbox.wire import WireError, decode, encode
from cohort.types import UserError

PYTHON_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}
ENDED = "the program ended"
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
    words = shlex.split(command)
    named = [word for word in words if "{file}" in word]
    interpreter = shutil.which(words[0]) if words else None
    if interpreter is None or len(named) != 1:
        problem = "no such program" if named and words else "it must name the program's file once, as {file}"
        raise UserError(f"unit_tests' command {command!r}: {problem}")
    passed, reason = 0, ""
    for given, expected in cases:
        with tempfile.TemporaryDirectory(prefix="cohort-") as folder:
            # If we are root, the program runs as another user: see kernel._own_user.
            os.chmod(folder, 0o777)
            file = os.path.join(folder, named[0].replace("{file}", "program"))
            with open(file, "w", encoding="utf-8", errors="surrogateescape") as opened:
                opened.write(source)
            argv = [os.path.realpath(interpreter), *(file if word is named[0] else word for word in words[1:])]
            output, problem = _output(argv, given, folder, limits, layers)
        same = not problem and _lines(output) == _lines(expected)
        passed += same
        if not same:
            reason = reason or problem or f"printed {output[:200]!r}, expected {expected[:200]!r}"
            if not share:
                break
    return Verdict(passed, len(cases), reason)


def _output(argv: list[str], given: str, folder: str, limits: Limits, layers: Layers) -> tuple[str, str]:
    """(standard output, the reason of a failure or "")."""
    # An interpreter may be outside the system's folders: it and the `lib` next to its `bin` must be readable.
    needed = (argv[0], os.path.join(os.path.dirname(os.path.dirname(argv[0])), "lib"))
    confined = confinement(layers, limits, folder, needed, execute=True)
    code = f"from sandbox.kernel import confine; import os; confine(**{confined!r}); os.execv({argv[0]!r}, {argv!r})"
    # Files, not pipes, because the limit on a file's size then applies to the output.
    with tempfile.TemporaryFile() as read, tempfile.TemporaryFile() as written:
        read.write(given.encode("utf-8", "surrogateescape"))
        read.seek(0)
        process = subprocess.Popen(
            python(layers, code, folder, needed),
            stdin=read,
            stdout=written,
            stderr=subprocess.DEVNULL,
            env={"PATH": "/usr/bin:/bin", "HOME": folder, "TMPDIR": folder, "LC_ALL": "C.UTF-8"},
            cwd=folder,
            start_new_session=True,
        )
        try:
            status = process.wait(limits.wall_seconds)
        except subprocess.TimeoutExpired:
            return "", f"still running after {limits.wall_seconds:g} seconds"
        finally:
            _stop(process)
        written.seek(0)
        text = written.read(limits.file_size).decode("utf-8", "replace")
    return text, f"exit {status}" if status else ""


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]
