"""The library's own passes over one micro-batch, run on a policy without weights: bytes and operations they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from cohort.plan.blank import Blank
from cohort.policy.packed.pack import Part
from cohort.rollouts.sampling import Sampling, draw


class Update(NamedTuple):
    """Bytes beyond the weights, and operations, of one micro-batch of an update."""

    kept: float
    """Between forward and backward: what autograd keeps."""
    head: float
    """What the head takes beside that, to make the gradient of the hidden states and of its own weights."""
    backward: float
    """The most while it goes back through the layers, gradients of weights included."""
    peak: float
    """The most of all, gradients of weights included."""
    flops: float


class Forward(NamedTuple):
    """Bytes beyond the weights, and operations, of a pass without gradient."""

    peak: float
    flops: float


@contextmanager
def _counted(blank: Blank) -> Iterator[Callable[[], tuple[float, float, float]]]:
    """A function that gives (bytes alive, most of them since its last call, operations), beyond what there was."""
    with blank.running() as meter:
        start, flops = meter.live, meter.flops
        meter.peak = start

        def now() -> tuple[float, float, float]:
            peak, meter.peak = meter.peak, meter.live
            return meter.live - start, peak - start, meter.flops - flops

        yield now


def update(blank: Blank, parts: list[Part], accumulates: bool) -> Update:
    """Forward, closed-form head and backward. `accumulates`: gradients of an earlier micro-batch are there."""
    policy = blank.policy
    with _counted(blank) as now, policy.attending():
        if accumulates:
            for parameter in policy.parameters:
                parameter.grad = torch.zeros_like(parameter)
        there = now()[0]
        pack = policy.pack(parts)
        hidden = policy.hidden(pack.inputs)
        kept = now()[0] - there
        hidden_N = hidden.detach()[pack.sources_N]
        with policy.autocast():
            grad_N, _ = policy.head.backward(hidden_N, pack.targets_N, 1.0, lambda span, logp: torch.zeros_like(logp))
        in_head = now()[1]
        hidden.backward(torch.zeros_like(hidden).index_add_(0, pack.sources_N, grad_N.to(hidden.dtype)))
        _, backward, flops = now()
        for parameter in policy.parameters:
            parameter.grad = None
    return Update(kept, in_head - there - kept, backward, max(in_head, backward), flops)


def score(blank: Blank, parts: list[Part]) -> Forward:
    """Log-probabilities of the completions, as of the reference."""
    policy = blank.policy
    with _counted(blank) as now, torch.no_grad(), policy.attending():
        pack = policy.pack(parts)
        policy.head.logprobs(policy.hidden(pack.inputs)[pack.sources_N], pack.targets_N)
        return Forward(*now()[1:])


def prefill(blank: Blank, prompts: list[Tensor]) -> Forward:
    """The prompts' pass, their keys and values captured."""
    policy = blank.policy
    with _counted(blank) as now, torch.no_grad(), policy.attending():
        pack = policy.pack([Part(i, prompt, [], []) for i, prompt in enumerate(prompts)])
        policy.prefill(pack)
        return Forward(*now()[1:])


def sample(blank: Blank, rows: int, sampling: Sampling) -> Forward:
    """The last layer's work for one token of each row, and drawing it."""
    policy = blank.policy
    with _counted(blank) as now, torch.no_grad():
        hidden = torch.empty(rows, policy.head.output.weight.shape[1])
        with policy.autocast():
            logits = policy.head.reader(policy.dtype)(hidden)
        draw(logits, sampling, torch.Generator())
        return Forward(*now()[1:])


def padded(blank: Blank, rows: int, length: int) -> Update:
    """What the usual trainer does with a group: one padded row for each completion, its prompt repeated, the logits of
    all positions, their float32 log-softmax, and autograd through it."""
    model = blank.policy.model
    with _counted(blank) as now:
        with blank.policy.autocast():
            ids = torch.zeros(rows, length, dtype=torch.long)
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        logprobs = torch.log_softmax(logits.float(), -1).gather(2, ids.unsqueeze(2))
        kept = now()[0]
        logprobs.mean().backward()
        _, peak, flops = now()
        for parameter in blank.policy.parameters:
            parameter.grad = None
    return Update(kept, 0.0, peak, peak, flops)
