"""Every row's gradient against autograd on its textbook objective, over the ordinary padded forward; GAE, the critic's
loss and DPO's against independent implementations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import lfilter
from torch import Tensor

from cohort.config import (
    METHOD_CONFIGS,
    GRPOConfig,
    OnlineRFTConfig,
    PPOConfig,
    RFTConfig,
    TrainingConfig,
)
from cohort.formulas.gae import gae, shaped_rewards, value_loss, whiten
from cohort.formulas.preference import Settings, preference
from cohort.methods.credits import critic_lambda, gae_advantages, policy_lambda
from cohort.methods.table import METHODS
from cohort.policy.model import Policy
from cohort.train.critic import CriticUpdater, explained_variance
from cohort.train.step import Updater
from cohort.types import Group
from helpers import SIZES, assert_close, gradients, padded_logprobs, perturbed, random_groups, small_policy, tokens_of

QUICK: dict[str, Any] = {"bf16": False, "use_cpu": True, "max_completion_length": 12}


def credited(method: str, groups: list[Group], config: TrainingConfig) -> list[Group]:
    for group, advantages in zip(groups, METHODS[method].credit(groups, config), strict=True):
        group.advantages = advantages
    return groups


def textbook_gradient(policy: Policy, loss: Tensor) -> dict[str, Tensor]:
    policy.model.zero_grad()
    loss.backward()
    return gradients(policy.model)


@pytest.mark.parametrize(("method", "kind"), [("rft", RFTConfig), ("online_rft", OnlineRFTConfig)])
def test_rejection_sampling_imitates_what_is_correct(method: str, kind: Any) -> None:
    """J = mean over completions of I(correct) * mean_t log pi: DeepSeekMath, appendix A.1.2."""
    config = kind(reward_threshold=0.5, **QUICK)
    policy, groups = small_policy(), credited(method, random_groups(SIZES), config)
    rewards = [r for group in groups for r in group.rewards]
    assert 0 < sum(r >= 0.5 for r in rewards) < len(rewards)
    metrics = Updater(policy, METHODS[method], config).gradient(groups, tokens_of(groups))
    ours = gradients(policy.model)
    logprobs = [x for group in groups for x in padded_logprobs(policy.model, group)]
    loss = -sum((r >= 0.5) * x.mean() for r, x in zip(rewards, logprobs, strict=True)) / len(rewards)
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert_close(ours, textbook_gradient(policy, loss), 1e-5)


def test_online_rft_trains_the_distribution_it_samples() -> None:
    config = OnlineRFTConfig(reward_threshold=0.0, temperature=0.6, **QUICK)
    policy, groups = small_policy(), credited("online_rft", random_groups(SIZES), config)
    Updater(policy, METHODS["online_rft"], config).gradient(groups, tokens_of(groups))
    ours = gradients(policy.model)
    loss = -sum(x.mean() for group in groups for x in padded_logprobs(policy.model, group, 0.6)) / 9
    assert_close(ours, textbook_gradient(policy, loss), 1e-5)


def test_preference_by_hand() -> None:
    """Margin 0.1 (2 + 1) = 0.3: loss log(1 + e^-0.3) = 0.55436, coefficient 0.1 sigmoid(-0.3) = 0.042556."""
    lengths = torch.tensor([[4, 5]])
    result = preference(torch.tensor([[-3.0, -7.0]]), torch.tensor([[-5.0, -6.0]]), lengths, Settings(0.1))
    assert float(result.objective_P) == pytest.approx(-0.554355, abs=1e-6)
    assert result.strengths_P2.tolist() == [pytest.approx([0.0425557, 0.0425557], abs=1e-6)]
    assert (float(result.chosen_P), float(result.rejected_P)) == pytest.approx((0.2, -0.1))
    flipped = preference(torch.tensor([[-3.0, -7.0]]), torch.tensor([[-5.0, -6.0]]), lengths, Settings(0.1, 0.25))
    expected = -(0.75 * math.log1p(math.exp(-0.3)) + 0.25 * math.log1p(math.exp(0.3)))
    assert float(flipped.objective_P) == pytest.approx(expected, abs=1e-6)
    assert torch.isfinite(
        preference(torch.tensor([[-900.0, 0.0]]), torch.zeros(1, 2), lengths, Settings(1.0)).objective_P
    ).all()


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_gae_equals_a_linear_filter(gamma: float, lam: float) -> None:
    """A is delta filtered backwards by 1 / (1 - gamma lam z^-1)."""
    rng = np.random.default_rng(3)
    rewards, values = rng.normal(size=17), rng.normal(size=17)
    deltas = rewards + gamma * np.append(values[1:], 0.0) - values
    expected = lfilter([1], [1, -gamma * lam], deltas[::-1])[::-1]
    ours = gae(torch.tensor(rewards), torch.tensor(values), gamma, lam)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12)


def test_lambda_grows_with_the_length() -> None:
    config = PPOConfig(lam_alpha=0.05)
    assert [policy_lambda(n, config) for n in (1, 20, 100, 1000)] == pytest.approx([0.0, 0.0, 0.8, 0.98])
    assert critic_lambda(100, config) == pytest.approx(0.8) and critic_lambda(100, PPOConfig(critic_lam=1.0)) == 1.0


def test_gpg_equals_autograd_on_the_token_mean() -> None:
    """J = mean over tokens of A log pi; the middle group has no spread, so A = (r - mean) * 3 / 2."""
    config = METHOD_CONFIGS["gpg"](num_generations=3, **QUICK)
    policy, groups = small_policy(), random_groups(SIZES)
    groups[1].rewards = [0.5] * len(groups[1].rewards)
    credited("gpg", groups, config)
    metrics = Updater(policy, METHODS["gpg"], config).gradient(groups, tokens_of(groups))
    ours = gradients(policy.model)
    loss = torch.zeros(())
    for group in groups:
        mean = sum(group.rewards) / len(group.rewards)
        for reward, logp in zip(group.rewards, padded_logprobs(policy.model, group), strict=True):
            loss = loss - 1.5 * (reward - mean) * logp.sum() / tokens_of(groups)
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    assert_close(ours, textbook_gradient(policy, loss), 1e-5)


def test_gae_by_hand() -> None:
    """r = 0 0 1, V = .5 .2 .4: deltas -.3, .2, .6; gamma lam = .5: A = .6, .5, -.05."""
    result = gae(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.2, 0.4]), 1.0, 0.5)
    torch.testing.assert_close(result, torch.tensor([-0.05, 0.5, 0.6]))
    assert len(gae(torch.zeros(0), torch.zeros(0), 1.0, 0.95)) == 0


def test_rewards_carry_the_kl_and_the_outcome_at_the_last_token() -> None:
    result = shaped_rewards(2.0, torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0]), 0.1)
    torch.testing.assert_close(result, torch.tensor([-0.05, 2.1]))
    torch.testing.assert_close(shaped_rewards(2.0, torch.tensor([-1.0, -2.0]), None, 0.1), torch.tensor([0.0, 2.0]))


def test_whitening_has_mean_0_and_deviation_1_and_leaves_one_token() -> None:
    result = whiten(torch.tensor([1.0, 2.0, 6.0]))
    torch.testing.assert_close(result, torch.tensor([-2.0, -1.0, 3.0]) / math.sqrt(7))
    assert whiten(torch.tensor([3.0])).tolist() == [3.0]
    assert whiten(torch.tensor([3.0, 3.0])).tolist() == [0.0, 0.0]


def test_the_value_loss_by_hand_and_by_autograd() -> None:
    values = torch.tensor([0.5, 1.0, 1.0, -0.4], requires_grad=True)
    old, returns = torch.tensor([0.4, 0.5, 0.5, 0.0]), torch.tensor([1.0, 2.0, 0.0, -1.0])
    result = value_loss(values.detach(), old, returns, 0.2)
    # Clipped to .5, .7, .7, -.2: (.5)^2, max(1, 1.69), max(1, .49), max(.36, .64), halved.
    torch.testing.assert_close(result.value_N, torch.tensor([0.125, 0.845, 0.5, 0.32]))
    assert result.clipped_N.tolist() == [False, True, False, True]
    bounded = old + (values - old).clamp(-0.2, 0.2)
    torch.max((values - returns) ** 2, (bounded - returns) ** 2).sum().div(2).backward()
    torch.testing.assert_close(result.slope_N, values.grad)


def textbook_values(model: Any, head: Any, group: Group) -> list[Tensor]:
    result = []
    for completion in group.completions:
        row = torch.cat([group.prompt_ids, completion.ids])[None]
        hidden = model.base_model(input_ids=row, use_cache=False).last_hidden_state[0, len(group.prompt_ids) - 1 : -1]
        result.append(head(hidden).squeeze(-1))
    return result


def ppo_batch(policy: Policy, critic: CriticUpdater, config: PPOConfig) -> list[Group]:
    groups = random_groups(SIZES)
    torch.manual_seed(1)
    torch.nn.init.normal_(critic.critic.head.weight, std=0.3)
    noisy = zip(groups, perturbed(policy, groups, 0.6, 1), perturbed(policy, groups, 0.5, 2), strict=True)
    for group, old, reference in noisy:
        group.old_logprobs, group.reference_logprobs = old, reference
        for completion, logprobs in zip(group.completions, old, strict=True):
            completion.logprobs = logprobs
    critic.attach(groups)
    for g, group in enumerate(groups):  # the critic's plain forward, then values far enough that the clip acts
        expected = textbook_values(critic.critic.model.model, critic.critic.head, group)
        for result, value in zip(group.values or [], expected, strict=True):
            torch.testing.assert_close(result, value.detach(), atol=1e-5, rtol=0)
        shift = torch.Generator().manual_seed(g)
        group.values = [v + 0.4 * torch.randn(v.shape, generator=shift) for v in group.values or []]
    return credited("ppo", groups, config)


def textbook_ppo(policy: Policy, groups: list[Group], config: PPOConfig) -> tuple[Tensor, list[list[Tensor]]]:
    """The clipped loss with GAE by a double sum, and the critic's targets."""
    raw, returns = [], []
    for group in groups:
        rows = zip(group.rewards, group.completions, group.values or [], group.reference_logprobs or [], strict=True)
        for reward, completion, V, reference in rows:
            r = -config.kl_coef * (completion.logprobs - reference)
            r[-1] = r[-1] + reward
            n = len(r)
            delta = [r[t] + config.gamma * (V[t + 1] if t + 1 < n else 0.0) - V[t] for t in range(n)]
            lam = config.lam if config.lam_alpha is None else max(0.0, 1 - 1 / (config.lam_alpha * n))
            lams = lam, lam if config.critic_lam is None else config.critic_lam
            of_policy, of_critic = (
                torch.stack([sum((config.gamma * x) ** (l - t) * delta[l] for l in range(t, n)) for t in range(n)])
                for x in lams
            )
            raw.append(of_policy)
            returns.append(of_critic + V)
    every = torch.cat(raw)
    mean, std = every.mean(), every.std()
    losses, correct = [], []
    high = config.cliprange if config.cliprange_high is None else config.cliprange_high
    flat = iter(raw)
    for group in groups:
        for r, logp in enumerate(padded_logprobs(policy.model, group)):
            A = (next(flat) - mean) / std
            ratio = (logp - (group.old_logprobs or [])[r]).exp()
            losses.append(-torch.min(ratio * A, ratio.clamp(1 - config.cliprange, 1 + high) * A).mean())
            if group.rewards[r] >= config.reward_threshold:
                correct.append(logp)
    targets = iter(returns)
    loss = torch.stack(losses).mean()
    if config.positive_nll_coef:
        loss = loss - config.positive_nll_coef * torch.cat(correct).mean()
    return loss, [[next(targets) for _ in group.completions] for group in groups]


