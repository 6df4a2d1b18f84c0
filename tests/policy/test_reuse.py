"""The update that begins with its backward pass, against the one that makes the forward pass again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cohort.config import TrainingConfig
from cohort.methods.table import METHODS
from cohort.policy.fast.activations import ActivationStore
from cohort.policy.model import Policy
from cohort.rollouts.engine import LocalEngine
from cohort.rollouts.sampling import Sampling
from cohort.train.step import Updater
from cohort.types import Group, Row
from helpers import ENDS, assert_close, gradients, prompts_of, seeds, settings, small_policy, tokens_of


def sampled(
    policy: Policy, max_rows: int = 256, n: int = 4, capacity: int = 10_000, tokens: int = 12, top_k: int = 0
) -> tuple[list[Group], ActivationStore | None]:
    """Groups with random advantages, and the activations of their sampling."""
    prompts = prompts_of()
    sampling = Sampling(max_tokens=tokens, eos_ids=ENDS, top_k=top_k)
    engine = LocalEngine(policy, max_rows)
    found, store, _ = engine.generate(prompts, n, sampling, seeds(prompts, 1), keep_tokens=capacity)
    random = torch.Generator().manual_seed(2)
    groups = [
        Group(prompt, row, Row("?"), advantages=[torch.randn(1, generator=random).expand(len(c.ids)) for c in row])
        for prompt, row in zip(prompts, found, strict=True)
    ]
    return groups, store


def both(
    policy: Policy, groups: list[Group], store: ActivationStore | None, **options: Any
) -> list[tuple[dict[str, float], dict[str, Tensor]]]:
    """Metrics and gradients of the update that takes the activations of sampling, and of one that computes them."""
    assert store is not None
    updater = Updater(policy, METHODS["grpo"], settings(beta=0.0, **options))
    found = []
    for activations in (store, None):
        metrics = updater.gradient(groups, tokens_of(groups), activations)
        found.append((metrics, gradients(policy.model)))
        for group in groups:
            group.old_logprobs = None
    return found


def no_forward(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise AssertionError("a pass over the tokens was made")

    monkeypatch.setattr(policy, "pack", fails)


@pytest.mark.parametrize("max_rows", [256, 8, 3], ids=["together", "in waves", "groups in pieces"])
@pytest.mark.parametrize("architecture", ["Qwen2", "Qwen3", "Llama"])
def test_the_gradient_is_the_same(architecture: str, max_rows: int) -> None:
    policy = small_policy(architecture, hidden_size=64)
    groups, store = sampled(policy, max_rows)
    assert len({len(c.ids) for group in groups for c in group.completions}) > 4
    (known, ours), (plain, expected) = both(policy, groups, store)
    assert_close(ours, expected, 1e-5)
    assert known == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize("tokens", [12, 300])
@pytest.mark.parametrize("max_rows", [256, 20, 5], ids=["together", "in waves", "groups in pieces"])
def test_completions_that_begin_alike(max_rows: int, tokens: int) -> None:
    """Of two tokens at each place: what several begin with is there once, and many are the same."""
    policy = small_policy(hidden_size=64)
    groups, store = sampled(policy, max_rows, n=8, tokens=tokens, top_k=2)
    distinct = {(g, *c.ids.tolist()) for g, group in enumerate(groups) for c in group.completions}
    assert len(distinct) < 38 and store is not None
    assert max_rows < 256 or store.tokens < tokens_of(groups)  # prompts in it, and those that have ended
    for i in range(3):
        groups[i].advantages[i] = torch.zeros(len(groups[i].completions[i].ids))
    (known, ours), (plain, expected) = both(policy, groups, store)
    assert_close(ours, expected, 1e-5)
    assert known == pytest.approx(plain, abs=1e-6)


def test_no_forward_pass_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = small_policy()
    groups, store = sampled(policy)
    no_forward(policy, monkeypatch)
    Updater(policy, METHODS["grpo"], settings(beta=0.0)).step(groups, tokens_of(groups), 1e-3, store)
    with pytest.raises(AssertionError, match="a pass over the tokens"):  # the policy has moved
        Updater(policy, METHODS["grpo"], settings(beta=0.0)).step(groups, tokens_of(groups), 1e-3, store)


@pytest.mark.parametrize("dropped", [1, 15])
def test_completions_without_a_gradient_are_left_out(dropped: int) -> None:
    policy = small_policy()
    groups, store = sampled(policy)
    for i in range(dropped):
        groups[i % 5].advantages[i % 4] = torch.zeros(len(groups[i % 5].completions[i % 4].ids))
    (_, ours), (_, expected) = both(policy, groups, store)
    assert_close(ours, expected, 2e-5)  # rounding: 1.4e-5 for the keys' biases on an AMD EPYC


@pytest.mark.parametrize("bf16", [False, True])
def test_with_an_adapter_and_in_bfloat16(bf16: bool) -> None:
    config = TrainingConfig(bf16=bf16, use_cpu=True, finetuning_type="lora", lora_rank=4)
    policy = small_policy(config=config, hidden_size=64)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    (_, ours), (_, expected) = both(policy, *sampled(policy))
    assert_close(ours, expected, 0.1 if bf16 else 1e-5)


def test_what_does_not_fit_is_not_kept() -> None:
    policy = small_policy()
    _, store = sampled(policy, tokens=20)
    assert store is not None
    assert sampled(policy, tokens=20, capacity=store.tokens)[1] is not None
    assert sampled(policy, tokens=20, capacity=store.tokens - 1)[1] is None
    assert sampled(policy, tokens=20, capacity=10)[1] is None


def test_sliding_windows_are_not_kept() -> None:
    policy = small_policy("Mistral")
    assert sampled(policy)[1] is None


def test_micro_batches_make_their_pass_again() -> None:
    policy = small_policy()
    groups, store = sampled(policy)
    (_, ours), (_, expected) = both(policy, groups, store, token_budget=40)
    assert_close(ours, expected, 1e-6)


def test_other_completions_make_their_pass_again() -> None:
    policy = small_policy()
    _, store = sampled(policy)
    others, _ = sampled(policy, n=2)
    (_, ours), (_, expected) = both(policy, others, store)
    assert_close(ours, expected, 1e-6)
