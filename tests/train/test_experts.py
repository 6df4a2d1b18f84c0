"""The load-balancing loss of a mixture of experts: its gradient, whatever the micro-batches, and when it is used."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from cohort import RewardConfig, SFTConfig, SFTTrainer, UserError
from cohort.config import TrainingConfig
from cohort.data.chains import build_tokenizer, make_chains
from cohort.formulas.balance import load_balance, routing
from cohort.methods.table import METHODS
from cohort.policy.load import make_policy
from cohort.train.step import Updater
from cohort.types import Completion, Group
from helpers import (
    SIZES,
    assert_close,
    gradients,
    padded_logprobs,
    random_groups,
    rows_of,
    small_model,
    tokens_of,
)

QUICK: dict[str, Any] = {"use_cpu": True, "bf16": False, "max_completion_length": 32}
EXPERTS: dict[str, dict[str, Any]] = {
    "Qwen2Moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}


def moe(architecture: str = "Qwen2Moe", **overrides: Any) -> Any:
    return small_model(architecture, **EXPERTS[architecture], **overrides)


def policy_of(model: Any, config: TrainingConfig) -> Any:
    return make_policy(model, build_tokenizer(), config)


def groups_with_a_repetition() -> list[Group]:
    """Of the first group's completions two are equal; of the second's none has an advantage."""
    groups = random_groups(SIZES)
    first = groups[0].completions
    first[2] = Completion(first[1].ids, first[1].logprobs, "x", version=-1)
    groups[0].advantages[2] = torch.ones(len(first[2].ids))
    groups[1].advantages = [torch.zeros(len(c.ids)) for c in groups[1].completions]
    return groups


def textbook_balance(model: Any, groups: list[Group]) -> Tensor:
    """transformers' loss on the tokens of each prompt and each different completion, from plain forward passes."""
    layers: list[list[Tensor]] = []
    for group in groups:
        p, distinct = len(group.prompt_ids), {tuple(c.ids.tolist()): c.ids for c in group.completions}
        for i, ids in enumerate(distinct.values()):
            row = torch.cat([group.prompt_ids, ids[:-1]])[None]
            logits = model(input_ids=row, output_router_logits=True, use_cache=False).router_logits
            layers.append([x.reshape(-1, 4)[p if i else 0 :] for x in logits])
    joined = tuple(torch.cat(parts) for parts in zip(*layers, strict=True))
    result: Tensor = load_balancing_loss_func(joined, 4, 2)
    return result


@pytest.mark.parametrize("budget", [10_000, 14], ids=["whole", "split"])
@pytest.mark.parametrize("paths", ["auto", "off"])
@pytest.mark.parametrize("architecture", EXPERTS)
def test_the_gradient_is_autograds_for_any_split(architecture: str, paths: Any, budget: int) -> None:
    """A budget of 14 tokens splits groups, so that their prompts are in several micro-batches."""
    config = SFTConfig(**QUICK, router_aux_loss_coef=0.3, token_budget=budget, fast_paths=paths)
    policy, groups = policy_of(moe(architecture), config), groups_with_a_repetition()
    assert policy.packed == (paths == "auto")
    metrics = Updater(policy, METHODS["sft"], config).gradient(groups, tokens_of(groups))
    ours = gradients(policy.model)
    balance = textbook_balance(policy.model, groups)
    loss = 0.3 * balance
    for group in groups:
        for logp, A in zip(padded_logprobs(policy.model, group), group.advantages, strict=True):
            loss = loss - (A * logp).mean() / 9
    policy.model.zero_grad()
    loss.backward()
    assert metrics["aux_loss"] == pytest.approx(float(balance.detach()), rel=1e-5)
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    assert_close(ours, gradients(policy.model), 1e-4)


def test_gradient_checkpointing_changes_nothing() -> None:
    results = []
    for checkpointing in (False, True):
        config = SFTConfig(**QUICK, router_aux_loss_coef=0.3, token_budget=14, gradient_checkpointing=checkpointing)
        policy, groups = policy_of(moe(), config), groups_with_a_repetition()
        policy.model.train()
        Updater(policy, METHODS["sft"], config).gradient(groups, tokens_of(groups))
        results.append(gradients(policy.model))
    assert_close(*results, 1e-5)


def test_the_loss_by_hand() -> None:
    """Probabilities 3/4, 1/4 and 1/2, 1/2 of the counted tokens: f = (1, 0), P = (5/8, 3/8): 2 * 5/8."""
    logits = torch.tensor([[3.0, 1.0], [1.0, 1.0 - 1e-6], [1.0, 9.0]]).log()
    counts, probabilities = routing([logits], torch.tensor([1.0, 1.0, 0.0]), 1)
    assert counts.tolist() == [2.0, 0.0]
    torch.testing.assert_close(load_balance(counts, probabilities, 2.0), torch.tensor(1.25))


DEMONSTRATIONS = make_chains(2, 8, 4, seed=0)[0]


def sft(folder: Path, model: Any, **values: Any) -> SFTTrainer:
    config = SFTConfig(
        output_dir=str(folder), max_steps=1, use_cpu=True, bf16=False, max_completion_length=32, **values
    )
    return SFTTrainer(model, config, DEMONSTRATIONS, processing_class=build_tokenizer())


def test_output_router_logits_asks_for_the_models_own_weight(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As in transformers and TRL. It was trained without the loss, in silence."""
    model = moe(vocab_size=22)
    model.save_pretrained(tmp_path / "moe")
    build_tokenizer().save_pretrained(tmp_path / "moe")
    given: dict[str, Any] = {"output_router_logits": True, "router_aux_loss_coef": 0.02}
    with caplog.at_level(logging.INFO, "cohort"):
        sft(tmp_path / "on", str(tmp_path / "moe"), model_init_kwargs=given).train()
    assert "the experts' load-balancing loss has the weight 0.02" in caplog.messages
    assert rows_of(tmp_path / "on")[0]["aux_loss"] > 0
    caplog.clear()
    with caplog.at_level(logging.INFO, "cohort"):
        sft(tmp_path / "off", str(tmp_path / "moe"), model_init_kwargs=given, router_aux_loss_coef=0.0).train()
        sft(tmp_path / "default", str(tmp_path / "moe")).train()
    assert not [message for message in caplog.messages if "load-balancing" in message]
    assert "aux_loss" not in rows_of(tmp_path / "off")[0] and "aux_loss" not in rows_of(tmp_path / "default")[0]


def test_a_weight_without_experts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"0.001, and Qwen2ForCausalLM is no mixture of experts"):
        sft(tmp_path, small_model(vocab_size=22), router_aux_loss_coef=0.001)
    with pytest.raises(ValueError, match="reward models are trained without a load-balancing loss"):
        RewardConfig(router_aux_loss_coef=0.001)
