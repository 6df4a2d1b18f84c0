"""Coefficients of the rows: d objective / d logprob of each token, at every gradient step."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cohort.config import DPOConfig, GRPOConfig, PPOConfig, TrainingConfig
from cohort.formulas.coefficient import LEVELS, Clipped, clipped, constant, truncated_weights
from cohort.formulas.divergence import ESTIMATORS, ratio_weighted
from cohort.formulas.loss_types import LOSS_TYPES
from cohort.formulas.preference import preference

Unit = Literal["token", "completion", "group"]


class Tokens(NamedTuple):
    """Some completion tokens at one gradient step, each tensor [n]. `old_logprobs` None: the policy has not changed
    since it sampled them; `reference_logprobs` None: no KL term; `sampler_logprobs` None: they need no correction.
    `lengths` cuts them into completions, groups in order; None in a row that looks at single tokens, which come in
    any cut."""

    logprobs: Tensor
    advantages: Tensor
    old_logprobs: Tensor | None
    reference_logprobs: Tensor | None
    sampler_logprobs: Tensor | None = None
    lengths: list[int] | None = None


class Terms(NamedTuple):
    """What a coefficient gives back: the objective's value and its derivative by the log-probability, both [n], and
    quantities to average for the log, of any length each."""

    objective: Tensor
    coefficient: Tensor
    logged: dict[str, Tensor]


def imitate(tokens: Tokens, config: TrainingConfig) -> Terms:
    """J = A * log pi: GC = A."""
    objective, coefficient = constant(tokens.logprobs, tokens.advantages)
    return Terms(objective, coefficient, {})


def clip_with_kl(tokens: Tokens, config: TrainingConfig) -> Terms:
    """J = min(ratio A, clip(ratio) A) - beta KL: DeepSeekMath Eq. 3, with its KL estimator Eq. 4 in the loss.

    `loss_type` and `importance_sampling_level` put another surrogate, and the ratio of whole completions, in its place.
    """
    assert isinstance(config, GRPOConfig)
    terms = clip_only(tokens, config)
    if tokens.reference_logprobs is None:
        return terms
    estimate = ESTIMATORS[config.kl_estimator](tokens.logprobs, tokens.reference_logprobs)
    terms.logged["kl"] = estimate.value_N
    if config.use_bias_correction_kl:
        average = LEVELS[config.importance_sampling_level](tokens.lengths)
        estimate = ratio_weighted(estimate, terms.logged["ratio"], average)
    return terms._replace(
        objective=terms.objective - config.beta * estimate.value_N,
        coefficient=terms.coefficient - config.beta * estimate.slope_N,
    )


def clip_only(tokens: Tokens, config: TrainingConfig) -> Terms:
    """J = min(ratio A, clip(ratio) A), for rows whose KL is in the reward.

    A sampler's other numbers weigh the advantage: surrogates are proportional to it.
    """
    assert isinstance(config, GRPOConfig)
    old = tokens.logprobs if tokens.old_logprobs is None else tokens.old_logprobs
    high = config.epsilon if config.epsilon_high is None else config.epsilon_high
    average = LEVELS[config.importance_sampling_level](tokens.lengths)
    advantages, corrected = tokens.advantages, {}
    if tokens.sampler_logprobs is not None:
        weights = truncated_weights(old, tokens.sampler_logprobs, config.vllm_importance_sampling_clip_max)
        advantages, corrected = advantages * weights, {"sampling/importance_sampling_ratio/mean": weights}
    surrogate = LOSS_TYPES[config.loss_type].surrogate(
        tokens.logprobs, old, advantages, config.epsilon, high, config.delta, average
    )
    return Terms(surrogate.objective_N, surrogate.coefficient_N, {**_ratio_log(surrogate), **corrected})


def _ratio_log(surrogate: Clipped) -> dict[str, Tensor]:
    return {
        "ratio": surrogate.ratio_N,
        "clip_ratio/low_mean": surrogate.low_N.float(),
        "clip_ratio/high_mean": surrogate.high_N.float(),
        "clip_ratio/region_mean": (surrogate.low_N | surrogate.high_N).float(),
    }


def clip(tokens: Tokens, config: TrainingConfig) -> Terms:
    """J = min(ratio A, clip(ratio) A): PPO, arXiv 1707.06347, Eq. 7. Its KL is in the reward."""
    assert isinstance(config, PPOConfig)
    old = tokens.logprobs if tokens.old_logprobs is None else tokens.old_logprobs
    surrogate = clipped(tokens.logprobs, old, tokens.advantages, config.cliprange, config.cliprange)
    return Terms(surrogate.objective_N, surrogate.coefficient_N, _ratio_log(surrogate))


def prefer(tokens: Tokens, config: TrainingConfig) -> Terms:
    """J = log sigmoid(margin), of each pair once: GC = +-beta sigmoid(-margin), chosen +, rejected -."""
    assert isinstance(config, DPOConfig) and tokens.lengths is not None and tokens.reference_logprobs is not None
    lengths_B = torch.tensor(tokens.lengths, device=tokens.logprobs.device)
    pair_N = torch.arange(len(lengths_B), device=lengths_B.device).repeat_interleave(lengths_B) // 2
    sums_P2, reference_P2 = (
        torch.stack([part.sum() for part in logprobs.split_with_sizes(tokens.lengths)]).view(-1, 2)
        for logprobs in (tokens.logprobs, tokens.reference_logprobs)
    )
    found = preference(sums_P2, reference_P2, config.beta, config.label_smoothing)
    margins = found.chosen_P - found.rejected_P
    logged = {
        "rewards/chosen": found.chosen_P,
        "rewards/rejected": found.rejected_P,
        "rewards/margins": margins,
        "rewards/accuracies": (margins > 0).float(),
        "logps/chosen": sums_P2[:, 0],
        "logps/rejected": sums_P2[:, 1],
    }
    tokens_of_pair_P = lengths_B.view(-1, 2).sum(1)
    return Terms(
        (found.objective_P / tokens_of_pair_P)[pair_N], found.coefficient_P[pair_N] * tokens.advantages, logged
    )


def each_token(config: TrainingConfig) -> Unit:
    return "token"


def by_ratio(config: TrainingConfig) -> Unit:
    """Whole completions where the ratio is theirs, else single tokens."""
    assert isinstance(config, GRPOConfig)
    units: dict[str, Unit] = {"token": "token", "sequence": "completion"}
    return units[config.importance_sampling_level]


def whole_groups(config: TrainingConfig) -> Unit:
    return "group"
