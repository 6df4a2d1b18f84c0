"""What an update logs. Numbers stay on the device until the step ends: to read one waits for all that was launched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Sums:
    """The objective and the metrics of one accumulation, piece by piece."""

    def __init__(self) -> None:
        self._objective: list[Tensor] = []
        self._sums: dict[str, list[Tensor]] = defaultdict(list)
        self._counts: dict[str, int] = defaultdict(int)
        self._extremes: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, values: Tensor) -> None:
        """Add terms [*] of the objective."""
        self._objective.append(values)

    def log(self, logged: dict[str, Tensor]) -> None:
        """Note the values of some tokens or completions, each [*]."""
        for name, values in logged.items():
            self._sums[name].append(values.sum())
            self._counts[name] += len(values)
        for name in {"kl", "ratio"} & logged.keys():
            low, high = logged[name].aminmax()
            self._extremes[f"{name}/min"].append(low)
            self._extremes[f"{name}/max"].append(high)

    def totals(self) -> Totals:
        """The numbers, read from the device."""
        objective = float(torch.cat(self._objective).cpu().double().sum()) if self._objective else 0.0
        sums = {name: sum(read(sums)) for name, sums in self._sums.items()}
        lows = {name: min(read(each)) for name, each in self._extremes.items() if name.endswith("/min")}
        highs = {name: max(read(each)) for name, each in self._extremes.items() if name.endswith("/max")}
        return Totals(objective, sums, dict(self._counts), lows, highs)


class Totals(NamedTuple):
    """The sums of one rank, or of all of them."""

    objective: float
    """The sum of its terms, in double precision."""
    sums: dict[str, float]
    counts: dict[str, int]
    lows: dict[str, float]
    highs: dict[str, float]

    def metrics(self) -> dict[str, float]:
        """The mean of each name, and the extremes of ratios and KL estimates beside their values on policy."""
        means = {name: total / self.counts[name] for name, total in self.sums.items() if name != "ratio"}
        if "ratio" in self.sums:
            means["ratio/min"] = min(1.0, self.lows["ratio/min"])
            means["ratio/max"] = max(1.0, self.highs["ratio/max"])
        if "kl" in self.sums:
            means["kl/max"] = max(0.0, self.highs["kl/max"])
        return means


def added(every: Sequence[Totals]) -> Totals:
    """The totals of several ranks together; a rank may lack a name."""
    objective = sum(each.objective for each in every)

    def combined(pick: Callable[[Totals], dict[str, T]], combine: Callable[[list[T]], T]) -> dict[str, T]:
        tables = [pick(each) for each in every]
        names = dict.fromkeys(name for table in tables for name in table)
        return {name: combine([table[name] for table in tables if name in table]) for name in names}

    return Totals(
        objective,
        combined(lambda each: each.sums, sum),
        combined(lambda each: each.counts, sum),
        combined(lambda each: each.lows, min),
        combined(lambda each: each.highs, max),
    )


def read(numbers: list[Tensor]) -> list[float]:
    """Tensors of one number each, in one transfer."""
    values: list[float] = torch.stack(numbers).tolist() if numbers else []
    return values
