"""Keys of the loss that would do nothing, would lose the advantages of tokens, or mean something else elsewhere."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from cohort import GRPOConfig, Trainer, UserError
from cohort.config import METHOD_CONFIGS, DPOConfig, OnlineConfig, PPOConfig, easily_misread
from cohort.data.chains import build_tokenizer, make_chains
from cohort.methods import Method
from cohort.methods.coefficients import by_ratio, clip_with_kl
from cohort.methods.table import chosen_loss_type
from cohort.types import Group
from helpers import digits, small_model

SEQUENCE: dict[str, Any] = {"importance_sampling_level": "sequence"}


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("grpo_process", SEQUENCE, "this method has one for each token: use sequence_token"),
        ("reinforce++", SEQUENCE, "this method has one for each token: use sequence_token"),
        ("grpo", {**SEQUENCE, "top_entropy_quantile": 0.5}, "leaves out single tokens: use sequence_token"),
        ("grpo", {**SEQUENCE, "loss_type": "clip_cov"}, "leaves out single tokens: use sequence_token"),
        ("grpo_process", {"loss_type": "gmpo"}, "this method has one for each token: use another loss_type"),
        ("grpo", {"loss_type": "gmpo", "top_entropy_quantile": 0.5}, "single tokens: use another loss_type"),
        (
            "grpo",
            {"loss_type": "gmpo", "vllm_importance_sampling_correction": True},
            "one weight for a completion: use vllm_importance_sampling_mode: sequence_truncate",
        ),
    ],
)
def test_advantages_of_tokens_are_not_lost(method: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        METHOD_CONFIGS[method](**values)


def test_whole_completions_may_have_one_ratio() -> None:
    METHOD_CONFIGS["reinforce++"](beta=0.0, **SEQUENCE)  # without a KL in it the reward of all tokens is the outcome's
    for method in ("grpo_process", "reinforce++"):
        METHOD_CONFIGS[method](importance_sampling_level="sequence_token")


@pytest.mark.parametrize(
    ("kind", "values", "key"),
    [
        (GRPOConfig, {"loss_type": "sapo", "epsilon": 0.3}, "epsilon"),
        (GRPOConfig, {"loss_type": "vespo", "epsilon_high": 0.3}, "epsilon_high"),
        (GRPOConfig, {"loss_type": "kl_cov", "delta": 2.0}, "delta"),
        (GRPOConfig, {"loss_type": "cispo", "epsilon": 0.3, "epsilon_high": 4.0}, "epsilon"),
        (GRPOConfig, {"loss_type": "dppo_tv", **SEQUENCE}, "importance_sampling_level"),
        (GRPOConfig, {"sapo_temperature_pos": 2.0}, "sapo_temperature_pos"),
        (GRPOConfig, {"vespo_k_neg": 1.0}, "vespo_k_neg"),
        (GRPOConfig, {"clip_cov_ratio": 0.1}, "clip_cov_ratio"),
        (GRPOConfig, {"kl_cov_coef": 0.1}, "kl_cov_coef"),
        (GRPOConfig, {"vllm_importance_sampling_mode": "token_mask"}, "vllm_importance_sampling_mode"),
        (OnlineConfig, {"entropy_target": 0.5}, "entropy_target"),
        (PPOConfig, {"reward_threshold": 0.5}, "reward_threshold"),
        (PPOConfig, {"lam": 0.9, "lam_alpha": 0.05}, "lam"),
        (DPOConfig, {"loss_type": "ipo", "label_smoothing": 0.1}, "label_smoothing"),
    ],
)
def test_a_key_that_would_do_nothing_is_refused(kind: Any, values: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=rf"{key} is .* would do nothing"):
        kind(**values)


def test_impossible_bounds_are_refused() -> None:
    with pytest.raises(UserError, match=r"clip_min is 3\.0, not below"):
        GRPOConfig(vllm_importance_sampling_correction=True, vllm_importance_sampling_clip_min=3.0)
    with pytest.raises(UserError, match=r"entropy_coef is 2\.0, the weight of the first step"):
        GRPOConfig(use_adaptive_entropy=True, entropy_coef=2.0)
    with pytest.raises(UserError, match="exo_pair takes the logarithm of label_smoothing"):
        DPOConfig(loss_type="exo_pair")
    with pytest.raises(UserError, match="dynamic_sampling replaces groups"):
        METHOD_CONFIGS["remax"](dynamic_sampling=True)
    with pytest.raises(UserError, match="num_generations is 1: a completion is judged against its siblings"):
        METHOD_CONFIGS["gpg"](num_generations=1)


def test_what_means_something_else_in_trl_is_said() -> None:
    assert easily_misread(GRPOConfig()) == []
    assert easily_misread(GRPOConfig(loss_type="cispo", epsilon_high=5.0)) == [
        "cispo caps the ratio at 1 + epsilon_high = 6; in TRL epsilon_high is the cap itself"
    ]
    assert "= 1.2;" in easily_misread(GRPOConfig(loss_type="cispo"))[0]
    assert "importance_sampling_level: sequence" in easily_misread(GRPOConfig(loss_type="luspo"))[0]


QUICK: dict[str, Any] = {
    "num_generations": 4, "per_device_train_batch_size": 8, "max_completion_length": 6, "max_steps": 1,
    "use_cpu": True, "bf16": False,
}  # fmt: skip
ROWS = make_chains(2, 8, 1, seed=0)[1]


def test_a_run_says_how_cispo_is_capped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = GRPOConfig(str(tmp_path), loss_type="cispo", **QUICK)
    Trainer(small_model(vocab_size=22), digits, config, ROWS, processing_class=build_tokenizer())
    assert "cispo caps the ratio at 1 + epsilon_high = 1.2" in caplog.text
    assert [r.levelno for r in caplog.records if "cispo caps" in r.message] == [logging.WARNING]


def test_a_row_of_ones_own_does_not_lose_advantages_of_tokens(tmp_path: Path) -> None:
    def rising(groups: list[Group], config: GRPOConfig) -> list[list[torch.Tensor]]:
        return [[torch.linspace(-1, 1, len(c.ids)) for c in group.completions] for group in groups]

    row = Method("rising", "policy", rising, clip_with_kl, chosen_loss_type, config=GRPOConfig, sees=by_ratio)

    def trainer(level: str) -> Trainer:
        config = GRPOConfig(str(tmp_path / level), importance_sampling_level=level, **QUICK)
        return Trainer(small_model(vocab_size=22), digits, config, ROWS, processing_class=build_tokenizer(), method=row)

    with pytest.raises(UserError, match="method rising gives the tokens of a completion advantages of their own"):
        trainer("sequence").train()
    trainer("sequence_token").train()
