"""Throughput and staleness of a pool of engines, simulated event by event (docs/scaling.md).

    python bench/simulate.py

The rules are those of rollouts/ray_pool.py and train/sources/samples_ahead.py: a batch is dealt in requests, two for
each worker, to workers as they become free; batches are sampled in their order; a worker that dies is replaced and its
request asked again; batch i is asked for when batch i - staleness is taken, and training takes batches in their order.
A request takes as long as its longest completion. What is not simulated: the network, and the driver's own time.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Pool:
    workers: int
    staleness: int = 0
    prompts: int = 16
    """Of a batch, for each worker."""
    group: int = 8
    position: float = 4e-3
    """Seconds of a position of decoding, whatever the number of rows: the assumed `a` of bench/cost_model.py."""
    row: float = 4.5e-5
    """Seconds of one row more: the measured `a + 128 b` of one H100 less `a`, over 128."""
    tokens: float = 500.0
    """Mean length of a completion, which is exponential: most are short, a few reach the limit."""
    limit: int = 4096
    train: float = 7.5
    """Seconds of an update; 7.5 is the measured time of one H100 on 16 prompts (the cost model's). The trainers are as
    many GPUs as the workers."""
    slow: float = 0.0
    """Fraction of workers that take three times as long."""
    failures: float = 0.0
    """Deaths of one worker in an hour."""
    start: float = 60.0
    """Seconds until a worker that replaces another samples."""
    requests: int = 2
    """Into how many requests for each worker a batch is dealt."""
    steps: int = 10
    seed: int = 0


@dataclass
class Outcome:
    seconds: float
    """Of a step, mean after the first ones."""
    busy: float
    """Fraction of the workers' time in which they sample what is used."""
    waiting: float
    """Fraction of the time in which training waits for a batch."""
    staleness: float
    """Mean over batches, in batches."""
    answered: int
    """Prompts, each of which is answered once."""
    repeated: int
    """Requests that were asked again."""


def simulate(pool: Pool) -> Outcome:
    """Runs `pool.steps` steps."""
    chance = random.Random(pool.seed)
    slowness = [3.0 if i < pool.slow * pool.workers else 1.0 for i in range(pool.workers)]
    chance.shuffle(slowness)
    prompts = pool.prompts * pool.workers
    size = max(1, math.ceil(prompts / (pool.requests * pool.workers)))
    ready = [(0.0, i) for i in range(pool.workers)]
    """When each worker is free next."""
    done: list[float] = []
    taken: list[float] = []
    ages: list[int] = []
    useful, repeated, answered = 0.0, 0, 0
    free, waited = 0.0, 0.0
    for step in range(pool.steps):
        while len(done) < min(step + pool.staleness + 1, pool.steps):
            number = len(done)
            # Asked for when the batch `staleness` before it is taken; the first ones at once.
            asked = 0.0 if number <= pool.staleness else _asked(number, pool, taken, free)
            ages.append(min(number, pool.staleness))
            begin = max(asked, done[-1] if done else 0.0)
            requests, end = deque([size] * (prompts // size) + [prompts % size] * (prompts % size > 0)), begin
            while requests:
                count = requests.popleft()
                at, worker = heapq.heappop(ready)
                at = max(at, begin)
                rows = count * pool.group
                longest = max(min(chance.expovariate(1 / pool.tokens), pool.limit) for _ in range(rows))
                seconds = slowness[worker] * longest * (pool.position + pool.row * rows)
                rate = pool.failures / 3600
                death = chance.expovariate(rate) if rate else math.inf
                if death < seconds:
                    requests.append(count)
                    repeated += 1
                    heapq.heappush(ready, (at + death + pool.start, worker))
                    continue
                useful, answered = useful + seconds, answered + count
                heapq.heappush(ready, (at + seconds, worker))
                end = max(end, at + seconds)
            done.append(end)
        start = max(free, done[step])
        waited += start - free
        taken.append(start)
        free = start + pool.train
    return Outcome(free / pool.steps, useful / (pool.workers * free), waited / free, sum(ages) / len(ages), answered,
                   repeated)  # fmt: skip


def _asked(number: int, pool: Pool, taken: list[float], free: float) -> float:
    """When batch `number` is asked for: when training turns to the batch `staleness` before it."""
    before = number - pool.staleness
    return free if before == len(taken) else taken[before]


CASES: dict[str, dict[str, float]] = {
    "equal workers": {},
    "a tenth three times as slow": {"slow": 0.1},
    "a death an hour each": {"failures": 1.0},
    "longer tail": {"tokens": 500.0, "limit": 16384},
}


def table(workers: tuple[int, ...] = (8, 64, 1000), staleness: tuple[int, ...] = (0, 1), steps: int = 10) -> str:
    lines = ["| case | workers | staleness | s a step | workers busy | training waits | asked again |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, values in CASES.items():
        for count in workers:
            for k in staleness:
                pool = replace(Pool(count, k, steps=steps), **values)  # type: ignore[arg-type]
                outcome = simulate(pool)
                assert outcome.answered == steps * pool.prompts * count
                lines.append(
                    f"| {name} | {count:,} | {k} | {outcome.seconds:.1f} | {outcome.busy:.0%} | {outcome.waiting:.0%} "
                    f"| {outcome.repeated:,} |"
                )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
