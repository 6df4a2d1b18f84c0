"""The table of `loss_type`: the surrogate objective of a token, and the weight of a completion's tokens.

A new loss variant is a line of this table, with its functions in this file unless another file of `formulas` has them,
and its name in the field `loss_type` of config/grpo.py. A setting of its own is a field there and in `LossSettings`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from cohort.formulas import coefficient, covariance
from cohort.formulas.aggregation import Denominators, bnpo, dapo, dr_grpo, grpo, luspo
from cohort.formulas.coefficient import Gamma, Surrogate
from cohort.formulas.ratios import EACH_TOKEN, Level


class Tokens(NamedTuple):
    """What a surrogate objective is computed from. Tensors are [N]."""

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    level: Level = EACH_TOKEN
    lengths: list[int] | None = None
    """Tokens of each completion, where the tokens are whole completions."""
    selected: Tensor | None = None
    """1 for the tokens that the covariance chose in the whole step, else 0."""
    sampler_weights: Tensor | None = None
    """The correction for another sampler, where the loss type takes it into its own weight."""


class LossSettings(Protocol):
    """The settings that loss types read; GRPOConfig has them."""

    @property
    def epsilon(self) -> float: ...
    @property
    def clip_high(self) -> float: ...
    @property
    def delta(self) -> float | None: ...
    @property
    def sapo_temperature_pos(self) -> float: ...
    @property
    def sapo_temperature_neg(self) -> float: ...
    @property
    def vespo_k_pos(self) -> float: ...
    @property
    def vespo_lambda_pos(self) -> float: ...
    @property
    def vespo_k_neg(self) -> float: ...
    @property
    def vespo_lambda_neg(self) -> float: ...
    @property
    def clip_cov_ratio(self) -> float: ...
    @property
    def clip_cov_lb(self) -> float: ...
    @property
    def clip_cov_ub(self) -> float: ...
    @property
    def kl_cov_ratio(self) -> float: ...
    @property
    def kl_cov_coef(self) -> float: ...


def clipped(tokens: Tokens, settings: LossSettings) -> Surrogate:
    """min(ratio A, clip(ratio) A)."""
    return coefficient.clipped(*tokens[:3], settings.epsilon, settings.clip_high, settings.delta, level=tokens.level)


def capped(tokens: Tokens, settings: LossSettings) -> Surrogate:
    """sg(min(ratio, 1 + epsilon_high)) A log pi."""
    return coefficient.capped(*tokens[:3], settings.clip_high, level=tokens.level)


def soft_gated(tokens: Tokens, settings: LossSettings) -> Surrogate:
    """sigmoid(tau (ratio - 1)) 4 / tau A."""
    temperatures = settings.sapo_temperature_pos, settings.sapo_temperature_neg
    return coefficient.soft_gated(*tokens[:3], *temperatures, level=tokens.level)


def within_total_variation(tokens: Tokens, settings: LossSettings) -> Surrogate:
    """ratio A, without tokens whose probability moved too far."""
    return coefficient.within_total_variation(*tokens[:3], settings.epsilon, settings.clip_high)


def within_divergence(tokens: Tokens, settings: LossSettings) -> Surrogate:
    """ratio A, without tokens whose binary KL is too large."""
    return coefficient.within_divergence(*tokens[:3], settings.epsilon, settings.clip_high)


def geometric_mean(tokens: Tokens, settings: LossSettings) -> Surrogate:
    """exp(mean of clipped log-ratios) A."""
    assert tokens.lengths is not None
    return coefficient.geometric_mean(*tokens[:3], settings.epsilon, settings.clip_high, tokens.lengths)


def variational(tokens: Tokens, settings: LossSettings) -> Surrogate:
    """sg(e^lambda w^k e^(-lambda w)) A log pi."""
    assert tokens.lengths is not None
    positive = Gamma(settings.vespo_k_pos, settings.vespo_lambda_pos)
    negative = Gamma(settings.vespo_k_neg, settings.vespo_lambda_neg)
    return coefficient.variational(*tokens[:3], positive, negative, tokens.lengths, tokens.sampler_weights)


def dropping(tokens: Tokens, settings: LossSettings) -> Surrogate:
    """min(ratio A, clip(ratio) A), 0 for the selected tokens."""
    assert tokens.selected is not None
    advantages = tokens.advantages * (1 - tokens.selected)
    return clipped(tokens._replace(advantages=advantages), settings)


def penalised(tokens: Tokens, settings: LossSettings) -> Surrogate:
    """ratio A - kl_cov_coef |log ratio| for the selected tokens, ratio A for the others."""
    assert tokens.selected is not None
    return coefficient.penalised(*tokens[:3], tokens.selected, settings.kl_cov_coef, level=tokens.level)


def random_of_high_covariance(covariances_N: Tensor, settings: LossSettings, seed: int) -> Tensor:
    """clip_cov_ratio of the tokens, at random among those whose covariance is between the bounds."""
    bounds = settings.clip_cov_lb, settings.clip_cov_ub
    return covariance.between(covariances_N, settings.clip_cov_ratio, *bounds, seed)


def highest_covariance(covariances_N: Tensor, settings: LossSettings, seed: int) -> Tensor:
    """kl_cov_ratio of the tokens, those of the highest covariance."""
    return covariance.highest(covariances_N, settings.kl_cov_ratio)


class LossType(NamedTuple):
    """LossType(clipped, dapo)"""

    surrogate: Callable[[Tokens, LossSettings], Surrogate]
    """The tokens' log-probabilities and advantages to objective and coefficient."""
    weight: Callable[[Tensor, Denominators], Tensor]
    """Completion lengths [B] and the step's counts -> weight [B] of each token of the completion."""
    needs_completions: bool = False
    """The surrogate reads `lengths`: tokens must be whole completions."""
    corrects_sampler: bool = False
    """The surrogate reads `sampler_weights`; for the others they multiply the advantages."""
    select: Callable[[Tensor, LossSettings, int], Tensor] | None = None
    """Covariances of all tokens of the step, settings and a seed -> `selected`, where the surrogate reads it."""


LOSS_TYPES = {
    "grpo": LossType(clipped, grpo),
    "bnpo": LossType(clipped, bnpo),
    "dr_grpo": LossType(clipped, dr_grpo),
    "dapo": LossType(clipped, dapo),
    "luspo": LossType(clipped, luspo),
    "cispo": LossType(capped, dapo),
    "sapo": LossType(soft_gated, grpo),
    "gmpo": LossType(geometric_mean, grpo, needs_completions=True),
    "vespo": LossType(variational, dapo, needs_completions=True, corrects_sampler=True),
    "dppo_tv": LossType(within_total_variation, dapo),
    "dppo_kl": LossType(within_divergence, dapo),
    "clip_cov": LossType(dropping, dapo, select=random_of_high_covariance),
    "kl_cov": LossType(penalised, dapo, select=highest_covariance),
}
