"""A policy on two ranks against the same policy in one process."""

from __future__ import annotations

from typing import Any

import pytest

from helpers import byte_tokenizer, saved, small_model
from process_group import in_ranks
from sharded_work import CASES, MEMORY, everything

ROUNDED = "bfloat16"
"""Passes in bfloat16 by other code: gradients differ by 0.1 of their norm, in one process as well."""

pytestmark = pytest.mark.slow  # each starts a group of processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    model, tokenizer = small_model("Llama", vocab_size=260, tie_word_embeddings=True), byte_tokenizer()
    model.generation_config.eos_token_id = [1, 7]
    return saved(tmp_path_factory.mktemp("model"), model, tokenizer)


@pytest.fixture(scope="module")
def ranks(folder: str) -> list[dict[str, dict[str, Any]]]:
    """By rank, then by case."""
    return in_ranks(2, everything, folder)


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
    assert case == ROUNDED or first["weights"] < min(1e-4, 1e-3 * first["moved"])
    assert first["tied"] == ("tied" in case or case == "Gemma2")


@pytest.mark.parametrize("case", CASES)
def test_the_reference_stays_when_the_policy_moves(case: str, ranks: list[Any]) -> None:
    for rank in ranks:
        assert rank[case]["reference is policy"] == [True, False]
        assert rank[case]["reference"] < 1e-6


def test_rank_0_reads_and_each_rank_has_its_part(folder: str, ranks: list[Any]) -> None:
    for rank in ranks:
        assert rank["loaded"]["weights"] == 0
        assert rank["loaded"]["end tokens"]
        assert rank["loaded"]["paths"]
        assert rank["loaded"]["name"] == folder
    numbers = sum(p.numel() for p in small_model("Llama", vocab_size=260, tie_word_embeddings=True).parameters())
    assert [rank["loaded"]["numbers"] for rank in ranks] == [numbers / 2, numbers / 2]


def test_every_rank_is_told_why_rank_0_cannot_load(ranks: list[Any]) -> None:
    for rank in ranks:
        first, second = rank["loaded"]["told"]
        assert "could not be loaded" in first
        assert "quantised weights cannot be divided among ranks" in second


def test_autocast_alone_keeps_all_weights_until_the_backward_pass_and_a_line_says_so(ranks: list[Any]) -> None:
    matrices = [p for name, p in small_model().named_parameters() if p.dim() == 2 and ".layers." in name]
    for rank in ranks:
        copies = 2 * sum(p.numel() for p in matrices)
        assert [rank["kept"][key] for key in MEMORY] == [(0, 0), (copies, 1), (0, 0), (0, 0)]