def textbook_value_loss(critic: CriticUpdater, groups: list[Group], returns: list[list[Tensor]], c: float) -> Tensor:
    losses = []
    for group, targets in zip(groups, returns, strict=True):
        result = textbook_values(critic.critic.model.model, critic.critic.head, group)
        for V, old, R in zip(result, group.values or [], targets, strict=True):
            bounded = old + (V - old).clamp(-c, c)
            losses.append(torch.max((V - R) ** 2, (bounded - R) ** 2).mean() / 2)
    return torch.stack(losses).mean()


PARTS_OF_VAPO = {"lam_alpha": 0.5, "critic_lam": 1.0, "positive_nll_coef": 0.3, "reward_threshold": 0.5}


@pytest.mark.parametrize("variant", [{"lam": 0.8}, {**PARTS_OF_VAPO, "cliprange_high": 0.28}], ids=["ppo", "vapo"])
@pytest.mark.parametrize("budget", [10_000, 20])
def test_ppo_policy_and_critic_equal_autograd(budget: int, variant: dict[str, Any]) -> None:
    config = PPOConfig(gamma=0.9, kl_coef=0.2, vf_coef=0.5, token_budget=budget, max_grad_norm=0, **QUICK, **variant)
    policy = small_policy()
    critic = CriticUpdater(policy, METHODS["ppo"], config)
    groups = ppo_batch(policy, critic, config)
    metrics = Updater(policy, METHODS["ppo"], config).gradient(groups, tokens_of(groups))
    ours = gradients(policy.model)
    loss, returns = textbook_ppo(policy, groups, config)
    assert metrics["clip_ratio/low_mean"] > 0.02 and metrics["clip_ratio/high_mean"] > 0.02
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-4, abs=1e-6)
    assert_close(ours, textbook_gradient(policy, loss), 1e-5)
    for group, advantages, targets in zip(groups, gae_advantages(groups, config, critic_lambda), returns, strict=True):
        for A, V, R in zip(advantages, group.values or [], targets, strict=True):
            torch.testing.assert_close(A + V, R)

    weights = [[1 / (9 * len(c.ids)) for c in group.completions] for group in groups]
    critic._gradient(groups, weights)
    fitted = gradients(critic.critic.model.model) | {"head": critic.critic.head.weight.grad.clone()}
    value = textbook_value_loss(critic, groups, returns, config.cliprange_value)
    assert critic.sums["loss"] == pytest.approx(float(value.detach()), rel=1e-5)
    assert critic.sums["clipped"] > 3
    critic.zero_grad()
    (config.vf_coef * value).backward()
    expected = gradients(critic.critic.model.model) | {"head": critic.critic.head.weight.grad.clone()}
    assert_close(fitted, expected, 1e-5)


