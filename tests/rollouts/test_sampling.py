"""Truncation of distributions over long vocabularies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cohort.rollouts import sampling as module
from cohort.rollouts.sampling import Sampling, truncate

V = 6000


def by_a_full_sort(logp_NV: Tensor, top_p: float) -> Tensor:
    ordered, order = logp_NV.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    cut = probabilities.cumsum(-1) - probabilities >= top_p
    return logp_NV.masked_fill(cut.scatter(1, order, cut), -torch.inf)


def rows(kind: str) -> Tensor:
    torch.manual_seed(0)
    logits = torch.randn(40, V)
    if kind == "peaked":
        logits *= 4
    if kind == "flat and peaked":
        logits *= torch.linspace(0, 6, 40).unsqueeze(1)
    if kind == "ties":
        logits = (logits * 3).round()
    if kind == "few numbers":
        logits = (logits * torch.linspace(0, 4, 40).unsqueeze(1)).round()
    if kind == "uniform":
        logits *= 0
    if kind == "masked":
        logits[:, 300:] = -torch.inf
        logits[20:, 1:] = -torch.inf
    return logits.log_softmax(-1)


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.5, 0.9, 0.95, 0.999, 0.9999999])
@pytest.mark.parametrize("kind", ["plain", "peaked", "flat and peaked", "ties", "few numbers", "uniform", "masked"])
@pytest.mark.parametrize("likeliest", [1024, 7, 1])
def test_top_p_keeps_what_a_full_sort_keeps(
    likeliest: int, kind: str, top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LIKELIEST", likeliest)
    logp = rows(kind)
    assert torch.equal(truncate(logp, Sampling(top_p=top_p)), by_a_full_sort(logp, top_p))


@pytest.mark.parametrize("rule", [{"top_k": 40}, {"min_p": 0.05}, {"top_k": 2000, "min_p": 0.01}], ids=str)
def test_top_p_between_the_other_rules(rule: dict[str, Any]) -> None:
    logp = rows("flat and peaked")
    before = truncate(logp, Sampling(top_k=rule.get("top_k", 0)))
    expected = truncate(by_a_full_sort(before, 0.9), Sampling(min_p=rule.get("min_p", 0.0)))
    assert torch.equal(truncate(logp, Sampling(top_p=0.9, **rule)), expected)


class _Sorted(TorchDispatchMode):
    """Numbers of entries that were sorted."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().startswith("aten::sort"):
            self.sizes.append(args[0].numel())
        return func(*args, **(kwargs or {}))


def test_only_rows_that_the_likeliest_do_not_decide_are_sorted() -> None:
    logp = (5 * rows("plain")).log_softmax(-1)
    sizes = []
    for others in (0, 2):
        logp[:others] = rows("plain")[:others]
        with _Sorted() as sorted_:
            truncate(logp, Sampling(top_p=0.9))
        sizes.append(sum(sorted_.sizes))
    assert sizes == [2 * 40 * module.LIKELIEST, 2 * 40 * module.LIKELIEST + 2 * V]


def test_logits_that_are_not_numbers_stay_so() -> None:
    logp = rows("peaked")
    logp[1] = torch.nan
    found = truncate(logp, Sampling(top_p=0.9))
    assert found[1].isnan().all() and torch.equal(found[0], by_a_full_sort(logp, 0.9)[0])
