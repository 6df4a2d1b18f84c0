"""What `partial_rollouts` saves in a step, simulated (docs/scaling.md).

    python bench/segments.py

The rules are those of rollouts/ray_pool.py and rollouts/segments.py, once the run is under way: a call is dealt in two
requests for each worker; whole batches are sampled one after the other; in segments, one call has the next segment of
every completion of `staleness` batches that has not ended, and a second one the rest of the oldest batch. Completions
that end leave their request. Seconds of a position, of a row and of a token's prefill are those of one H100
(bench/cost_model.py). What is not simulated: rewards, the network, workers that fail or are slower than others.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable

POSITION, ROW, PREFILL = 4e-3, 4.5e-5, 1.8e-5
"""Seconds of a position of decoding, of one row more, and of a prompt's token: a third of `c`, of the forward pass."""
PROMPT, PROMPTS, GROUP, STEPS = 512, 16, 8, 40
"""Tokens of a prompt; prompts of a batch for each worker; completions of a prompt; batches that are simulated."""

CASES: dict[str, tuple[Callable[[random.Random], float], int]] = {
    "mean 500, up to 4,096": (lambda chance: chance.expovariate(1 / 500), 4096),
    "mean 500, up to 16,384": (lambda chance: chance.expovariate(1 / 500), 16384),
    "a tenth of mean 8,000, others 500, up to 16,384": (
        lambda chance: chance.expovariate(1 / (8000 if chance.random() < 0.1 else 500)),
        16384,
    ),
}
"""Lengths of completions: exponential, cut at the limit."""


def in_parallel(requests: list[float], workers: int) -> float:
    """Seconds of requests that are dealt to workers as they become free."""
    free = [0.0] * workers
    for seconds in requests:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def seconds_of(call: list[tuple[int, int]], workers: int, rows_of_prompt: int) -> float:
    """Seconds of one call for rows of (tokens that are prefilled, tokens that are sampled). So many rows share their
    prefill."""
    size = math.ceil(len(call) / rows_of_prompt / (2 * workers)) * rows_of_prompt
    requests = []
    for rows in (call[i : i + size] for i in range(0, len(call), size)):
        lengths = [length for _, length in rows]
        prefilled = sum(before for before, _ in rows) / rows_of_prompt
        requests.append(max(lengths) * POSITION + sum(lengths) * ROW + prefilled * PREFILL)
    return in_parallel(requests, workers)


def sampling(case: str, workers: int, staleness: int, length: int | None) -> float:
    """Mean seconds in which a batch is sampled, in segments of so many tokens or whole."""
    draw, limit = CASES[case]
    chance, spent = random.Random(0), list[float]()
    begun: list[list[tuple[int, int]]] = []
    """Of each batch, (tokens so far, tokens to come) of the completions that have not ended."""
    for _ in range(STEPS):
        begun.append([(0, math.ceil(min(draw(chance), limit))) for _ in range(workers * PROMPTS * GROUP)])
        if length is None:
            spent.append(seconds_of([(PROMPT, left) for _, left in begun.pop()], workers, GROUP))
            continue
        call = [(PROMPT + before, min(length, left)) for batch in begun for before, left in batch]
        begun = [[(before + length, left - length) for before, left in batch if left > length] for batch in begun]
        rest = [(PROMPT + before, left) for before, left in begun.pop(0)] if len(begun) == staleness else []
        spent.append(seconds_of(call, workers, 1) + (seconds_of(rest, workers, 1) if rest else 0.0))
    return sum(spent[staleness:]) / (STEPS - staleness)


SETTINGS: tuple[tuple[int, int | None], ...] = ((1, None), (2, 1024), (4, 1024), (4, 2048), (8, 2048))


def table(workers: tuple[int, ...] = (8, 64)) -> str:
    titles = ["whole" if length is None else f"{k} x {length:,}" for k, length in SETTINGS]
    lines = [f"| lengths | workers | {' | '.join(titles)} |", f"|---|---|{'---|' * len(titles)}"]
    for case in CASES:
        for count in workers:
            row = [f"{sampling(case, count, *setting):.1f}" for setting in SETTINGS]
            lines.append(f"| {case} | {count} | {' | '.join(row)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
