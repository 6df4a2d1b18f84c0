"""A policy on two ranks against the same policy in one process."""

from __future__ import annotations

from typing import Any

import pytest

from process_group import in_ranks
from sharded_work import CASES, comparisons

ROUNDED = "bfloat16"
"""Passes in bfloat16 by other code: gradients differ by 0.1 of their norm, in one process as well."""


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, dict[str, Any]]]:
    """By rank, then by case."""
    return in_ranks(2, comparisons, list(CASES))


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_score_and_sample_as_one_process(case: str, ranks: list[Any]) -> None:
    for rank in ranks:
        assert rank[case]["logprobs"] < 1e-6
        assert rank[case]["same tokens"]


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_of_unequally_divided_micro_batches_is_the_batchs(case: str, ranks: list[Any]) -> None:
    assert [rank[case]["passes"] for rank in ranks] == [(2, 0), (1, 1)]
    for rank in ranks:
        assert rank[case]["gradient"] < (0.2 if case == ROUNDED else 1e-5)


@pytest.mark.parametrize("case", CASES)
def test_a_clipped_step_moves_weights_as_in_one_process(case: str, ranks: list[Any]) -> None:
    first, _ = (rank[case] for rank in ranks)
    assert first["clipped"]
    assert first["norm"] < (5e-2 if case == ROUNDED else 1e-5)
    assert first["moved"] > 1e-3
    assert case == ROUNDED or first["weights"] < 1e-4 * first["moved"]
    assert first["tied"] == ("tied" in case or case == "Gemma2")


@pytest.mark.parametrize("case", CASES)
def test_the_reference_stays_when_the_policy_moves(case: str, ranks: list[Any]) -> None:
    for rank in ranks:
        assert rank[case]["reference is policy"] == [True, False]
        assert rank[case]["reference"] < 1e-6
