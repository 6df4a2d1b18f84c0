"""Running untrusted programs side by side: two processes for each, both gone before the verdict is returned."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from cohort.rewards.sandbox.layers import Layers, Limits, confinement, python
from cohort.rewards.sandbox.wire import WireError, decode, encode
from cohort.types import UserError

PYTHON_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Job:
    """A program and its tests.

    Job(sources=["def add(a, b): return a + b"], statements=["assert add(1, 2) == 3"])
    """

    sources: Sequence[str]
    """Readings of the completion, best first; the first that compiles and defines the entry point runs."""
    statements: Sequence[str] = ()
    """Each a test of its own."""
    script: str = ""
    """Instead of statements: code that may define `check(candidate)`."""
    setup: str = ""
    """Runs beside the tests, before them; its classes and imports are the program's too."""
    helpers: str = ""
    """Definitions that tests and program each have their own copy of."""
    entry_point: str = ""
    share: bool = False
    """Go on after the first failure."""


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
    """Results in order; at most so many at a time, one for each usable processor by default."""
    with ThreadPoolExecutor(processes or len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1) as pool:
        return list(pool.map(function, items))


def run_tests(job: Job, limits: Limits, layers: Layers) -> Verdict:
    """Judge one Python program. Raises UserError for tests that do not parse, RuntimeError where nothing starts."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        program = _start("program", layers, theirs.fileno(), confinement(layers, limits))
        try:
            theirs.close()
            # Tests are the data's, not the model's: limits, Landlock and seccomp are enough for them.
            outer = Layers("not for tests", layers.landlock, layers.seccomp)
            tester = _start("tester", outer, ours.fileno(), confinement(outer, limits))
            try:
                ours.close()
                answer = _verdict(tester, job, limits)
            finally:
                _stop(tester)
            if answer[:1] == ("unstarted",):
                _stop(program, keep=True)
                assert program.stderr is not None
                said = program.stderr.read().decode(errors="replace").strip()
                raise RuntimeError(f"the sandbox did not start; see `cohort doctor`. It said: {said[-1000:] or 'nothing'}")
        finally:
            _stop(program)
    if answer[:1] == ("broken",):
        raise UserError(f"a row's tests are not Python: {answer[1]}")
    return Verdict(*answer)


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


def _verdict(tester: subprocess.Popen[bytes], job: Job, limits: Limits) -> tuple[Any, ...]:
    total = len(job.statements) or 1
    request = (job.setup, job.helpers, list(job.statements), job.script, job.entry_point, list(job.sources), job.share)
    try:
        written, errors = tester.communicate(encode(request), limits.wall_seconds)
    except subprocess.TimeoutExpired:
        return 0, total, f"still running after {limits.wall_seconds:g} seconds"
    try:
        answer = decode(written)
    except (WireError, ValueError):
        said = errors.decode(errors="replace").strip()[-500:]
        return 0, total, f"the tests ended with exit {tester.returncode}: {said}"
    assert type(answer) is tuple and len(answer) in (2, 3), answer
    return answer


def _stop(process: subprocess.Popen[bytes], keep: bool = False) -> None:
    """Kill and reap. keep: its pipes stay open."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None and not keep:
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
    found = shutil.which(words[0]) if words else None
    if found is None or len(named) != 1:
        problem = "no such program" if named and words else "it must name the program's file once, as {file}"
        raise UserError(f"unit_tests' command {command!r}: {problem}")
    passed, reason = 0, ""
    for given, expected in cases:
        with tempfile.TemporaryDirectory(prefix="cohort-") as folder:
            # Not our own user where we are root: see kernel._own_user.
            os.chmod(folder, 0o777)
            file = os.path.join(folder, named[0].replace("{file}", "program"))
            with open(file, "w", encoding="utf-8", errors="surrogateescape") as opened:
                opened.write(source)
            argv = [os.path.realpath(found), *(file if word is named[0] else word for word in words[1:])]
            output, problem = _output(argv, given, folder, limits, layers)
        same = not problem and _lines(output) == _lines(expected)
        passed += same
        if not same:
            reason = reason or problem or f"printed {output[:200]!r}, expected {expected[:200]!r}"
            if not share:
                break
    return Verdict(passed, len(cases), reason)


def _output(argv: list[str], given: str, folder: str, limits: Limits, layers: Layers) -> tuple[str, str]:
    """(standard output, why there is none)."""
    home = (os.path.dirname(os.path.dirname(argv[0])),)
    confined = confinement(layers, limits, folder, home, execute=True)
    code = f"from sandbox.kernel import confine; import os; confine(**{confined!r}); os.execv({argv[0]!r}, {argv!r})"
    # Files, not pipes: the limit on a file's size binds what is written to them.
    with tempfile.TemporaryFile() as read, tempfile.TemporaryFile() as written:
        read.write(given.encode("utf-8", "surrogateescape"))
        read.seek(0)
        process = subprocess.Popen(
            python(layers, code, folder, home),
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