def test_a_shared_critic_adds_its_gradient_to_the_trunk() -> None:
    config = PPOConfig(vf_coef=0.5, critic="shared", **QUICK)
    policy = small_policy()
    critic = CriticUpdater(policy, METHODS["ppo"], config)
    assert critic.critic.model is policy and len(critic.critic.parameters) == 2
    groups = ppo_batch(policy, critic, config)
    Updater(policy, METHODS["ppo"], config, critic).gradient(groups, tokens_of(groups))
    ours = gradients(policy.model) | {"head": critic.critic.head.weight.grad.clone()}
    loss, returns = textbook_ppo(policy, groups, config)
    critic.zero_grad()
    total = loss + config.vf_coef * textbook_value_loss(critic, groups, returns, config.cliprange_value)
    theirs = textbook_gradient(policy, total) | {"head": critic.critic.head.weight.grad.clone()}
    assert_close(ours, theirs, 1e-5)


def test_a_critic_without_memory_halves_its_budget_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    config = PPOConfig(token_budget=64, **QUICK)
    policy = small_policy()
    critic = CriticUpdater(policy, METHODS["ppo"], config)
    groups = ppo_batch(policy, critic, config)
    weights = [[1 / (9 * len(c.ids)) for c in group.completions] for group in groups]
    critic._gradient(groups, weights)
    expected, loss = gradients(critic.critic.model.model), critic.sums["loss"]
    hidden = critic.critic.model.hidden

    def small_memory(inputs: dict[str, Any]) -> Tensor:
        if inputs["input_ids"].numel() > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return hidden(inputs)

    monkeypatch.setattr(critic.critic.model, "hidden", small_memory)
    critic._gradient(groups, weights)
    assert critic.token_budget == 16
    assert critic.sums["loss"] == pytest.approx(loss, rel=1e-5)
    assert_close(gradients(critic.critic.model.model), expected, 1e-5)


