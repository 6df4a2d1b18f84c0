"""The flash form of the grouped attention against the form that makes its scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cohort.config import TrainingConfig
from cohort.methods import METHODS
from cohort.policy import attention
from cohort.policy.attention import GroupLayout, HeadOptions
from cohort.train.step import Updater
from conftest import random_groups, small_policy
from test_step import settings, tokens_of

LAYOUTS: list[tuple[list[int], list[list[int]]]] = [
    ([5, 3], [[4, 2, 1], [3]]),
    ([4, 4], [[3, 3], [3, 3]]),
    ([7, 2, 40], [[], [1], [50, 3]]),
    ([6, 3], [[], []]),
]


def stream(layout: GroupLayout, heads: int, kv_heads: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    tokens = len(layout.places)
    return [torch.randn(tokens, n, 16, dtype=dtype, requires_grad=True) for n in (heads, kv_heads, kv_heads)]


@pytest.mark.parametrize("heads", [(4, 2), (4, 4), (4, 1)])
@pytest.mark.parametrize("lengths", LAYOUTS)
def test_flash_equals_scores(
    lengths: tuple[list[int], list[list[int]]], heads: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = GroupLayout(*lengths, torch.device("cpu"))
    inputs = stream(layout, *heads, torch.float64)
    grad = torch.randn(inputs[0].shape, dtype=torch.float64)
    found = []
    for few in (0, 10_000):
        monkeypatch.setattr(attention, "FEW_KEYS", few)
        out = layout.attend(*inputs, HeadOptions(0, 0.2, None, None, None))
        found.append([out, *torch.autograd.grad(out, inputs, grad)])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "options", [{"window": 3}, {"softcap": 5.0}, {"sinks": torch.zeros(4)}], ids=["window", "softcap", "sinks"]
)
def test_what_the_kernel_does_not_know_is_not_given_to_it(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = GroupLayout([7, 2], [[5, 3], [4]], torch.device("cpu"))
    q, k, v = stream(layout, 4, 2, torch.float32)
    head = HeadOptions(0, 0.2, **{"window": None, "softcap": None, "sinks": None, **options})
    monkeypatch.setattr(attention, "FEW_KEYS", 10_000)
    expected = layout.attend(q, k, v, head)
    monkeypatch.setattr(attention, "FEW_KEYS", 0)
    torch.testing.assert_close(layout.attend(q, k, v, head), expected, rtol=0, atol=0)


def test_no_scores_are_kept_for_the_gradient() -> None:
    policy = small_policy()
    groups = random_groups([(40, [60, 50, 60, 55])])
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    config = settings(beta=0.0)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        Updater(policy, METHODS["grpo"], config).gradient(groups, tokens_of(groups))
    tokens = 40 + 60 + 50 + 60 + 55
    assert max(sizes) <= tokens * 48  # the widest activation, the MLP's


def test_bfloat16_stays_near_float32() -> None:
    groups = random_groups([(40, [60, 50]), (9, [12, 61])])
    found = []
    for bf16 in (False, True):
        policy = small_policy(config=TrainingConfig(bf16=bf16, use_cpu=True))
        config = settings(beta=0.0).model_copy(update={"bf16": bf16})
        Updater(policy, METHODS["grpo"], config).gradient(groups, tokens_of(groups))
        found.append(torch.cat([p.grad.flatten().float() for p in policy.model.parameters()]))
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 0.1
