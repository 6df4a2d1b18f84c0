"""What an update logs. Numbers stay on the device until the step ends: to read one waits for all that was launched."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor


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

    @property
    def objective(self) -> float:
        """The sum of its terms, in double precision."""
        return float(torch.cat(self._objective).cpu().double().sum()) if self._objective else 0.0

    def metrics(self) -> dict[str, float]:
        """The mean of each name, and the extremes of ratios and KL estimates beside their values on policy."""
        means = {name: sum(read(sums)) / self._counts[name] for name, sums in self._sums.items() if name != "ratio"}
        if "ratio" in self._sums:
            means["ratio/min"] = min(1.0, *read(self._extremes["ratio/min"]))
            means["ratio/max"] = max(1.0, *read(self._extremes["ratio/max"]))
        if "kl" in self._sums:
            means["kl/max"] = max(0.0, *read(self._extremes["kl/max"]))
        return means


def read(numbers: list[Tensor]) -> list[float]:
    """Tensors of one number each, in one transfer."""
    values: list[float] = torch.stack(numbers).tolist() if numbers else []
    return values