def test_a_masked_completion_has_no_part_in_ppo() -> None:
    config = PPOConfig(mask_truncated_completions=True, **QUICK)
    policy = small_policy()
    critic = CriticUpdater(policy, METHODS["ppo"], config)
    groups = ppo_batch(policy, critic, config)
    masked = [c.truncated for group in groups for c in group.completions]
    assert any(masked) and not all(masked)
    flat = [a for group in groups for a in group.advantages]
    assert all(not a.any() for a, out in zip(flat, masked, strict=True) if out)
    kept = torch.cat([a for a, out in zip(flat, masked, strict=True) if not out])
    assert float(kept.mean()) == pytest.approx(0, abs=1e-6) and float(kept.std()) == pytest.approx(1, abs=1e-5)


def test_lora_gives_the_critic_an_adapter_of_its_own_on_the_same_base() -> None:
    config = PPOConfig(finetuning_type="lora", lora_rank=4, **QUICK)
    policy = small_policy(config=config)
    critic = CriticUpdater(policy, METHODS["ppo"], config)
    ours, theirs = dict(policy.model.named_parameters()), dict(critic.critic.model.model.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all((ours[name] is theirs[name]) == ("lora" not in name) for name in ours)
    assert sum(p.numel() for p in critic.critic.parameters) == sum(p.numel() for p in policy.parameters) + 33


def test_explained_variance_of_a_perfect_and_an_empty_critic() -> None:
    config = PPOConfig(kl_coef=0.0, gamma=1.0, lam=1.0, **QUICK)
    groups = random_groups([(3, [2, 4]), (2, [3])])
    for group in groups:
        group.values = [torch.zeros(len(c.ids)) for c in group.completions]
    assert explained_variance(groups, config) == pytest.approx(0, abs=1e-6)
    for group in groups:  # without discount and KL a token's return is its completion's reward
        group.values = [torch.full((len(c.ids),), r) for c, r in zip(group.completions, group.rewards, strict=True)]
    assert explained_variance(groups, config) == pytest.approx(1, abs=1e-5)


def test_the_table_has_the_papers_rows_and_configurations_for_each() -> None:
    from cohort.config import METHOD_CONFIGS

    assert METHODS.keys() == METHOD_CONFIGS.keys() >= {"sft", "rft", "online_rft", "dpo", "ppo", "grpo"}
    rft, online = METHODS["rft"], METHODS["online_rft"]
    assert (rft.credit, rft.coefficient, rft.weight) == (online.credit, online.coefficient, online.weight)
    assert (rft.source, online.source) == ("start", "policy")
    assert isinstance(METHOD_CONFIGS["grpo"](), GRPOConfig)
