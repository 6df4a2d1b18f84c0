"""docs/grpo.md: its examples run, the functions that it names exist, and its table is the code's."""

from __future__ import annotations

import doctest
import re
from importlib import import_module

from cohort.methods.table import METHODS
from helpers import ROOT

PAGE = ROOT / "docs" / "grpo.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_the_examples_run() -> None:
    results = doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8")
    assert results.failed == 0 and results.attempted > 20


def test_the_names_exist() -> None:
    names = set(re.findall(r"`(cohort(?:\.\w+)+)`", TEXT))
    assert len(names) > 15
    for name in names:
        place, _, attribute = name.rpartition(".")
        module = import_module(place)
        assert hasattr(module, attribute) or import_module(name), name


def test_the_table_is_the_codes() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| `(\w+)` \| `(\w+)` \|$", TEXT, re.MULTILINE)
    assert len(rows) == 7
    for name, *cells in rows:
        method = METHODS[name]
        assert cells == [method.source, method.credit.__name__, method.coefficient.__name__], name
