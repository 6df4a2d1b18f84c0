"""Rules about the files of the package: their length, their imports, what a folder says of itself, what pages print."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import ROOT

SOURCE = ROOT / "src"
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((SOURCE / "cohort").rglob("*.py"))
}
PRINTING = (".py", ".md", ".yaml", ".yml")
LONGEST = 330
LONGEST_FUNCTION = 60


def test_no_source_file_is_long() -> None:
    scripts = {
        str(path.relative_to(ROOT)): path for name in ("bench", "scripts") for path in (ROOT / name).glob("*.py")
    }
    files = {**MODULES, **scripts}
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in files.items()}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_no_function_is_long() -> None:
    lengths = {
        f"{name}: {each.name}": (each.end_lineno or 0) - each.lineno + 1
        for name, path in MODULES.items()
        for each in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """What runs when the module is imported: inside `if`, `try` and `with` too, but for `if TYPE_CHECKING`."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If) and not ast.unparse(statement.test).endswith("TYPE_CHECKING"):
            yield from statements(statement.body)
        if isinstance(statement, ast.With | ast.Try):
            yield from statements(statement.body)
        if isinstance(statement, ast.If | ast.Try):
            yield from statements(statement.orelse)
        if isinstance(statement, ast.Try):
            for handler in statement.handlers:
                yield from statements(handler.body)
        if isinstance(statement, ast.ClassDef):
            yield from statements(statement.body)


def imports(name: str) -> set[str]:
    """Modules of the package that importing this one imports by its own statements. A package that it gets a
    submodule from is not among them unless it gets a name from the package itself."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    targets: set[str] = set()
    for statement in statements(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(statement, ast.Import):
            targets |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - statement.level + 1] if statement.level else []
            base = ".".join([*parents, *([statement.module] if statement.module else [])])
            inner = {f"{base}.{alias.name}" for alias in statement.names}
            targets |= {target if target in MODULES else base for target in inner}
    return {target for target in targets if target in MODULES and target != name}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules each of which imports the next, and the last the first; empty where there is no such circle."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        for target in sorted(graph[name]):
            if found := visit(target, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in graph if (found := visit(name, []))), [])


def test_a_circle_is_seen() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


def test_no_modules_import_in_a_circle() -> None:
    graph = {name: imports(name) for name in MODULES}
    assert sum(map(len, graph.values())) > 300  # the graph is not empty by mistake
    assert circle(graph) == []


def test_nothing_imports_the_top_of_the_package() -> None:
    """`cohort/__init__` stands above all: only the command line may ask it for the version."""
    below = [name for name in MODULES if not name.startswith("cohort.cli")]
    assert [name for name in below if "cohort" in imports(name)] == []


FOLDERS = sorted(path.parent for path in MODULES.values() if path.name == "__init__.py")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(SOURCE)))
def test_a_folder_says_what_it_is_for(folder: Path) -> None:
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))


def test_every_folder_with_modules_is_a_package() -> None:
    assert {path.parent for path in MODULES.values()} == set(FOLDERS)


def test_pages_and_messages_install_the_right_distribution() -> None:
    """`cohort` on PyPI is an unrelated project."""
    folders = ("src", "docs", "examples", "scripts", "bench", ".github")
    pages = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in PRINTING]
    wrong = re.compile(r"pip install (?:-U )?['\"]?cohort(?!-rl)")
    assert [path for path in [*pages, *ROOT.glob("*.md")] if wrong.search(path.read_text(encoding="utf-8"))] == []


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_pages_lead_somewhere() -> None:
    dead = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for link in re.findall(r"\]\((?!http|mailto)([^)\s]+)\)", text):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                dead.append(f"{page.relative_to(ROOT)}: {link}")
    assert dead == []
