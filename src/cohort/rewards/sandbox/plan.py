"""Reading the source of a row's tests: which names they need from the program and which they define."""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from cohort.types import UserError

CHECK = "__passes__"
"""The function that replaces `assert` when each assertion counts as a test."""


@dataclass(frozen=True)
class Plan:
    """One row's tests, ready to run. Plain data, which is sent to the tester."""

    statements: tuple[str, ...]
    """Each statement is one test."""
    script: str
    """The tests as one script, if there are no statements; it may define `check(candidate)`."""
    assertions: int
    """The number of assertions in the script; 0 if they are not counted one by one."""
    given: str
    """Code that runs in the program's process before the program: imports, classes and the prompt's helpers."""
    setup: str
    """Code that runs in the tester before the tests: the setup code without its classes."""
    helpers: str
    """Code that runs in the tester before `setup`: the prompt's helpers, which the program cannot replace there."""
    names: tuple[str, ...]
    """Names of the program: free in the tests, and neither built-ins nor standard modules."""
    shadows: tuple[str, ...]
    """Names of built-ins that the tests use. They are the program's if `names` is empty (MBPP asks for a `sum`)."""
    modules: tuple[str, ...]
    """Standard modules that the tests use without importing them."""
    entry_point: str


@lru_cache(maxsize=4096)
def plan(statements: tuple[str, ...], script: str, setup: str, helpers: str, entry_point: str, share: bool) -> Plan:
    """The plan of a row's tests. Raises UserError for tests that are not Python."""
    prepared = _parsed(setup, "test_setup_code")
    tests = _parsed(script, "test")
    nodes = [node for tree in (prepared, tests, *_statements(statements)) for node in ast.walk(tree)]
    used = {node.id for node in nodes if isinstance(node, ast.Name)} - set(_bound(nodes)) | ({entry_point} - {""})
    modules = used & sys.stdlib_module_names
    imports = (ast.Import, ast.ImportFrom)
    classes: list[ast.stmt] = [node for node in prepared.body if isinstance(node, ast.ClassDef)]
    assertions = sum(isinstance(node, ast.Assert) for node in ast.walk(tests)) if share else 0
    return Plan(
        statements,
        ast.unparse(ast.fix_missing_locations(_Counted().visit(tests))) if assertions else script,
        assertions,
        _source([node for node in prepared.body if isinstance(node, imports)], classes) + "\n" + helpers,
        _source([node for node in prepared.body if node not in classes]),
        helpers,
        tuple(sorted(name for name in used - modules if not hasattr(builtins, name))),
        tuple(sorted(name for name in used - modules if hasattr(builtins, name))),
        tuple(sorted(modules)),
        entry_point,
    )


def _parsed(source: str, column: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise UserError(f"a row's {column} is not Python: {error}. It starts {source[:200]!r}") from None


def _statements(statements: Sequence[str]) -> list[ast.Module]:
    return [_parsed(statement, "test_list") for statement in statements]


def _source(*parts: list[ast.stmt]) -> str:
    return "\n".join(ast.unparse(ast.Module(part, [])) for part in parts)


def _bound(nodes: Sequence[ast.AST]) -> Iterator[str]:
    """The names that the tests define."""
    for node in nodes:
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name
        elif isinstance(node, ast.alias):
            yield node.asname or node.name.partition(".")[0]


class _Counted(ast.NodeTransformer):
    """Replaces each assertion by a call of CHECK, so that a failed one does not end the tests."""

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
        test = ast.Lambda(args=nothing, body=node.test)
        return ast.Expr(ast.Call(func=ast.Name(CHECK, ast.Load()), args=[test], keywords=[]))
