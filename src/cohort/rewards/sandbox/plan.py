"""What a row's tests need of the program and what they bring themselves, read from their source."""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from cohort.types import UserError

CHECK = "__passes__"
"""What an assertion becomes a call of where each one counts."""


@dataclass(frozen=True)
class Plan:
    """One row's tests, ready to run; plain data, sent to the tester as it stands."""

    statements: tuple[str, ...]
    """Each a test of its own."""
    script: str
    """Instead of statements; may define `check(candidate)`."""
    assertions: int
    """How many the script has in its source; 0 where they are not counted."""
    given: str
    """Runs in the program's process, ahead of its code: imports, classes and the prompt's own helpers."""
    setup: str
    """Runs in the tester, ahead of the tests: everything but classes."""
    helpers: str
    """Runs in the tester before that: the prompt's helpers, which a program may not replace for its tests."""
    names: tuple[str, ...]
    """The program's: free in the tests, no built-in's, no standard module's."""
    shadows: tuple[str, ...]
    """Built-ins' names that the tests use: the program's where there are no other names (MBPP asks for a `sum`)."""
    modules: tuple[str, ...]
    """Standard modules that tests name without importing them."""
    entry_point: str


@lru_cache(maxsize=4096)
def plan(statements: tuple[str, ...], script: str, setup: str, helpers: str, entry_point: str, share: bool) -> Plan:
    """Raises UserError for tests that are not Python."""
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
    """Names that the tests themselves define anywhere."""
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
    """Each assertion counts, and a failed one does not end the tests."""

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
        test = ast.Lambda(args=nothing, body=node.test)
        return ast.Expr(ast.Call(func=ast.Name(CHECK, ast.Load()), args=[test], keywords=[]))
