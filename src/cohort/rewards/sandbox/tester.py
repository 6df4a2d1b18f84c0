"""The process of the tests: it runs them against the program in the other process and reports how many passed.

The program's names are proxies (`remote`). All other names in a test are defined by the test, or are built-ins or
modules of the standard library, so the program cannot replace them.
"""

from __future__ import annotations

import os

from .kernel import confine
from .remote import Client, Remote
from .wire import Channel, Gone, WireError, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CHECK = "__passes__"
STARTED = b"."
"""Written before the verdict: the tester has started."""


class Tests:
    """The tests of one row. `plan` has the fields of `plan.Plan`, which are documented there."""

    def __init__(self, plan: dict[str, Any], sources: list[str], share: bool) -> None:
        self.plan, self.sources, self.share = plan, sources, share
        self.namespace: dict[str, Any] = {"__name__": "tests"}

    def run(self, client: Client) -> tuple[int, int, str]:
        """(passed, total, reason of the first failure). Without share it stops at the first failure."""
        statements = self.plan["statements"]
        try:
            self._prepare(client)
        except Exception as error:  # noqa: BLE001 - the program's, or caused by its values
            return 0, len(statements) or self.plan["assertions"] or 1, _reason("the code", error)
        if not statements:
            return self._run_script()
        passed, reasons = 0, []
        for statement in statements:
            reason = self._failure(statement)
            passed += not reason
            reasons += [reason] if reason else []
            if reason and not self.share:
                break
        return passed, len(statements), "; ".join(reasons)[:1000]

    def _prepare(self, client: Client) -> None:
        """Load the program and bind the names that tests use."""
        plan = self.plan
        wanted = [plan["entry_point"]] if plan["entry_point"] else list(plan["names"] or plan["shadows"])
        defined = client.ask("load", plan["given"], self.sources, wanted)
        exec(compile(plan["helpers"], "<prompt>", "exec"), self.namespace)
        shadows = [name for name in plan["shadows"] if name in defined]
        if not plan["names"] and len(shadows) > 1:
            raise NameError(f"the code defines the built-ins {', '.join(shadows)}: the tests' own cannot be told apart")
        for name in plan["names"] or shadows:
            # A helper function of the prompt is defined here, even if the program defines the same name.
            if name in defined and (name == plan["entry_point"] or name not in self.namespace):
                self.namespace[name] = client.ask("get", name)
        for name in plan["modules"]:
            self.namespace.setdefault(name, __import__(name))
        exec(compile(plan["setup"], "<setup>", "exec"), self.namespace)

    def _run_script(self) -> tuple[int, int, str]:
        results: list[str] = []

        def passes(test: Any) -> None:
            results.append("an assertion that does not return")
            try:
                results[-1] = "" if test() else "an assertion failed"
            except Exception as error:  # noqa: BLE001 - a test fails by any exception
                results[-1] = _reason("an assertion", error)

        self.namespace[CHECK] = passes
        reason = self._failure(self.plan["script"])
        check = self.namespace.get("check")
        if not reason and check is not None and type(check) is not Remote:
            self.namespace["__candidate__"] = self.namespace.get(self.plan["entry_point"])
            reason = self._failure("check(__candidate__)")
        total = max(len(results), self.plan["assertions"])
        if not total:
            return int(not reason), 1, reason
        return results.count(""), total, reason or next(filter(None, results), "")

    def _failure(self, source: str) -> str:
        """The reason why the statements fail; empty if they pass."""
        try:
            exec(compile(source, "<test>", "exec"), self.namespace)
        except Exception as error:  # noqa: BLE001 - a test fails by any exception
            return _reason(source[:200], error)
        return ""


def _reason(where: str, error: Exception) -> str:
    if isinstance(error, Gone):
        return f"{where}: the program ended"
    return f"{where}: {type(error).__name__}: {error}"[:500]


def main(fd: int, confinement: dict[str, Any]) -> None:
    """Read a plan from standard input, run it with the program at socket `fd`, write the verdict to standard output."""
    with os.fdopen(os.dup(0), "rb") as pipe:
        tests = Tests(*decode(pipe.read()))
    verdict_fd = os.dup(1)
    # What tests print must not get into the verdict.
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    confine(**confinement)
    channel = Channel(fd)
    verdict: tuple[Any, ...]
    with os.fdopen(verdict_fd, "wb") as pipe:
        pipe.write(STARTED)
        pipe.flush()
        try:
            channel.receive()
        except Gone:
            verdict = ("unstarted",)
        else:
            verdict = tests.run(Client(channel))
        try:
            pipe.write(encode(verdict))
        except WireError as error:
            pipe.write(encode((0, 1, str(error))))
