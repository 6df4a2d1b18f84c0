"""The process of the tests: runs them against the program next door and reports how many passed.

The program's names are proxies (`remote`); everything else that a test names is its own, a built-in, or a module of
the standard library, so the program can replace none of it.
"""

from __future__ import annotations

import ast
import builtins
import os
import sys
from typing import Any

from .kernel import confine
from .remote import Client, Remote
from .wire import Channel, WireError, decode, encode

CHECK = "__passes__"


class Tests:
    """One row's tests: `statements`, each a test of its own, or a `script` that may define `check(candidate)`."""

    def __init__(self, setup: str, helpers: str, statements: list[str], script: str, entry_point: str) -> None:
        self.given, self.setup = _divided(setup)
        self.helpers = helpers
        self.statements = [ast.parse(statement) for statement in statements]
        self.script = ast.parse(script)
        self.entry_point = entry_point

    def programs_names(self, defined: list[str]) -> set[str]:
        """Names that mean the program's: free in the tests, no built-in's, no standard module's.

        A built-in's name (MBPP asks for a `sum`) is the program's only where the tests name nothing else of it.
        """
        trees = [self.setup, *self.statements, self.script]
        nodes = [node for tree in trees for node in ast.walk(tree)]
        bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
        bound |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
        aliases = [alias for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
        bound |= {alias.asname or alias.name.partition(".")[0] for alias in aliases}
        used = {node.id for node in nodes if isinstance(node, ast.Name)} - bound
        used |= {self.entry_point} - {""}
        own = {name for name in used if not hasattr(builtins, name) and name not in sys.stdlib_module_names}
        return own or used & set(defined)

    def run(self, client: Client, sources: list[str], share: bool) -> tuple[int, int, str]:
        """(passed, of how many, why not all). Without share it stops at the first failure."""
        total = len(self.statements) or 1
        try:
            given = ast.unparse(self.given) + "\n" + self.helpers
            defined = client.ask("load", given, sources, self.entry_point)
            namespace = self._namespace(client, [str(name) for name in defined])
        except Exception as error:  # noqa: BLE001 - the program's, or caused by its values
            return 0, total, _reason("the code", error)
        if not self.statements:
            return self._run_script(namespace, share)
        passed, reasons = 0, []
        for statement in self.statements:
            reason = _failure(statement, namespace)
            passed += not reason
            reasons += [reason] if reason else []
            if reason and not share:
                break
        return passed, total, "; ".join(reasons)[:1000]

    def _namespace(self, client: Client, defined: list[str]) -> dict[str, Any]:
        namespace: dict[str, Any] = {"__name__": "tests"}
        wanted = self.programs_names(defined)
        exec(compile(self.helpers, "<prompt>", "exec"), namespace)
        for name in sorted(wanted):
            # A helper of the prompt's is the prompt's own here, whatever the program has under that name.
            if name in defined and (name == self.entry_point or name not in namespace):
                namespace[name] = client.ask("get", name)
        nodes = [node for tree in (self.setup, *self.statements, self.script) for node in ast.walk(tree)]
        for name in {node.id for node in nodes if isinstance(node, ast.Name)} & sys.stdlib_module_names:
            if name not in namespace:
                namespace[name] = __import__(name)
        exec(compile(self.setup, "<setup>", "exec"), namespace)
        return namespace

    def _run_script(self, namespace: dict[str, Any], share: bool) -> tuple[int, int, str]:
        results: list[bool] = []
        asserts = sum(isinstance(node, ast.Assert) for node in ast.walk(self.script))

        def passes(test: Any) -> None:
            results.append(False)
            results[-1] = bool(test())

        script = self.script
        if share:
            namespace[CHECK] = passes
            script = ast.fix_missing_locations(_Counted().visit(script))
        reason = _failure(script, namespace)
        if not reason and callable(namespace.get("check")) and type(namespace["check"]) is not Remote:
            namespace["__candidate__"] = namespace.get(self.entry_point)
            reason = _failure(ast.parse("check(__candidate__)"), namespace)
        if not share:
            return int(not reason), 1, reason
        total = max(len(results), asserts)
        if not total:
            return int(not reason), 1, reason
        return sum(results), total, reason or ("" if all(results) else "assertions failed")


class _Counted(ast.NodeTransformer):
    """Each assertion counts, and a failed one does not end the tests."""

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
        test = ast.Lambda(args=nothing, body=node.test)
        call = ast.Expr(ast.Call(func=ast.Name(CHECK, ast.Load()), args=[test], keywords=[]))
        broken = ast.ExceptHandler(type=ast.Name("Exception", ast.Load()), name=None, body=[ast.Pass()])
        return ast.copy_location(ast.Try(body=[call], handlers=[broken], orelse=[], finalbody=[]), node)


def _divided(setup: str) -> tuple[ast.Module, ast.Module]:
    """(what the program is given ahead of its code: imports and classes; what runs beside the tests: all but classes)."""
    body = ast.parse(setup).body
    imports = (ast.Import, ast.ImportFrom)
    given = [node for node in body if isinstance(node, (*imports, ast.ClassDef))]
    return ast.Module(given, []), ast.Module([node for node in body if not isinstance(node, ast.ClassDef)], [])


def _failure(tree: ast.Module, namespace: dict[str, Any]) -> str:
    """Why the statements fail; nothing where they pass."""
    try:
        exec(compile(tree, "<test>", "exec"), namespace)
    except Exception as error:  # noqa: BLE001 - a test fails by any exception
        return _reason(ast.unparse(tree)[:200], error)
    return ""


def _reason(where: str, error: Exception) -> str:
    if isinstance(error, EOFError | BrokenPipeError | ConnectionResetError):
        return f"{where}: the program ended"
    return f"{where}: {type(error).__name__}: {error}"[:500]


def main(fd: int, confinement: dict[str, Any]) -> None:
    """Read a job from standard input, run it with the program at socket `fd`, write the verdict to standard output."""
    with os.fdopen(os.dup(0), "rb") as pipe:
        job = decode(pipe.read())
    verdict_fd = os.dup(1)
    # Tests may print: not into the verdict.
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    confine(**confinement)
    try:
        data = encode(_verdict(Channel(fd), *job))
    except WireError as error:
        data = encode((0, 1, str(error)))
    with os.fdopen(verdict_fd, "wb") as pipe:
        pipe.write(data)


def _verdict(
    channel: Channel, setup: str, helpers: str, statements: list[str], script: str, entry: str, sources: list[str], share: bool
) -> tuple[Any, ...]:
    try:
        tests = Tests(setup, helpers, statements, script, entry)
    except SyntaxError as error:
        return "broken", f"{error}: {error.text!r}"
    try:
        channel.receive()
    except EOFError:
        return "unstarted", ""
    return tests.run(Client(channel), sources, share)
