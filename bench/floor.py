"""The machine's lower bound of a GRPO step: its least arithmetic and reading at measured rates."""

from __future__ import annotations

import time
from typing import Any

from workloads import G, Workload


def rates(bf16: bool, device: str = "cpu") -> tuple[float, float]:
    """(FLOP/s of a large matrix product, the faster of two layouts; bytes read a second)."""
    import torch

    n, entries = (2048, 2**26) if device == "cpu" else (8192, 2**28)
    a = torch.randn(n, n, dtype=torch.bfloat16 if bf16 else torch.float32, device=device)
    big = torch.ones(entries, device=device)  # ones: unwritten memory would be one shared page of zeros

    def best(work: Any) -> float:
        seconds = []
        for _ in range(8):
            started = time.perf_counter()
            float(work().flatten()[0])  # waits for the GPU
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    products = []
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        products.append(2 * n**3 / best(lambda: a @ a))
    return max(products), big.nbytes / best(lambda: big.sum())


def floor(
    workload: Workload, tokens: float, longest: float, flops: float, bandwidth: float, bf16: bool
) -> dict[str, float]:
    """Lower bound of the seconds of each phase with shared prompts and without padding. Of sampling, the longer of its
    arithmetic and of reading the weights once for each of `longest` tokens; of scoring, the reference's forward pass;
    of the update, a forward pass and twice as much for the gradient."""
    D = workload.hidden
    trunk = workload.layers * (3 * D * workload.mlp + 2 * D * D + 2 * D * D * workload.keys // workload.heads)
    head = D * workload.vocabulary
    P, L, B = workload.prompts, workload.prompt, workload.prompts * G
    completion = B * tokens
    # Attention scores and weighted values: a completion token attends to its prompt and on average half its completion.
    attention = workload.layers * 2 * D * (P * L * L / 2 + completion * (L + tokens / 2))
    forward = 2 * (trunk * (P * L + completion) + head * completion + attention) / flops
    reading = (2 if bf16 else 4) * (trunk + head) * longest / bandwidth
    return {"generate": max(forward, reading), "score": forward, "update": 3 * forward}
