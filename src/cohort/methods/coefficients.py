"""The coefficient functions of the rows: d objective / d logprob of each token, called at every gradient step.

Each takes the configuration class of the rows that name it.
"""

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


class TokenBatch(NamedTuple):
    """Completion tokens at one gradient step. Each tensor is [N], groups in order, completions in order within a group.

    `lengths` is None in a row whose coefficient sees single tokens: then a call may hold any run of tokens.
    """

    logprobs: Tensor
    """Of the policy, at the training temperature."""
    advantages: Tensor
    old_logprobs: Tensor | None
    """None: the policy has not changed since it sampled these tokens."""
    reference_logprobs: Tensor | None
    """None: there is no reference, so no KL term."""
    sampler_logprobs: Tensor | None = None
    """None: the difference between sampler and policy is not corrected."""
    lengths: list[int] | None = None
    """Tokens of each completion."""

    def cut(self, span: slice) -> TokenBatch:
        """Some of the tokens, without lengths."""
        reference, sampler = self.reference_logprobs, self.sampler_logprobs
        return TokenBatch(
            logprobs=self.logprobs[span],
            advantages=self.advantages[span],
            old_logprobs=None if self.old_logprobs is None else self.old_logprobs[span],
            reference_logprobs=None if reference is None else reference[span],
            sampler_logprobs=None if sampler is None else sampler[span],
        )


class Objective(NamedTuple):
    """What a coefficient function returns."""

    value: Tensor
    """[N], the objective J of each token."""
    coefficient: Tensor
    """[N], dJ / d logprob of each token."""
    logged: dict[str, Tensor]
    """Metric -> values, of any length, whose mean over the step is logged."""


def imitate(tokens: TokenBatch, config: TrainingConfig) -> Objective:
    """J = A * log pi: GC = A (DeepSeekMath, appendix A.1)."""
    value, coefficient = constant(tokens.logprobs, tokens.advantages)
    return Objective(value, coefficient, {})


def clip_with_kl(tokens: TokenBatch, config: GRPOConfig) -> Objective:
    """J = min(ratio A, clip(ratio) A) - beta KL: DeepSeekMath Eq. 3, with its KL estimator Eq. 4 in the loss.

    `loss_type` selects another surrogate; `importance_sampling_level: sequence` takes the ratio of whole completions.
    """
    surrogate = clip_only(tokens, config)
    if tokens.reference_logprobs is None:
        return surrogate
    estimate = ESTIMATORS[config.kl_estimator](tokens.logprobs, tokens.reference_logprobs)
    surrogate.logged["kl"] = estimate.value_N
    if config.use_bias_correction_kl:
        average = LEVELS[config.importance_sampling_level](tokens.lengths)
        estimate = ratio_weighted(estimate, surrogate.logged["ratio"], average)
    return surrogate._replace(
        value=surrogate.value - config.beta * estimate.value_N,
        coefficient=surrogate.coefficient - config.beta * estimate.slope_N,
    )


def clip_only(tokens: TokenBatch, config: GRPOConfig) -> Objective:
    """J = min(ratio A, clip(ratio) A), for rows whose KL is in the reward.

    The correction for the sampler multiplies the advantage, because every surrogate is proportional to it.
    """
    old = tokens.logprobs if tokens.old_logprobs is None else tokens.old_logprobs
    high = config.epsilon if config.epsilon_high is None else config.epsilon_high
    average = LEVELS[config.importance_sampling_level](tokens.lengths)
    advantages, correction_log = tokens.advantages, {}
    if tokens.sampler_logprobs is not None:
        weights = truncated_weights(old, tokens.sampler_logprobs, config.vllm_importance_sampling_clip_max)
        advantages, correction_log = advantages * weights, {"sampling/importance_sampling_ratio/mean": weights}
    surrogate = LOSS_TYPES[config.loss_type].surrogate(
        tokens.logprobs, old, advantages, config.epsilon, high, config.delta, average
    )
    return Objective(surrogate.objective_N, surrogate.coefficient_N, {**_ratio_log(surrogate), **correction_log})


def _ratio_log(surrogate: Clipped) -> dict[str, Tensor]:
    return {
        "ratio": surrogate.ratio_N,
        "clip_ratio/low_mean": surrogate.low_N.float(),
        "clip_ratio/high_mean": surrogate.high_N.float(),
        "clip_ratio/region_mean": (surrogate.low_N | surrogate.high_N).float(),
    }


def clip(tokens: TokenBatch, config: PPOConfig) -> Objective:
    """J = min(ratio A, clip(ratio) A): PPO, arXiv 1707.06347, Eq. 7. Its KL is in the reward."""
    old = tokens.logprobs if tokens.old_logprobs is None else tokens.old_logprobs
    surrogate = clipped(tokens.logprobs, old, tokens.advantages, config.cliprange, config.cliprange)
    return Objective(surrogate.objective_N, surrogate.coefficient_N, _ratio_log(surrogate))


def prefer(tokens: TokenBatch, config: DPOConfig) -> Objective:
    """J = log sigmoid(margin), counted once for each pair: GC = +-beta sigmoid(-margin), chosen +, rejected - (DPO,
    arXiv 2305.18290, Eq. 7). A pair's J is spread evenly over its tokens."""
    assert tokens.lengths is not None and tokens.reference_logprobs is not None
    lengths_B = torch.tensor(tokens.lengths, device=tokens.logprobs.device)
    pair_N = torch.arange(len(lengths_B), device=lengths_B.device).repeat_interleave(lengths_B) // 2
    sums_P2, reference_P2 = (
        torch.stack([part.sum() for part in logprobs.split_with_sizes(tokens.lengths)]).view(-1, 2)
        for logprobs in (tokens.logprobs, tokens.reference_logprobs)
    )
    pairs = preference(sums_P2, reference_P2, config.beta, config.label_smoothing)
    margins_P = pairs.chosen_P - pairs.rejected_P
    logged = {
        "rewards/chosen": pairs.chosen_P,
        "rewards/rejected": pairs.rejected_P,
        "rewards/margins": margins_P,
        "rewards/accuracies": (margins_P > 0).float(),
        "logps/chosen": sums_P2[:, 0],
        "logps/rejected": sums_P2[:, 1],
    }
    pair_tokens_P = lengths_B.view(-1, 2).sum(1)
    return Objective(
        (pairs.objective_P / pair_tokens_P)[pair_N], pairs.coefficient_P[pair_N] * tokens.advantages, logged
    )


def each_token(config: TrainingConfig) -> Unit:
    """Any run of tokens."""
    return "token"


def by_ratio(config: GRPOConfig) -> Unit:
    """Whole completions where `importance_sampling_level` takes one ratio for each, else any run of tokens."""
    units: dict[str, Unit] = {"token": "token", "sequence": "completion"}
    return units[config.importance_sampling_level]


def whole_groups(config: TrainingConfig) -> Unit:
    """Whole groups, such as pairs."""
    return "group"
