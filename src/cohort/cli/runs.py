"""Runs as YAML files describe them, with built-in methods and rows of the user's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cohort import config

if TYPE_CHECKING:
    from cohort.config import RunConfig, TrainingConfig

TABLE = Path(__file__).parents[1] / "methods" / "table.py"


def read_run(path: Path, overrides: list[str]) -> tuple[RunConfig, TrainingConfig]:
    """Read a YAML file and `key=value` overrides. Raises UserError for anything it cannot use."""
    return config.read_run(path, overrides, config_of)


def config_of(method: str) -> type[TrainingConfig]:
    """The class of a method's settings: of a built-in name, a name in the table, or path/to/file.py:row.

    torch is imported only where the name is not built in and the table or a file may have it.
    """
    if method in config.METHOD_CONFIGS or not (":" in method or _in_table(method)):
        return config.built_in_config(method)

    from cohort.methods.named import find_method

    return find_method(method).config


def _in_table(method: str) -> bool:
    """Whether the table of methods may have the name: as a literal in its source, or added since it was imported."""
    if "cohort.methods.table" in sys.modules:
        from cohort.methods.table import METHODS

        return method in METHODS
    return f'"{method}"' in TABLE.read_text(encoding="utf-8")
