"""Every row and variant: the step's closed-form gradient against autograd on the textbook objective, over the ordinary
padded forward; and the split into micro-batches does not change it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cohort.config import METHOD_CONFIGS, GRPOConfig, TrainingConfig
from cohort.methods.table import METHODS
from cohort.train.step import Updater
from cohort.train.weights import active_lengths
from cohort.types import Group, Steps
from helpers import SIZES, assert_close, gradients, perturbed, random_groups, small_policy

VARIANTS: dict[str, dict[str, Any]] = {
    "dual clip": {"delta": 1.5},
    "gspo": {"importance_sampling_level": "sequence", "epsilon": 0.1, "epsilon_high": 0.15},
    "gspo, dual clip": {"importance_sampling_level": "sequence", "delta": 1.3, "epsilon": 0.1},
    "gspo, weighted kl": {"importance_sampling_level": "sequence", "beta": 0.1, "use_bias_correction_kl": True},
    "cispo": {"loss_type": "cispo", "epsilon_high": 0.28},
    "cispo of completions": {"loss_type": "cispo", "importance_sampling_level": "sequence", "beta": 0.1},
    "entropy quantile": {"top_entropy_quantile": 0.3, "beta": 0.1},
    "entropy bonus": {"entropy_coef": 0.05},
    "bonus for the uncertain": {"entropy_coef": 0.05, "top_entropy_quantile": 0.4, "loss_type": "dr_grpo"},
    "gspo-token": {"importance_sampling_level": "sequence_token", "epsilon": 0.1, "epsilon_high": 0.15, "beta": 0.1},
    "gspo-token for the uncertain": {"importance_sampling_level": "sequence_token", "top_entropy_quantile": 0.4},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence", "epsilon": 0.1},
    "sapo": {"loss_type": "sapo", "sapo_temperature_pos": 0.75, "beta": 0.1},
    "sapo of completions": {"loss_type": "sapo", "importance_sampling_level": "sequence"},
    "gmpo": {"loss_type": "gmpo", "epsilon": 0.3, "epsilon_high": 0.4, "beta": 0.1, "use_bias_correction_kl": True},
    "gmpo, sampler mask": {
        "loss_type": "gmpo",
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "sequence_mask",
        "vllm_importance_sampling_clip_max": 3.0,
    },
    "vespo": {"loss_type": "vespo", "vespo_k_pos": 1.5, "vespo_lambda_neg": 1.75, "beta": 0.1},
    "vespo, sampler correction": {"loss_type": "vespo", "vllm_importance_sampling_correction": True},
    "dppo_tv": {"loss_type": "dppo_tv", "epsilon": 0.01, "epsilon_high": 0.02},
    "dppo_kl": {"loss_type": "dppo_kl", "epsilon": 0.005, "epsilon_high": 0.01},
    "clip_cov": {"loss_type": "clip_cov", "clip_cov_ratio": 0.3, "clip_cov_lb": -0.5, "clip_cov_ub": 4.0},
    "kl_cov": {"loss_type": "kl_cov", "kl_cov_ratio": 0.3, "kl_cov_coef": 0.5},
    "off-policy mask": {"off_policy_mask_threshold": 0.01, "beta": 0.1},
    "off-policy mask of the sampler": {
        "off_policy_mask_threshold": 0.02,
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "token_mask",
        "vllm_importance_sampling_clip_min": 0.6,
        "vllm_importance_sampling_clip_max": 1.6,
    },
    "sampler truncation of completions": {
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "sequence_truncate",
        "vllm_importance_sampling_clip_min": 0.5,
    },
    "sampler correction": {"vllm_importance_sampling_correction": True, "vllm_importance_sampling_clip_max": 1.2},
    "gspo, sampler correction": {
        "importance_sampling_level": "sequence",
        "vllm_importance_sampling_correction": True,
        "beta": 0.1,
    },
    "all at once": {
        "loss_type": "dapo",
        "epsilon_high": 0.28,
        "delta": 1.6,
        "beta": 0.1,
        "use_bias_correction_kl": True,
        "top_entropy_quantile": 0.6,
        "entropy_coef": 0.02,
        "vllm_importance_sampling_correction": True,
        "mask_truncated_completions": True,
        "temperature": 1.3,
    },
}
ROWS: dict[str, dict[str, Any]] = {
    "grpo": {"beta": 0.1},
    "grpo_process": {"beta": 0.1},
    "rloo": {"beta": 0.1},
    "opo": {"beta": 0.0},
    "pass_at_k": {"beta": 0.0, "pass_k": 2, "reward_threshold": 0.5},
    "reinforce++": {"beta": 0.1},
    "reinforce++_baseline": {"beta": 0.1, "kl_estimator": "k2"},
    "remax": {"beta": 0.0},
    "maxrl": {"beta": 0.0, "loss_type": "dapo"},
}


def settings(row: str = "grpo", **values: Any) -> GRPOConfig:
    config = METHOD_CONFIGS[row](
        **{"num_generations": 3, "max_completion_length": 12, "bf16": False, "use_cpu": True, "beta": 0.0, **values}
    )
    assert isinstance(config, GRPOConfig)
    return config


def batch(policy: Any, config: GRPOConfig, old_noise: float = 0.5) -> list[Group]:
    """Groups with steps, whose sampler, old policy and reference all differ from the policy and from each other."""
    groups = random_groups(SIZES)
    generator = torch.Generator().manual_seed(4)
    noisy = [perturbed(policy, groups, noise, seed) for seed, noise in enumerate((old_noise, 0.4, 0.6))]
    for group, old, reference, sampler in zip(groups, *noisy, strict=True):
        group.old_logprobs = old
        group.reference_logprobs = reference if config.needs_reference else None
        for completion, logprobs in zip(group.completions, sampler, strict=True):
            completion.logprobs = logprobs
        group.steps = [
            Steps(torch.rand(2, generator=generator).tolist(), [1, 2], [len(c.ids) // 2, len(c.ids) - 1])
            for c in group.completions
        ]
    return groups


def logits_of(model: Any, group: Group, config: TrainingConfig) -> list[Tensor]:
    rows = [torch.cat([group.prompt_ids, completion.ids]) for completion in group.completions]
    return [
        (model(input_ids=row[None], use_cache=False).logits[0, len(group.prompt_ids) - 1 : -1]).div(
            config.training_temperature
        )
        for row in rows
    ]


def textbook_sampler_weights(log_ratio: Tensor, config: GRPOConfig) -> Tensor:
    """Policy to sampler, one for each token."""
    mode, low, high = (
        config.vllm_importance_sampling_mode,
        config.vllm_importance_sampling_clip_min,
        config.vllm_importance_sampling_clip_max,
    )
    ratio = log_ratio.sum().exp().expand(len(log_ratio)) if mode.startswith("sequence") else log_ratio.exp()
    low, high = low or 0.0, math.inf if high is None else high
    return ratio.clamp(low, high) if mode.endswith("truncate") else ratio * ((ratio >= low) & (ratio <= high))


def textbook_selection(groups: list[Group], logps: Any, active: Any, config: GRPOConfig) -> dict[Any, Tensor] | None:
    """The tokens of high covariance, for the loss types that choose them."""
    if config.loss_type not in ("clip_cov", "kl_cov"):
        return None
    keys = [(g, r) for g, group in enumerate(groups) for r in range(len(group.completions)) if active[g][r]]
    taken = [logps[g][r].detach().gather(1, groups[g].completions[r].ids[:, None])[:, 0] for g, r in keys]
    logp, A = torch.cat(taken), torch.cat([groups[g].advantages[r] for g, r in keys])
    cov = (logp - logp.mean()) * (A - A.mean())
    mask = torch.zeros_like(cov)
    if config.loss_type == "kl_cov":
        mask[cov.argsort(descending=True)[: int(config.kl_cov_ratio * len(cov))]] = 1.0
    else:
        fit = [i for i in range(len(cov)) if config.clip_cov_lb < cov[i] < config.clip_cov_ub]
        order = torch.randperm(len(fit), generator=torch.Generator().manual_seed(config.seed))  # version 0
        mask[torch.tensor(fit)[order[: int(config.clip_cov_ratio * len(cov))]]] = 1.0
    assert 0 < mask.sum() < len(mask)
    return dict(zip(keys, mask.split([len(x) for x in taken]), strict=True))


def textbook_surrogate(
    logp: Tensor, old: Tensor, log_ratio: Tensor, A: Tensor, selected: Tensor, sampler: Tensor, config: GRPOConfig
) -> Tensor:
    """The surrogate objective of the tokens of one completion, as its paper writes it."""
    low, high = config.epsilon, config.epsilon if config.epsilon_high is None else config.epsilon_high
    ratio, n, kind = log_ratio.exp(), len(A), config.loss_type
    if kind == "cispo":
        return ratio.clamp(max=1 + high).detach() * A * logp
    if kind == "sapo":
        tau = torch.where(A > 0, config.sapo_temperature_pos, config.sapo_temperature_neg)
        return torch.sigmoid(tau * (ratio - 1)) * 4 / tau * A
    if kind == "gmpo":
        sign = torch.sign(A)
        mean = (torch.min(sign * (logp - old), sign * (logp - old).clamp(-low, high)) * sign).mean()
        return (mean.exp() * A[0]).expand(n)
    if kind == "vespo":
        w = ((logp - old).sum() + sampler.log().sum()).exp().detach()
        k = torch.where(A >= 0, config.vespo_k_pos, config.vespo_k_neg)
        lam = torch.where(A >= 0, config.vespo_lambda_pos, config.vespo_lambda_neg)
        return lam.exp() * w**k * (-lam * w).exp() * A * logp
    if kind == "dppo_tv":
        moved = (logp.exp() - old.exp()).detach()
        return ratio * A * torch.where(A > 0, moved <= high, moved >= -low)
    if kind == "dppo_kl":
        p, q = old.exp(), logp.exp().detach()
        kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
        return ratio * A * torch.where(A > 0, (kl <= high) | (q <= p), (kl <= low) | (q >= p))
    if kind == "kl_cov":
        return ratio * A - config.kl_cov_coef * selected * (logp - old).abs()
    free = ratio if config.delta is None else ratio.clamp(max=config.delta)
    return torch.min(free * A, ratio.clamp(1 - low, 1 + high) * A) * (1 - selected if kind == "clip_cov" else 1)


def textbook_loss(model: Any, groups: list[Group], config: GRPOConfig, kl_in_loss: bool = True) -> Tensor:
    """The papers' objectives, written out with autograd, one completion after the other."""
    logps = [[logits.log_softmax(-1) for logits in logits_of(model, group, config)] for group in groups]
    active = [[not (config.mask_truncated_completions and c.truncated) for c in group.completions] for group in groups]
    pairs = [(g, r) for g, group in enumerate(groups) for r in range(len(group.completions))]
    entropies = {(g, r): -(logps[g][r].exp() * logps[g][r]).sum(-1) for g, r in pairs}
    every = torch.cat([entropies[g, r].detach() for g, r in pairs if active[g][r]])
    least = torch.quantile(every, 1 - config.top_entropy_quantile)
    chosen = textbook_selection(groups, logps, active, config)
    objective, bonus, learning = torch.zeros(()), torch.zeros(()), 0.0
    tokens = sum(len(groups[g].completions[r].ids) for g, r in pairs if active[g][r])
    for g, r in pairs:
        if not active[g][r]:
            continue
        group, completion = groups[g], groups[g].completions[r]
        n = len(completion.ids)
        logp = logps[g][r].gather(1, completion.ids[:, None])[:, 0]
        old = logp.detach() if group.old_logprobs is None else group.old_logprobs[r]
        log_ratio = logp - old
        if config.importance_sampling_level == "sequence":
            log_ratio = log_ratio.mean().expand(n)
        if config.importance_sampling_level == "sequence_token":
            log_ratio = log_ratio.mean().detach() + logp - logp.detach()
        weight_of_sampler = torch.ones(n)
        if config.vllm_importance_sampling_correction:
            weight_of_sampler = textbook_sampler_weights(old - completion.logprobs, config)
        A = group.advantages[r]
        corrected = config.loss_type == "vespo"
        selected = torch.zeros(n) if chosen is None else chosen[g, r]
        terms = textbook_surrogate(logp, old, log_ratio, A, selected, weight_of_sampler, config)
        if config.off_policy_mask_threshold is not None:
            before = completion.logprobs if config.vllm_importance_sampling_correction else old
            far = float((before - logp.detach()).mean()) > config.off_policy_mask_threshold
            terms = terms * (A >= 0) if far else terms
        if not corrected:
            terms = terms * weight_of_sampler
        kept = (entropies[g, r] >= least).float() if config.top_entropy_quantile < 1 else torch.ones(n)
        terms = terms * kept
        if config.beta and kl_in_loss and group.reference_logprobs is not None:
            d = logp - group.reference_logprobs[r]
            kl = {"k2": d.square() / 2, "k3": (-d).exp() + d - 1}[config.kl_estimator]
            terms = terms - config.beta * (kl * log_ratio.exp() if config.use_bias_correction_kl else kl)
        weight = {
            **dict.fromkeys(("grpo", "sapo", "gmpo"), 1 / (n * len(pairs))),
            "dr_grpo": 1 / (len(pairs) * config.max_completion_length),
            "luspo": 1 / len(pairs),
        }.get(config.loss_type, 1 / tokens)
        objective = objective + weight * terms.sum()
        bonus = bonus + (entropies[g, r] * kept).sum()
        learning += float(kept.sum())
    return -objective - config.entropy_coef * bonus / learning


