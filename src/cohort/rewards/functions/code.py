"""`unit_tests`: runs the completion's program against the row's tests in the sandbox."""

from __future__ import annotations

import ast
import itertools
import logging
from collections.abc import Sequence
from typing import Any

from cohort.rewards.functions.programs import bodies, of_command, programs
from cohort.rewards.functions.text import content
from cohort.rewards.sandbox.layers import Limits, find_layers, require
from cohort.rewards.sandbox.plan import plan
from cohort.rewards.sandbox.run import Verdict, run_command, run_tests, side_by_side, try_command
from cohort.types import Text, UserError

log = logging.getLogger("cohort")

Row = dict[str, Any]
PYTHON_COLUMNS = ("test_list", "test")
COMMAND_COLUMNS = ("test_inputs", "test_outputs")


class UnitTests:
    """+1 if all of the row's tests pass, else -1; with `share`, the fraction that passes. None for rows without tests.

    The tests are in the columns test_list (and test_setup_code), or test and entry_point; with a command, in
    test_inputs and test_outputs. The reasons of failures go to `log_extra`.
    """

    __name__ = "unit_tests"

    def __init__(
        self,
        limits: Limits,
        share: bool = False,
        workers: int | None = None,
        command: str | None = None,
        allow_unsandboxed: bool = False,
    ) -> None:
        self.limits = limits
        self.share = share
        self.workers = workers
        self.command = command
        self.allow_unsandboxed = allow_unsandboxed

    def start(self) -> None:
        """Called before a run. Raises UserError if this machine has no sandbox, unless allow_unsandboxed is true, or if
        the command does not start."""
        if not require(find_layers(), self.allow_unsandboxed):
            log.warning(
                "WARNING: allow_unsandboxed is true and this machine has no sandbox. Programs that a model writes run "
                "as you, with your files and your network; only time, memory and file size are limited."
            )
        if self.command:
            try_command(self.command, self.limits, find_layers())

    def __call__(
        self, completions: Sequence[Text], prompts: Sequence[Text] | None = None, log_extra: Any = None, **columns: Any
    ) -> list[float | None]:
        require(find_layers(), self.allow_unsandboxed)
        needed = COMMAND_COLUMNS if self.command else PYTHON_COLUMNS
        if not any(name in columns for name in needed):
            raise UserError(f"unit_tests needs a column {' or '.join(needed)}; the rows have: {', '.join(columns)}")
        rows: list[Row] = [
            {name: values[i] for name, values in columns.items() if isinstance(values, list | tuple)}
            | {"completion": content(completion), "prompt": _last(prompts[i]) if prompts is not None else ""}
            for i, completion in enumerate(completions)
        ]
        verdicts = side_by_side(self.verdict, rows, self.workers)
        if log_extra is not None:
            log_extra("unit_tests", ["" if verdict is None else verdict.reason for verdict in verdicts])
        return [None if verdict is None else self._score(verdict) for verdict in verdicts]

    def verdict(self, row: Row) -> Verdict | None:
        """The verdict on a row's program; None for a row without tests."""
        if self.command:
            inputs, expected = (list(row.get(name) or ()) for name in COMMAND_COLUMNS)
            if len(inputs) != len(expected):
                raise UserError(f"unit_tests: a row has {len(inputs)} test_inputs and {len(expected)} test_outputs")
            cases = list(zip(map(str, inputs), map(str, expected), strict=True))
            code = of_command(row["completion"], self.command)
            run = (self.command, code, cases, self.share, self.limits, find_layers())
            return run_command(*run) if cases else None
        statements, script = row.get("test_list") or [], row.get("test") or ""
        if not statements and not script:
            return None
        if isinstance(statements, str) or not isinstance(script, str):
            raise UserError(f"unit_tests: test_list is a list of texts and test a text, not {(statements or script)!r}")
        signature, body = _signature(row["prompt"])
        functions = [node for node in body if isinstance(node, ast.FunctionDef)]
        entry = row.get("entry_point") or (functions[-1].name if functions else "")
        # The prompt's imports and helper functions, without the entry point: that is the program's.
        helper_nodes = [node for node in body if node not in functions or node.name != entry]
        helpers = ast.unparse(ast.Module(helper_nodes, []))
        setup = row.get("test_setup_code") or ""
        planned = plan(tuple(statements), "" if statements else script, setup, helpers, entry, self.share)
        sources = programs(row["completion"])
        sources += bodies(signature, sources) if signature else []
        return run_tests(sources, planned, self.share, self.limits, find_layers())

    def _score(self, verdict: Verdict) -> float:
        return verdict.passed / verdict.total if self.share else 1.0 if verdict.ok else -1.0


def unit_tests_reward(
    *,
    share: bool = False,
    seconds: float = 4.0,
    memory_mb: int = 512,
    workers: int | None = None,
    command: str | None = None,
    allow_unsandboxed: bool = False,
) -> UnitTests:
    """`unit_tests` with options.

    share: the score is the fraction of tests that pass. seconds: processor time of one program; its limit of elapsed
    time is twice that plus one second. memory_mb: its address space in MiB. workers: programs that run at the same
    time, by default two for each processor. command: a template such as `perl {file}.pl` for other languages, whose
    output is compared. allow_unsandboxed: on a machine without a sandbox, run programs with resource limits alone.
    """
    for name, value in (("seconds", seconds), ("memory_mb", memory_mb), ("workers", 1 if workers is None else workers)):
        if not value > 0:
            raise UserError(f"unit_tests: {name} is {value}; it must be above 0")
    return UnitTests(Limits(float(seconds), memory_mb << 20), share, workers, command, allow_unsandboxed)


unit_tests = unit_tests_reward()


def _last(prompt: Text) -> str:
    return prompt if isinstance(prompt, str) else content(prompt[-1:])


def _signature(prompt: str) -> tuple[str, list[ast.stmt]]:
    """(the prompt's Python, its statements); ("", []) if the prompt is not Python that defines a function."""
    # A signature may have no body at all, not even a docstring.
    for code, ending in itertools.product(programs(prompt), ("", "\n    pass")):
        try:
            body = ast.parse(code.rstrip() + ending if ending else code).body
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            continue
        if any(isinstance(node, ast.FunctionDef) for node in body):
            return code, body
    return "", []
