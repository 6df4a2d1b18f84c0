"""What each completion of the whole batch costs every rank: bytes received, and seconds to read them and for credit.

    python bench/host_work.py

Two ways to send groups: pickled objects, as all_gather_object does, and a few long tensors that are split on arrival.
The parts of cost_model.py; seconds are of the processor, on one thread.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from typing import Any

GROUP, PROMPT = 8, 256


def groups_of(prompts: int, tokens: int) -> list[Any]:
    import torch

    from cohort.types import Completion, Group, Row

    def completion() -> Completion:
        return Completion(torch.randint(0, 1000, (tokens,)), torch.randn(tokens), text="four" * tokens)

    rewards = [float(i % 2) for i in range(GROUP)]
    return [
        Group(
            torch.randint(0, 1000, (PROMPT,)),
            [completion() for _ in range(GROUP)],
            Row(""),
            rewards=rewards,
            components={"accuracy": list(rewards)},
        )
        for _ in range(prompts)
    ]


def timed(work: Callable[[], Any]) -> float:
    """Processor seconds, the best of three."""
    spent = []
    for _ in range(3):
        started = time.process_time()
        work()
        spent.append(time.process_time() - started)
    return min(spent)


def costs(prompts: int, tokens: int) -> dict[str, float]:
    """Bytes and seconds of a completion of so many tokens."""
    import torch

    from cohort.config import GRPOConfig
    from cohort.methods.table import METHODS

    groups, count = groups_of(prompts, tokens), prompts * GROUP
    sampled = pickle.dumps(groups)
    # Log-probabilities of the reference and of the update go by (group, completion).
    scores = pickle.dumps({(p, i): torch.randn(tokens) for p in range(prompts) for i in range(GROUP)})
    config = GRPOConfig(num_generations=GROUP, per_device_train_batch_size=count)
    flat = pickle.dumps([torch.randn(count * tokens) for _ in range(4)])
    return {
        "bytes": (len(sampled) + 2 * len(scores)) / count,
        "read": (timed(lambda: pickle.loads(sampled)) + 2 * timed(lambda: pickle.loads(scores))) / count,
        "credit": timed(lambda: METHODS["grpo"].credit(groups, config)) / count,
        "long tensors": timed(lambda: [t.split([tokens] * count) for t in pickle.loads(flat)]) / count,
    }


def main() -> None:
    import torch

    torch.set_num_threads(1)
    print(f"{'tokens':>7} {'bytes':>8} {'read us':>8} {'credit us':>10} {'read as long tensors us':>24}")
    for tokens in (64, 512, 1024):
        of = costs(64, tokens)
        print(f"{tokens:7} {of['bytes']:8.0f} {of['read'] * 1e6:8.0f} {of['credit'] * 1e6:10.1f} "
              f"{of['long tensors'] * 1e6:24.1f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
