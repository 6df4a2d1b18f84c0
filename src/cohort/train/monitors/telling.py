"""Warnings of a run's monitors: each is given once in a run, with its step."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from cohort.types import Group

log = logging.getLogger("cohort")


@dataclass
class Told:
    """What has been told. Told(["truncated", "reward format saturated"])"""

    names: list[str] = field(default_factory=list)

    def tell(
        self, name: str, step: int, message: str, level: int = logging.WARNING, groups: Sequence[Group] = ()
    ) -> None:
        """Log "step N: message", once for each name. The name is the warning's in warnings.jsonl, which has the rows of
        the groups that caused it too."""
        if name not in self.names:
            self.names.append(name)
            log.log(level, "step %d: %s", step, message, extra={"warning": name, "step": step, "rows": rows_of(groups)})


def rows_of(groups: Sequence[Group]) -> list[int]:
    """The numbers of the groups' rows, each once."""
    return sorted({group.row.number for group in groups if group.row.number is not None})
