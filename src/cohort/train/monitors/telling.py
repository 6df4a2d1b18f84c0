"""Warnings of a run's monitors: each is given once in a run, with its step."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

log = logging.getLogger("cohort")


@dataclass
class Told:
    """What has been told. Told(["truncated", "reward format saturated"])"""

    names: list[str] = field(default_factory=list)

    def tell(self, name: str, step: int, message: str, level: int = logging.WARNING) -> None:
        """Log "step N: message", once for each name. The name is the warning's in warnings.jsonl."""
        if name not in self.names:
            self.names.append(name)
            log.log(level, "step %d: %s", step, message, extra={"warning": name, "step": step})
