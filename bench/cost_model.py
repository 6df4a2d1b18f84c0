"""Seconds of a GRPO step on many GPUs, predicted from parts that were measured on one (docs/scaling.md).

    python bench/cost_model.py

The design is that of the code: every rank knows every group; sampling, rewards, scores and the backward pass are
divided; one all-reduce of float32 gradients in buckets comes before clipping. Nothing overlaps. Pure functions, and the
parts with their sources.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Work:
    """The batch of a step."""

    prompts: int
    group: int
    """Completions of a prompt."""
    prompt_tokens: float
    completion_tokens: float
    """Mean length of a completion."""
    longest: float
    """Tokens of the longest completion, for which all ranks wait."""

    @property
    def completions(self) -> int:
        return self.prompts * self.group

    @property
    def tokens(self) -> float:
        """Of the packed stream: each prompt once."""
        return self.prompts * self.prompt_tokens + self.completions * self.completion_tokens


@dataclass(frozen=True)
class Parts:
    """Seconds and bytes of the parts of a step; bandwidths in bytes a second."""

    parameters: float
    """Trained ones, whose gradients are summed."""
    token: float
    """Seconds of scoring and update for a token of the packed stream, on one GPU."""
    position: float
    """Seconds of a decoded position that do not depend on the number of rows."""
    row: float
    """Seconds that each row adds to a position."""
    reduce_bandwidth: float
    """Of one rank in the all-reduce."""
    reduce_latency: float
    """Seconds of a message in it; a bucket takes 2 log2(ranks) of them."""
    bucket: float
    """Numbers of a bucket."""
    gather_bandwidth: float
    """At which a rank receives the other ranks' groups."""
    bytes_token: float
    """What every rank receives for a completion's token: ids and log-probabilities."""
    bytes_completion: float
    """What it receives for a completion besides its tokens."""
    host_completion: float
    """Seconds that every rank spends on each completion of the whole batch: reading what was received, credit."""
    engine_bandwidth: float = math.inf
    """At which the weights are sent to engines outside the ranks; infinite where ranks sample with their own."""


def ring_bytes(size: float, ranks: int) -> float:
    """Bytes that each rank sends in a ring all-reduce of `size` bytes: 2 (N - 1) / N of them."""
    return 2 * (ranks - 1) / ranks * size


def phases(work: Work, parts: Parts, ranks: int) -> dict[str, float]:
    """Seconds of each phase of a step on so many ranks."""
    rows = math.ceil(work.prompts / ranks) * work.group  # a group is sampled by one rank
    received = (ranks - 1) / ranks * work.completions
    bytes_completion = work.completion_tokens * parts.bytes_token + parts.bytes_completion
    buckets = math.ceil(parts.parameters / parts.bucket)
    return {
        "generate": work.longest * (parts.position + rows * parts.row),
        "compute": work.tokens / ranks * parts.token,
        "gradients": ring_bytes(4 * parts.parameters, ranks) / parts.reduce_bandwidth
        + buckets * 2 * math.log2(ranks) * parts.reduce_latency,
        "groups": received * bytes_completion / parts.gather_bandwidth,
        "host": received * parts.host_completion,
        "weights": 2 * parts.parameters / parts.engine_bandwidth,
    }


def seconds(work: Work, parts: Parts, ranks: int) -> float:
    return sum(phases(work, parts, ranks).values())


def strong_efficiency(work: Work, parts: Parts, ranks: int) -> float:
    """The same batch on more ranks: seconds(1) / (N seconds(N))."""
    return seconds(work, parts, 1) / (ranks * seconds(work, parts, ranks))


def weak(work: Work, ranks: int) -> Work:
    """The batch with as many prompts for each rank."""
    return replace(work, prompts=work.prompts * ranks)


def weak_efficiency(work: Work, parts: Parts, ranks: int) -> float:
    """The same batch for each rank: seconds(1) / seconds(N), with N times the prompts."""
    return seconds(work, parts, 1) / seconds(weak(work, ranks), parts, ranks)


def replicated_until(work: Work, parts: Parts, share: float = 0.1, most: int = 100_000) -> int:
    """The largest number of ranks, with the same batch for each, at which gathering groups and the work that every rank
    repeats take at most this share of a step."""

    def holds(ranks: int) -> bool:
        of = phases(weak(work, ranks), parts, ranks)
        return of["groups"] + of["host"] <= share * sum(of.values())

    low, high = 1, most
    while low < high:  # the share grows with the ranks
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


G = Work(prompts=16, group=8, prompt_tokens=512, completion_tokens=1019, longest=1024)
"""Workload G of speed.py: Qwen2.5-1.5B's configuration."""

H100 = Parts(
    parameters=1.54e9,
    token=7.5 / G.tokens,  # measured on one H100: score 1.7 s, update 5.8 s
    position=4e-3,  # assumed: of the 9.8 ms measured with 128 rows, reading the weights is 1
    row=5.8e-3 / 128,
    reduce_bandwidth=35e9,  # assumed: 70% of one 400 Gb/s adapter for each GPU
    reduce_latency=20e-6,  # assumed
    bucket=2**23,
    gather_bandwidth=1e9,  # assumed: gloo over TCP
    bytes_token=24,  # measured, host_work.py: ids 8, text 4, three log-probabilities of 4
    bytes_completion=1500,  # measured, the same
    host_completion=0.72e-3,  # measured, the same
)
FLAT = replace(H100, bytes_completion=50, host_completion=0.018e-3)
"""Groups sent as a few long tensors in place of pickled objects."""
LOCAL = replace(FLAT, bytes_token=0, host_completion=0.005e-3)
"""Tokens stay on the rank that sampled them: rewards and lengths are gathered, credit is that of the whole batch."""
DESIGNS = {"replicated batch": H100, "sent as long tensors": FLAT, "tokens stay": LOCAL}
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)


def main() -> None:
    for name, parts in DESIGNS.items():
        print(f"{name}: 16 prompts for each GPU; good (10%) to {replicated_until(G, parts):,} GPUs")
        print(f"{'GPUs':>6} " + " ".join(f"{phase:>9}" for phase in phases(G, parts, 1)) + f" {'step s':>8} "
              f"{'efficiency':>10} {'same batch':>10}")  # fmt: skip
        for ranks in RANKS:
            of = phases(weak(G, ranks), parts, ranks)
            print(f"{ranks:6} " + " ".join(f"{s:9.2f}" for s in of.values()) + f" {sum(of.values()):8.2f} "
                  f"{weak_efficiency(G, parts, ranks):10.1%} {strong_efficiency(G, parts, ranks):10.1%}")  # fmt: skip
        print()


if __name__ == "__main__":
    main()
