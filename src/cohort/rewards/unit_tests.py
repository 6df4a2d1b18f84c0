"""`unit_tests`: the completion's program against the row's tests, in the sandbox."""

from __future__ import annotations

import ast
import logging
from collections.abc import Sequence
from typing import Any

from cohort.rewards.sandbox.layers import Limits, find_layers, require
from cohort.rewards.sandbox.run import Job, Verdict, run_command, run_tests, side_by_side
from cohort.rewards.text import content
from cohort.types import Text, UserError

log = logging.getLogger("cohort")

Row = dict[str, Any]
PYTHON_COLUMNS = ("test_list", "test")
COMMAND_COLUMNS = ("test_inputs", "test_outputs")


class UnitTests:
    """+1 where all of the row's tests pass, -1 otherwise; with `share` the share that passes. None without tests.

    timeout: seconds of processor time for a program; on the clock twice as many and one. memory_mb: MiB of address
    space. processes: programs side by side, by default one for each processor. command: a template such as
    `perl {file}.pl` for other languages, judged by what they print. allow_unsandboxed: run with resource limits alone
    where this machine has no sandbox.
    """

    __name__ = "unit_tests"

    def __init__(
        self,
        *,
        share: bool = False,
        timeout: float = 4.0,
        memory_mb: int = 512,
        processes: int | None = None,
        command: str | None = None,
        allow_unsandboxed: bool = False,
    ) -> None:
        for name, value in (("timeout", timeout), ("memory_mb", memory_mb), ("processes", processes or 1)):
            if not value > 0:
                raise UserError(f"unit_tests: {name} is {value}; it must be above 0")
        self.share = share
        self.limits = Limits(float(timeout), memory_mb << 20)
        self.processes = processes
        self.command = command
        self.allow_unsandboxed = allow_unsandboxed

    def start(self) -> None:
        """Called before a run. Raises UserError where this machine has no sandbox and may not do without."""
        if not require(find_layers(), self.allow_unsandboxed):
            log.warning(
                "WARNING: allow_unsandboxed is true and this machine has no sandbox. Programs that a model writes run "
                "as you, with your files and your network; only time, memory and file size are limited."
            )

    def __call__(
        self, completions: Sequence[Text], prompts: Sequence[Text] | None = None, log_extra: Any = None, **columns: Any
    ) -> list[float | None]:
        """[B] scores. Columns: test_list (and test_setup_code), or test and entry_point; test_inputs and test_outputs
        with a command. log_extra gets why programs failed."""
        require(find_layers(), self.allow_unsandboxed)
        needed = COMMAND_COLUMNS if self.command else PYTHON_COLUMNS
        if not any(name in columns for name in needed):
            raise UserError(f"unit_tests needs a column {' or '.join(needed)}; the rows have: {', '.join(columns)}")
        rows: list[Row] = [
            {name: values[i] for name, values in columns.items() if isinstance(values, list | tuple)}
            | {"completion": content(completion), "prompt": _last(prompts[i]) if prompts is not None else ""}
            for i, completion in enumerate(completions)
        ]
        verdicts = side_by_side(self.verdict, rows, self.processes)
        if log_extra is not None:
            log_extra("unit_tests", ["" if verdict is None else verdict.reason for verdict in verdicts])
        return [None if verdict is None else self._score(verdict) for verdict in verdicts]

    def verdict(self, row: Row) -> Verdict | None:
        """How a row's program fares; None for a row without tests."""
        code = last_block(row["completion"])
        if self.command:
            given, expected = (list(row.get(name) or ()) for name in COMMAND_COLUMNS)
            if len(given) != len(expected):
                raise UserError(f"unit_tests: a row has {len(given)} test_inputs and {len(expected)} test_outputs")
            cases = list(zip(map(str, given), map(str, expected), strict=True))
            run = (self.command, code, cases, self.share, self.limits, find_layers())
            return run_command(*run) if cases else None
        statements, script = row.get("test_list") or [], row.get("test") or ""
        if not statements and not script:
            return None
        if isinstance(statements, str) or not isinstance(script, str):
            raise UserError(f"unit_tests: test_list is a list of texts and test a text, not {(statements or script)!r}")
        return run_tests(self._job(code, row, list(statements), script), self.limits, find_layers())

    def _job(self, code: str, row: Row, statements: list[str], script: str) -> Job:
        signature, functions = _signature(row["prompt"])
        entry = row.get("entry_point") or (functions[-1] if functions else "")
        return Job(
            sources=[code, *_bodies(signature, code)] if signature else [code],
            statements=statements,
            script="" if statements else script,
            setup=row.get("test_setup_code") or "",
            helpers=_without(signature, entry),
            entry_point=entry,
            share=self.share,
        )

    def _score(self, verdict: Verdict) -> float:
        return verdict.passed / verdict.total if self.share else 1.0 if verdict.ok else -1.0


unit_tests = UnitTests()


def last_block(text: str) -> str:
    """The code of the last fenced block that is not empty, closed or not; else the whole text."""
    block: list[str] = []
    last, fence, indent = "", "", 0
    for line in text.replace("\r\n", "\n").split("\n"):
        bare = line.lstrip(" ")
        if not fence and bare.startswith(("```", "~~~")):
            fence, indent, block = bare[:3], len(line) - len(bare), []
        elif fence and bare.rstrip() == fence:
            last, fence = "\n".join(block) if any(map(str.strip, block)) else last, ""
        elif fence:
            # A block inside a list item is indented with its fence.
            block.append(line[min(indent, len(line) - len(bare)) :])
    if fence and any(map(str.strip, block)):
        last = "\n".join(block)
    return last or text


def _last(prompt: Text) -> str:
    return prompt if isinstance(prompt, str) else content(prompt[-1:])


def _signature(prompt: str) -> tuple[str, list[str]]:
    """(the prompt's Python, the functions that it defines); nothing where the prompt is no Python."""
    code = last_block(prompt)
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return "", []
    functions = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    return (code, functions) if functions else ("", [])


def _bodies(signature: str, code: str) -> list[str]:
    """The code as the body of the prompt's last function: as it stands, its first line indented, all indented."""
    head = signature.rstrip() + "\n"
    indented = "\n".join("    " + line for line in code.split("\n"))
    return [head + code, head + "    " + code.lstrip(), head + indented]


def _without(signature: str, entry_point: str) -> str:
    """The prompt's imports and helper functions."""
    body = ast.parse(signature).body
    kept = [node for node in body if not (isinstance(node, ast.FunctionDef) and node.name == entry_point)]
    return ast.unparse(ast.Module(kept, []))
