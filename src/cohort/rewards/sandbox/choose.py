"""Which of a completion's texts is its program, by the names that each defines. Nothing is run to find out.

A program in several blocks is joined: the chosen text gets those of the others that define what it uses and lacks.
"""

from __future__ import annotations

import _ast
import builtins

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Sequence
    from types import CodeType
    from typing import Any

SCOPES = (_ast.FunctionDef, _ast.AsyncFunctionDef, _ast.ClassDef, _ast.Lambda)
UNUSABLE = (SyntaxError, ValueError, MemoryError, RecursionError)
"""What compiling a text raises that is no Python."""
STAR = "*"


class Reading:
    """A text as Python. `defines`: names that its top level binds; `makes`: those that it does not import; `lacks`:
    names that it reads and binds nowhere."""

    def __init__(self, source: str) -> None:
        tree: Any = compile(source, "<program>", "exec", _ast.PyCF_ONLY_AST)
        self.code: CodeType = compile(source, "<program>", "exec")
        self.defines: set[str] = set()
        self.makes: set[str] = set()
        bound: set[str] = set()
        read: set[str] = set()
        pending = [(tree, True)]
        while pending:
            node, top = pending.pop()
            names = _bound(node)
            bound.update(names)
            if top:
                self.defines.update(names)
                self.makes.update(() if isinstance(node, _ast.alias) else names)
            if isinstance(node, _ast.Name) and isinstance(node.ctx, _ast.Load):
                read.add(node.id)
            top = top and not isinstance(node, SCOPES)
            for field in node._fields:
                value = getattr(node, field, None)
                inner = value if isinstance(value, list) else (value,)
                pending += [(item, top) for item in inner if isinstance(item, _ast.AST)]
        self.lacks = read - bound

    def counts(self, wanted: set[str]) -> tuple[int, int]:
        return len(wanted & self.makes), len(wanted & self.defines)


def _bound(node: Any) -> list[str]:
    """The names that a node binds."""
    if isinstance(node, _ast.Name):
        return [] if isinstance(node.ctx, _ast.Load) else [node.id]
    if isinstance(node, _ast.alias):
        return [node.asname or node.name.partition(".")[0]]
    if isinstance(node, _ast.arg):
        return [node.arg]
    # Functions, classes, handlers of exceptions, patterns.
    name = getattr(node, "name", None) or getattr(node, "rest", None)
    return [name] if isinstance(name, str) else []


def choose(sources: Sequence[str], wanted: set[str], given: Container[str]) -> list[CodeType]:
    """The program, as pieces to run in order.

    sources: texts that may be the program, the best first. wanted: names that the tests use. given: names that are
    defined already. The program is the first text that defines the most of `wanted`, with what it lacks of the
    others. Raises the first text's SyntaxError if none is Python.
    """
    readings: list[Reading | None] = []
    best: Reading | None = None
    failure: Exception | None = None
    for source in sources:
        try:
            reading = Reading(source)
        except UNUSABLE as error:
            failure = failure or error
            readings.append(None)
            continue
        readings.append(reading)
        # Of `from solution import f` and a definition of f, the definition is the program.
        if best is None or reading.counts(wanted) > best.counts(wanted):
            best = reading
        if wanted and wanted <= best.makes:
            break
    if best is None:
        raise failure or ValueError("there is no code")
    lacking = _undefined(best.lacks | wanted - best.defines, given)
    if not lacking:
        return [best.code]
    for source in sources[len(readings) :]:
        try:
            readings.append(Reading(source))
        except UNUSABLE:
            readings.append(None)
    return _joined(readings, best, lacking, given)


def _joined(readings: list[Reading | None], best: Reading, lacking: set[str], given: Container[str]) -> list[CodeType]:
    """`best`, before and behind it the texts that define what is lacking, in the completion's order."""
    pieces = []
    before_best = False
    for reading in readings:
        if reading is None:
            continue
        if reading is best:
            before_best = True
            pieces.append(reading.code)
        # A text behind `best` must not replace what `best` defines.
        elif (before_best or not reading.defines & best.defines) and _helps(reading, lacking):
            pieces.append(reading.code)
            lacking = _undefined((lacking | reading.lacks) - reading.defines - best.defines, given)
    return pieces[::-1]


def _helps(reading: Reading, lacking: set[str]) -> bool:
    return bool(lacking & reading.defines) or bool(lacking and STAR in reading.defines)


def _undefined(names: set[str], given: Container[str]) -> set[str]:
    return {name for name in names if name not in given and not hasattr(builtins, name)}
