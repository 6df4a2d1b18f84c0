"""Bytes and FLOPs of the passes over one micro-batch, counted by running the library's own code on fake tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from cohort.plan.blank import BlankPolicy
from cohort.policy.packed.pack import Part
from cohort.rollouts.sampling import Sampling, draw


class UpdateCost(NamedTuple):
    """Forward and backward of one micro-batch: bytes beyond the weights, and FLOPs."""

    activations: float
    """Bytes that autograd saves between forward and backward."""
    head: float
    """Bytes that the head adds while it computes the gradients of the hidden states and of its weights."""
    backward: float
    """Peak of the backward pass through the layers, gradients of weights included."""
    peak: float
    """Peak of all, gradients of weights included."""
    flops: float


class ForwardCost(NamedTuple):
    """A pass without gradient: peak bytes beyond the weights, and FLOPs."""

    peak: float
    flops: float


@contextmanager
def _counted(blank: BlankPolicy) -> Iterator[Callable[[], tuple[float, float, float]]]:
    """A function that returns (live bytes, their peak since its last call, FLOPs), relative to the start."""
    with blank.running() as meter:
        start, flops = meter.live, meter.flops
        meter.peak = start

        def now() -> tuple[float, float, float]:
            peak, meter.peak = meter.peak, meter.live
            return meter.live - start, peak - start, meter.flops - flops

        yield now


def update(blank: BlankPolicy, parts: list[Part], accumulates: bool) -> UpdateCost:
    """Forward, closed-form head and backward. `accumulates`: an earlier micro-batch has left gradients."""
    policy = blank.policy
    with _counted(blank) as now, policy.attending():
        if accumulates:
            for parameter in policy.parameters:
                parameter.grad = torch.zeros_like(parameter)
        before = now()[0]
        pack = policy.pack(parts)
        hidden = policy.hidden(pack.inputs)
        activations = now()[0] - before
        hidden_N = hidden.detach()[pack.sources_N]
        with policy.autocast():
            grad_N, _ = policy.head.backward(hidden_N, pack.targets_N, 1.0, lambda span, logp: torch.zeros_like(logp))
        in_head = now()[1]
        hidden.backward(torch.zeros_like(hidden).index_add_(0, pack.sources_N, grad_N.to(hidden.dtype)))
        _, backward, flops = now()
        for parameter in policy.parameters:
            parameter.grad = None
    return UpdateCost(activations, in_head - before - activations, backward, max(in_head, backward), flops)


def score(blank: BlankPolicy, parts: list[Part]) -> ForwardCost:
    """The completions' log-probabilities, as the reference computes them."""
    policy = blank.policy
    with _counted(blank) as now, torch.no_grad(), policy.attending():
        pack = policy.pack(parts)
        policy.head.logprobs(policy.hidden(pack.inputs)[pack.sources_N], pack.targets_N)
        return ForwardCost(*now()[1:])


def prefill(blank: BlankPolicy, prompts: list[Tensor]) -> ForwardCost:
    """The prompts' forward pass, which fills the key/value cache."""
    policy = blank.policy
    with _counted(blank) as now, torch.no_grad(), policy.attending():
        pack = policy.pack([Part(i, prompt, [], []) for i, prompt in enumerate(prompts)])
        policy.prefill(pack)
        return ForwardCost(*now()[1:])


def sample(blank: BlankPolicy, rows: int, sampling: Sampling) -> ForwardCost:
    """The output layer for one token of each row, and drawing the token."""
    policy = blank.policy
    with _counted(blank) as now, torch.no_grad():
        hidden = torch.empty(rows, policy.head.output.weight.shape[1])
        with policy.autocast():
            logits = policy.head.reader(policy.dtype, policy.paths.onednn.taken)(hidden)
        draw(logits, sampling, torch.zeros(rows))
        return ForwardCost(*now()[1:])


def padded(blank: BlankPolicy, rows: int, length: int) -> UpdateCost:
    """An update on padded rows, for comparison: one row for each completion with its prompt repeated, logits of all
    positions, their float32 log-softmax, and autograd through it."""
    model = blank.policy.model
    with _counted(blank) as now:
        with blank.policy.autocast():
            ids = torch.zeros(rows, length, dtype=torch.long)
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        logprobs = torch.log_softmax(logits.float(), -1).gather(2, ids.unsqueeze(2))
        activations = now()[0]
        logprobs.mean().backward()
        _, peak, flops = now()
        for parameter in blank.policy.parameters:
            parameter.grad = None
    return UpdateCost(activations, 0.0, peak, peak, flops)
