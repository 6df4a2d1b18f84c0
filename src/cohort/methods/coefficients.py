"""The coefficient functions of the rows: d objective / d logprob of each token, called at every gradient step.

Each takes the configuration class of the rows that name it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cohort.config import DPOConfig, GRPOConfig, PPOConfig, SFTConfig, TrainingConfig
from cohort.formulas.coefficient import Surrogate, clipped, constant, self_weighted
from cohort.formulas.covariance import covariances
from cohort.formulas.divergence import ESTIMATORS, ratio_weighted
from cohort.formulas.loss_types import LOSS_TYPES, Tokens
from cohort.formulas.preference import OF_STEP, Settings, certainties, preference, score_of, weighted
from cohort.formulas.ratios import LEVELS, SAMPLER_WEIGHTS, near_enough, sampler_weights

Unit = Literal["token", "completion", "group", "step"]


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
    selected: Tensor | None = None
    """1 for the tokens that the row's `selects` chose among all of the step, else 0; None: it chooses none."""
    collisions: Tensor | None = None
    """log sum_v pi(v)^2 of each token's distribution, where the coefficient sees whole groups and asks for them."""

    def cut(self, span: slice) -> TokenBatch:
        """Some of the tokens, without lengths."""
        reference, sampler = self.reference_logprobs, self.sampler_logprobs
        return TokenBatch(
            logprobs=self.logprobs[span],
            advantages=self.advantages[span],
            old_logprobs=None if self.old_logprobs is None else self.old_logprobs[span],
            reference_logprobs=None if reference is None else reference[span],
            sampler_logprobs=None if sampler is None else sampler[span],
            selected=None if self.selected is None else self.selected[span],
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


def imitate_demonstrations(tokens: TokenBatch, config: SFTConfig) -> Objective:
    """J = A * log pi, or what `loss_type` selects."""
    value, coefficient = IMITATIONS[config.loss_type](tokens.logprobs, tokens.advantages)
    return Objective(value, coefficient, {})


IMITATIONS = {"nll": constant, "chunked_nll": constant, "dft": self_weighted}
"""`loss_type` of demonstrations -> function."""


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
        level = LEVELS[config.importance_sampling_level](tokens.lengths)
        estimate = ratio_weighted(estimate, torch.exp(level.forward(tokens.logprobs - _old(tokens))), level)
    return surrogate._replace(
        value=surrogate.value - config.beta * estimate.value_N,
        coefficient=surrogate.coefficient - config.beta * estimate.slope_N,
    )


def clip_only(tokens: TokenBatch, config: GRPOConfig) -> Objective:
    """J = min(ratio A, clip(ratio) A), for rows whose KL is in the reward.

    The corrections for old samples and another sampler multiply the advantage, because every surrogate is proportional
    to it, unless the loss type takes the sampler's into a weight of its own.
    """
    loss_type = LOSS_TYPES[config.loss_type]
    old = _old(tokens)
    advantages, weights, logged = tokens.advantages, None, {}
    if config.off_policy_mask_threshold is not None:
        assert tokens.lengths is not None
        sampler = old if tokens.sampler_logprobs is None else tokens.sampler_logprobs
        threshold = config.off_policy_mask_threshold
        trusted = near_enough(tokens.logprobs, sampler, advantages, threshold, tokens.lengths)
        advantages, logged = advantages * trusted, {"sampling/off_policy_masked": 1 - trusted}
    if tokens.sampler_logprobs is not None:
        mode = SAMPLER_WEIGHTS[config.vllm_importance_sampling_mode]
        bounds = config.vllm_importance_sampling_clip_min, config.vllm_importance_sampling_clip_max
        weights = sampler_weights(old, tokens.sampler_logprobs, mode, *bounds, tokens.lengths)
        advantages = advantages if loss_type.corrects_sampler else advantages * weights
        logged["sampling/importance_sampling_ratio/mean"] = weights
        logged["sampling/mismatch_kl"] = tokens.sampler_logprobs - old
    level = LEVELS[config.importance_sampling_level](tokens.lengths)
    surrogate = loss_type.surrogate(
        Tokens(tokens.logprobs, old, advantages, level, tokens.lengths, tokens.selected, weights), config
    )
    return Objective(surrogate.objective_N, surrogate.coefficient_N, {**_ratio_log(surrogate), **logged})


def _old(tokens: TokenBatch) -> Tensor:
    return tokens.logprobs if tokens.old_logprobs is None else tokens.old_logprobs


def _ratio_log(surrogate: Surrogate) -> dict[str, Tensor]:
    return {
        "ratio": surrogate.ratio_N,
        "clip_ratio/low_mean": surrogate.low_N.float(),
        "clip_ratio/high_mean": surrogate.high_N.float(),
        "clip_ratio/region_mean": (surrogate.low_N | surrogate.high_N).float(),
    }


def clip(tokens: TokenBatch, config: PPOConfig) -> Objective:
    """J = min(ratio A, clip(ratio) A): PPO, arXiv 1707.06347, Eq. 7. Its KL is in the reward."""
    old = _old(tokens)
    high = config.cliprange if config.cliprange_high is None else config.cliprange_high
    surrogate = clipped(tokens.logprobs, old, tokens.advantages, config.cliprange, high)
    return Objective(surrogate.objective_N, surrogate.coefficient_N, _ratio_log(surrogate))


def prefer(tokens: TokenBatch, config: DPOConfig) -> Objective:
    """J = log sigmoid(margin), counted once for each pair: GC = +-beta sigmoid(-margin), chosen +, rejected - (DPO,
    arXiv 2305.18290, Eq. 7).

    `loss_type` selects other losses of the pair. A pair's J is spread evenly over its tokens. With `ld_alpha`, tokens
    behind the shorter completion's length count by it, in policy and reference (LD-DPO, arXiv 2409.06411)."""
    assert tokens.lengths is not None and tokens.reference_logprobs is not None
    lengths_B = torch.tensor(tokens.lengths, device=tokens.logprobs.device)
    completion_N = torch.arange(len(lengths_B), device=lengths_B.device).repeat_interleave(lengths_B)
    lengths_P2 = lengths_B.view(-1, 2)
    share_N = None if config.ld_alpha is None else _shares(lengths_P2, completion_N, config.ld_alpha)
    sums_P2, reference_P2 = (
        torch.stack(
            [part.sum() for part in (each if share_N is None else each * share_N).split_with_sizes(tokens.lengths)]
        ).view(-1, 2)
        for each in (tokens.logprobs, tokens.reference_logprobs)
    )
    score = score_of(config.f_divergence_type, config.f_alpha_divergence_coef)
    settings = Settings(config.beta, config.label_smoothing, config.discopop_tau, score)
    weights_P = None
    if tokens.collisions is not None:
        weights_P = certainties(tokens.logprobs, tokens.collisions, tokens.lengths).view(-1, 2).prod(1)
    pairs = preference(sums_P2, reference_P2, lengths_P2, settings, weighted(config.losses), weights_P)
    margins_P = pairs.chosen_P - pairs.rejected_P
    logged = {
        "rewards/chosen": pairs.chosen_P,
        "rewards/rejected": pairs.rejected_P,
        "rewards/margins": margins_P,
        "rewards/accuracies": (margins_P > 0).float(),
        "logps/chosen": sums_P2[:, 0],
        "logps/rejected": sums_P2[:, 1],
    }
    slopes_N = pairs.strengths_P2.flatten()[completion_N] * tokens.advantages
    return Objective(
        (pairs.objective_P / lengths_P2.sum(1))[completion_N // 2],
        slopes_N if share_N is None else slopes_N * share_N,
        logged,
    )


def _shares(lengths_P2: Tensor, completion_N: Tensor, alpha: float) -> Tensor:
    """[N], 1 for the tokens up to the length of the pair's shorter completion, alpha behind it."""
    lengths_B = lengths_P2.flatten()
    starts_B = lengths_B.cumsum(0) - lengths_B
    position_N = torch.arange(len(completion_N), device=completion_N.device) - starts_B[completion_N]
    return torch.where(position_N < lengths_P2.amin(1)[completion_N // 2], 1.0, alpha)


def each_token(config: TrainingConfig) -> Unit:
    """Any run of tokens."""
    return "token"


def by_ratio(config: GRPOConfig) -> Unit:
    """Whole completions where a ratio, a weight or a mask is one for each, else any run of tokens."""
    whole = (
        config.importance_sampling_level != "token"
        or LOSS_TYPES[config.loss_type].needs_completions
        or config.off_policy_mask_threshold is not None
        or (
            config.vllm_importance_sampling_correction
            and SAMPLER_WEIGHTS[config.vllm_importance_sampling_mode].of_completion
        )
    )
    return "completion" if whole else "token"


Selection = Callable[[Tensor, Tensor, int], Tensor]
"""Log-probabilities and advantages [N] of all tokens of a step, and a seed -> 1 for the chosen tokens, else 0, [N]."""


def no_selection(config: TrainingConfig) -> Selection | None:
    """No token is chosen."""
    return None


def by_covariance(config: GRPOConfig) -> Selection | None:
    """The tokens that `loss_type` chooses by the covariance of log-probability and advantage; None for most."""
    select = LOSS_TYPES[config.loss_type].select
    if select is None:
        return None
    return lambda logprobs_N, advantages_N, seed: select(covariances(logprobs_N, advantages_N), config, seed)


def whole_groups(config: TrainingConfig) -> Unit:
    """Whole groups, such as pairs."""
    return "group"


def by_pair_loss(config: DPOConfig) -> Unit:
    """Whole pairs, or all of the step where a loss sorts them."""
    return "step" if any(name in OF_STEP for name, _ in config.losses) else "group"
