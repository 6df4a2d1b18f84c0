"""An update's metrics: the numbers of adding them one by one in double precision, without a wait for each."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cohort.config import PPOConfig
from cohort.methods.table import METHODS
from cohort.policy import head
from cohort.train.critic import CriticUpdater
from cohort.train.step import Updater
from cohort.train.sums import Sums, added
from helpers import SIZES, perturbed, random_groups, settings, small_policy, tokens_of


def test_they_are_the_sums_in_double_precision() -> None:
    torch.manual_seed(0)
    pieces = [10 ** (n % 5) * torch.randn(7 + n) for n in range(60)]
    sums, one_by_one, counts, objective = Sums(), defaultdict[str, float](float), defaultdict[str, int](int), 0.0
    low, high, kl = 1.0, 1.0, 0.0
    for piece in pieces:
        logged = {"ratio": piece, "kl": piece.square(), "clip_ratio/low_mean": (piece > 1).float()}
        sums.log(logged)
        sums.add(piece)
        objective += float(piece.double().sum())
        low, high, kl = min(low, float(piece.min())), max(high, float(piece.max())), max(kl, float(logged["kl"].max()))
        for name, values in logged.items():
            one_by_one[name] += float(values.sum())
            counts[name] += len(values)
    totals = sums.totals()
    assert totals.metrics() == {
        "kl": one_by_one["kl"] / counts["kl"],
        "clip_ratio/low_mean": one_by_one["clip_ratio/low_mean"] / counts["clip_ratio/low_mean"],
        "ratio/min": low,
        "ratio/max": high,
        "kl/max": kl,
    }
    assert totals.objective == pytest.approx(objective, rel=1e-14)
    assert Sums().totals().metrics() == {} and Sums().totals().objective == 0.0


def test_totals_of_ranks_are_those_of_one() -> None:
    """A rank may lack a name, and may have none at all."""
    torch.manual_seed(1)
    pieces = [torch.randn(n) for n in (5, 3, 4)]
    whole, ranks = Sums(), [Sums() for _ in range(3)]
    for piece, rank in zip(pieces, (0, 0, 2), strict=True):
        for sums in (whole, ranks[rank]):
            sums.add(piece)
            sums.log({"ratio": piece.exp(), "kl": piece.square(), **({"entropy": piece} if rank == 2 else {})})
    joined = added([sums.totals() for sums in ranks])
    assert joined.objective == pytest.approx(whole.totals().objective)
    assert joined.metrics() == pytest.approx(whole.totals().metrics())


class _Waits(TorchDispatchMode):
    """How often a number was read from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name() == "aten::_local_scalar_dense"
        return func(*args, **(kwargs or {}))


def waits(method: str, spans: int, token_budget: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, dict[str, float]]:
    """Of one gradient whose head works through about so many blocks of tokens."""
    monkeypatch.setitem(head.BLOCK_BYTES, "cpu", 4 * 97 * (60 // spans))
    monkeypatch.setattr(head, "FEW_TOKENS", 1)
    policy, groups = small_policy(), random_groups(SIZES)
    noisy: list[list[list[Tensor]]] = [perturbed(policy, groups, 0.3, seed) for seed in (1, 2, 3)]
    for group, old, reference, values in zip(groups, *noisy, strict=True):
        group.old_logprobs, group.reference_logprobs, group.values = old, reference, values
    config: Any = settings(entropy_coef=0.1, token_budget=token_budget)
    critic = None
    if method == "ppo":
        config = PPOConfig(critic="shared", bf16=False, use_cpu=True, token_budget=token_budget)
        critic = CriticUpdater(policy, METHODS["ppo"], config)
    updater = Updater(policy, METHODS[method], config, critic)
    with _Waits() as seen:
        metrics = updater.gradient(groups, tokens_of(groups))
        if critic is not None:
            metrics |= critic.step(groups, tokens_of(groups), 0.0)
    return seen.count, metrics


@pytest.mark.parametrize("budgets", [(100, 100), (100, 16)], ids=["one micro-batch", "several"])
@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_more_blocks_of_tokens_are_not_more_waits(
    method: str, budgets: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    few, metrics = waits(method, 2, budgets[0], monkeypatch)
    many, of_many = waits(method, 20, budgets[1], monkeypatch)
    assert few == many
    assert of_many == pytest.approx(metrics, rel=1e-4, abs=1e-6)
    assert {"loss", "ratio/max", "entropy"} <= metrics.keys()
