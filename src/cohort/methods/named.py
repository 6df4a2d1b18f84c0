"""From the name of a method, or the place of a row of your own, to the row."""

from __future__ import annotations

from cohort.config import unknown_name
from cohort.config.methods import unknown_method
from cohort.config.user_code import load_module
from cohort.methods.method import Method
from cohort.methods.table import METHODS
from cohort.types import UserError


def find_method(name: str) -> Method:
    """The row of the table with this name, or the row at `path/to/file.py:name` or `package.module:name`.

    Raises UserError for an unknown name, and where the file or module has no such row.
    """
    if name in METHODS:
        return METHODS[name]
    place, colon, attribute = name.rpartition(":")
    if not colon:
        raise unknown_method(name, METHODS)
    reader = f"method {name!r}"
    module = load_module(place, reader)
    row = getattr(module, attribute, None)
    if not isinstance(row, Method):
        rows = [key for key, value in vars(module).items() if isinstance(value, Method)]
        problem = f"is a {type(row).__name__}, not a Method" if hasattr(module, attribute) else "is not there"
        remedy = unknown_name(attribute, rows) if rows else ": it has no rows: see docs/new-method.md"
        raise UserError(f"{reader}: {attribute!r} {problem} in {place}{remedy}")
    return row