def compare(policy: Any, groups: list[Group], row: str, config: GRPOConfig) -> dict[str, float]:
    metrics = Updater(policy, METHODS[row], config).gradient(groups, float(active_lengths(groups, config).sum()))
    ours = gradients(policy.model)
    policy.model.zero_grad()
    loss = textbook_loss(policy.model, groups, config, kl_in_loss=row not in ("reinforce++", "rloo"))
    loss.backward()
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-5, abs=1e-6)
    assert_close(ours, gradients(policy.model), 1e-5)
    return metrics


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variants_gradient_and_loss_equal_autograds(name: str) -> None:
    config = settings(**VARIANTS[name])
    policy = small_policy()
    compare(policy, batch(policy, config), "grpo", config)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_on_policy(name: str) -> None:
    """At the first update the old policy is the policy itself, whichever engine sampled the batch."""
    config = settings(**VARIANTS[name])
    policy = small_policy()
    groups = batch(policy, config)
    for group in groups:
        group.old_logprobs = None
        for completion in group.completions:
            # only a corrected sampler may have other weights
            completion.version = -1 if config.vllm_importance_sampling_correction else policy.version
    metrics = Updater(policy, METHODS["grpo"], config).gradient(groups, float(active_lengths(groups, config).sum()))
    assert (metrics["ratio/min"], metrics["ratio/max"]) == (1.0, 1.0)
    ours = gradients(policy.model)
    for group in groups:
        group.old_logprobs = None
    policy.model.zero_grad()
    if config.vllm_importance_sampling_correction:
        for group in groups:
            logits = logits_of(policy.model, group, config)
            group.old_logprobs = [
                x.detach().log_softmax(-1).gather(1, c.ids[:, None])[:, 0]
                for x, c in zip(logits, group.completions, strict=True)
            ]
    textbook_loss(policy.model, groups, config).backward()
    assert_close(ours, gradients(policy.model), 1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_changes_the_gradient_and_no_cut_does(name: str) -> None:
    result = []
    for values, budget in (({}, 10_000), (VARIANTS[name], 10_000), (VARIANTS[name], 1)):
        policy = small_policy()
        config = settings(**values, token_budget=budget)
        groups = batch(policy, config)
        for group, advantages in zip(groups, METHODS["grpo"].credit(groups, config), strict=True):
            group.advantages = advantages
        metrics = Updater(policy, METHODS["grpo"], config).gradient(groups, float(active_lengths(groups, config).sum()))
        result.append((metrics["loss"], torch.cat([g.flatten() for g in gradients(policy.model).values()])))
    (_, plain), (loss, whole), (cut_loss, cut) = result
    assert float((whole - plain).norm() / plain.norm()) > 1e-3
    assert float((whole - cut).norm() / whole.norm()) < 5e-6 and loss == pytest.approx(cut_loss, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("row", ROWS)
def test_a_rows_gradient_equals_autograds(row: str) -> None:
    config = settings(row, **ROWS[row])
    policy = small_policy()
    groups = batch(policy, config, old_noise=0.2)
    for group, rewards in zip(groups, ([1.0, 0.1, 0.4], [0.0, 0.2, 0.6], [0.7, 0.8, 0.1]), strict=True):
        group.rewards, group.greedy_reward = rewards, 0.25
    for group, advantages in zip(groups, METHODS[row].credit(groups, config), strict=True):
        group.advantages = advantages
    for group, expected in zip(groups, expected_advantages(row, groups, config), strict=True):
        for a, e in zip(group.advantages, expected, strict=True):
            torch.testing.assert_close(a, e, atol=1e-5, rtol=1e-4)
    compare(policy, groups, row, config)


def expected_advantages(row: str, groups: list[Group], config: GRPOConfig) -> list[list[Tensor]]:
    """The papers' formulas in plain loops."""
    if row == "reinforce++":
        return of_reinforce(groups, config)
    if row == "reinforce++_baseline":
        return of_centred(groups)
    result = []
    for group in groups:
        r, n = group.rewards, [len(c.ids) for c in group.completions]
        G = len(r)
        mean = sum(r) / G
        std = math.sqrt(sum((x - mean) ** 2 for x in r) / (G - 1))
        if row == "grpo_process":
            result.append(of_steps(group))
            continue
        if row == "grpo":
            values = [(x - mean) / (std + 1e-4) for x in r]
        elif row == "rloo":
            r = [x - config.beta * _divergence(group, i) for i, x in enumerate(r)]
            values = [x - (sum(r) - x) / (G - 1) for x in r]
        elif row == "remax":
            values = [x - float(group.greedy_reward or 0.0) for x in r]
        elif row == "maxrl":
            values = [(x - mean) / mean for x in r]
        elif row == "opo":
            values = [x - sum(a * b for a, b in zip(r, n, strict=True)) / sum(n) for x in r]
        else:
            right = [x >= 0.5 for x in r]
            m = {0: 0.0, 1: 2 / 3, 2: 1.0, 3: 1.0}[sum(right)]  # of three draws of two
            values = [0.0] * G
            if sum(right) == 1:
                values = [(1 - m if x else 1 - m - 0.5) / math.sqrt(m * (1 - m)) for x in right]
        result.append([torch.full((k,), value) for k, value in zip(n, values, strict=True)])
    return result


def _divergence(group: Group, i: int) -> float:
    """The sum of log(pi_old / ref) over a completion's tokens."""
    if group.reference_logprobs is None:
        return 0.0
    return float((group.completions[i].logprobs - group.reference_logprobs[i]).sum())


def of_centred(groups: list[Group]) -> list[list[Tensor]]:
    """r minus the group's mean, then mean 0 and standard deviation 1 over all tokens."""
    centred = [
        [
            torch.full((len(c.ids),), x - sum(group.rewards) / len(group.rewards))
            for x, c in zip(group.rewards, group.completions, strict=True)
        ]
        for group in groups
    ]
    every = torch.cat([x for of_group in centred for x in of_group])
    return [[(x - every.mean()) / every.std() for x in of_group] for of_group in centred]


def of_steps(group: Group) -> list[Tensor]:
    assert group.steps is not None
    rewards = [x for steps in group.steps for x in steps.rewards]
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((x - mean) ** 2 for x in rewards) / (len(rewards) - 1))
    return [
        torch.tensor(
            [
                sum((x - mean) / (std + 1e-4) for x, end in zip(steps.rewards, steps.ends, strict=True) if end >= t)
                for t in range(len(completion.ids))
            ]
        )
        for steps, completion in zip(group.steps, group.completions, strict=True)
    ]


def of_reinforce(groups: list[Group], config: GRPOConfig) -> list[list[Tensor]]:
    returns = []
    for group in groups:
        assert group.reference_logprobs is not None
        for i, completion in enumerate(group.completions):
            kl = (completion.logprobs - group.reference_logprobs[i]).tolist()
            returns.append([group.rewards[i] - config.beta * sum(kl[t:]) for t in range(len(kl))])
    flat = [x for row in returns for x in row]
    mean = sum(flat) / len(flat)
    std = math.sqrt(sum((x - mean) ** 2 for x in flat) / (len(flat) - 1))
    rows = iter([torch.tensor([(x - mean) / std for x in row]) for row in returns])
    return [[next(rows) for _ in group.completions] for group in groups]


def test_the_uncertain_share_is_of_the_whole_step() -> None:
    """A fifth of all tokens, not of each completion or micro-batch."""
    policy = small_policy()
    config = settings(top_entropy_quantile=0.2, token_budget=1)
    groups = batch(policy, config)
    for group in groups:
        group.advantages = [torch.ones_like(a) for a in group.advantages]
        group.old_logprobs = None
        for completion in group.completions:
            completion.version = policy.version
    entropies = torch.cat(
        [
            -(x.softmax(-1) * x.log_softmax(-1)).sum(-1)
            for group in groups
            for x in logits_of(policy.model, group, config)
        ]
    )
    n = len(entropies)
    metrics = Updater(policy, METHODS["grpo"], config.model_copy(update={"loss_type": "bnpo"})).gradient(groups, n)
    kept = int((entropies >= entropies.quantile(0.8)).sum())
    assert 0.15 < kept / n < 0.25
    assert -metrics["loss"] == pytest.approx(kept / n, rel=1e-5)


def test_normalised_before_their_sum_a_large_reward_does_not_drown_a_small_one() -> None:
    groups = random_groups([(3, [2, 2]), (3, [2, 2])])
    for group, small, large in zip(groups, ([0.0, 1.0], [1.0, 0.0]), ([0.0, 100.0], [0.0, 100.0]), strict=True):
        group.components = {"small": small, "large": large}
        group.rewards = [a + b for a, b in zip(small, large, strict=True)]
    first = [[float(a[0]) for a in row] for row in METHODS["grpo"].credit(groups, settings())]
    apart = settings(multi_objective_aggregation="normalize_then_sum", reward_weights=[1.0, 1.0])
    second = [[float(a[0]) for a in row] for row in METHODS["grpo"].credit(groups, apart)]
    assert first[1] == pytest.approx([-0.7071, 0.7071], abs=1e-3)
    assert second[1] == pytest.approx([0.0, 0.0], abs=1e-3) and second[0][1] > 1


@pytest.mark.parametrize("row", ["online_rft", "ppo"])
def test_other_online_rows_have_the_entropy_bonus(row: str) -> None:
    result = []
    for coefficient in (0.0, 0.3):
        policy = small_policy()
        config = METHOD_CONFIGS[row](entropy_coef=coefficient, max_completion_length=12, bf16=False, use_cpu=True)
        groups = batch(policy, settings())
        Updater(policy, METHODS[row], config).gradient(groups, 1.0)
        result.append(gradients(policy.model))
    policy.model.zero_grad()
    entropies = [
        -(x.softmax(-1) * x.log_softmax(-1)).sum(-1) for group in groups for x in logits_of(policy.model, group, config)
    ]
    (-0.3 * torch.cat(entropies).mean()).backward()
    bonus = gradients(policy.model)
    assert_close({name: result[1][name] - result[0][name] for name in bonus}, bonus, 1e-4)
