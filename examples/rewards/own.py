"""One's own: a function with TRL's signature, options, a metric, and None for rows that it does not judge.

    reward_funcs:
      - accuracy
      - {name: "examples/rewards/own.py:cites", least: 2}

    python examples/rewards/own.py

shows what it gives. It is called by keyword with `prompts`, `completions`, `completion_ids`, every column of the data
as a list, `log_metric` and `log_extra`; it takes those that it names. An `async def` works too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from cohort.rewards.functions.text import content

SOURCE = re.compile(r"\[(\d{1,3})\]")


def cites(
    completions: list[Any],
    sources: list[int | None],
    log_metric: Callable[[str, float], None],
    least: int = 1,
    **columns: Any,
) -> list[float | None]:
    """The share of `least` different sources, [1] to [sources], that a completion cites; 0 where it invents one."""
    scores: list[float | None] = []
    invented = 0
    for completion, count in zip(completions, sources, strict=True):
        if count is None:
            scores.append(None)
            continue
        cited = {int(number) for number in SOURCE.findall(content(completion))}
        wrong = any(not 1 <= number <= count for number in cited)
        invented += wrong
        scores.append(0.0 if wrong else min(len(cited), least) / least)
    log_metric("cites/invented", invented / max(1, len(completions)))
    return scores


if __name__ == "__main__":
    texts = ["Bees dance [1] and hum [2].", "Bees dance [1].", "Bees dance [9].", "What bees?"]
    print(cites(texts, sources=[3, 3, 3, None], log_metric=print, least=2))
