"""The table of methods. All have the gradient of DeepSeekMath Eq. 5,

    grad J = E_{(q,o)~D} [ sum_t w_t * GC_t * grad log pi(o_t | q, o_<t) ],

and differ in where D comes from, what rewards it, how rewards become advantages (credit, once per batch) and how an
advantage becomes GC (coefficient, at each gradient step, where the ratio and its clip live). A method is a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cohort.config import GRPOConfig, TrainingConfig
from cohort.formulas.aggregation import LOSS_TYPES, Denominators
from cohort.formulas.coefficient import clipped, constant
from cohort.formulas.credit import SCALES
from cohort.formulas.divergence import ESTIMATORS, ratio_weighted


class Tokens(NamedTuple):
    """Some completion tokens at one gradient step, each field [n]. `old_logprobs` None: the policy has not changed
    since it sampled them; `reference_logprobs` None: no KL term."""

    logprobs: Tensor
    advantages: Tensor
    old_logprobs: Tensor | None
    reference_logprobs: Tensor | None


class Terms(NamedTuple):
    """What a coefficient gives back, each [n]: the objective's value, its derivative by the log-probability, and
    quantities to average over tokens for the log."""

    objective: Tensor
    coefficient: Tensor
    logged: dict[str, Tensor]


def imitate(tokens: Tokens, config: TrainingConfig) -> Terms:
    """J = A * log pi: GC = A."""
    objective, coefficient = constant(tokens.logprobs, tokens.advantages)
    return Terms(objective, coefficient, {})


def clip_with_kl(tokens: Tokens, config: TrainingConfig) -> Terms:
    """J = min(ratio A, clip(ratio) A) - beta KL: DeepSeekMath Eq. 3, with its KL estimator Eq. 4 in the loss."""
    assert isinstance(config, GRPOConfig)
    old = tokens.logprobs if tokens.old_logprobs is None else tokens.old_logprobs
    high = config.epsilon if config.epsilon_high is None else config.epsilon_high
    surrogate = clipped(tokens.logprobs, old, tokens.advantages, config.epsilon, high)
    logged = {
        "ratio": surrogate.ratio_N,
        "clip_ratio/low_mean": surrogate.low_N.float(),
        "clip_ratio/high_mean": surrogate.high_N.float(),
        "clip_ratio/region_mean": (surrogate.low_N | surrogate.high_N).float(),
    }
    if tokens.reference_logprobs is None:
        return Terms(surrogate.objective_N, surrogate.coefficient_N, logged)
    estimate = ESTIMATORS[config.kl_estimator](tokens.logprobs, tokens.reference_logprobs)
    logged["kl"] = estimate.value_N
    if config.use_bias_correction_kl:
        estimate = ratio_weighted(estimate, surrogate.ratio_N)
    return Terms(
        surrogate.objective_N - config.beta * estimate.value_N,
        surrogate.coefficient_N - config.beta * estimate.slope_N,
        logged,
    )


def group_outcome(rewards_PG: Tensor, config: TrainingConfig) -> Tensor:
    """A_i = (r_i - mean r) / (std r + eps), the same for every token: DeepSeekMath section 4.1.2."""
    assert isinstance(config, GRPOConfig)
    return SCALES[config.scale_rewards](rewards_PG)


def ones(rewards_PG: Tensor, config: TrainingConfig) -> Tensor:
    """A_i = 1: every demonstration is to be imitated."""
    return torch.ones_like(rewards_PG)


def chosen_loss_type(lengths_B: Tensor, denominators: Denominators, config: TrainingConfig) -> Tensor:
    """w of each completion's tokens by `loss_type`; "grpo" is DeepSeekMath Eq. 3's 1/|o|, then the mean."""
    assert isinstance(config, GRPOConfig)
    return LOSS_TYPES[config.loss_type](lengths_B, denominators)


def sequence_mean(lengths_B: Tensor, denominators: Denominators, config: TrainingConfig) -> Tensor:
    """w = 1 / (|o| * sequences)."""
    return LOSS_TYPES["grpo"](lengths_B, denominators)


@dataclass(frozen=True)
class Method:
    """One row. Method("grpo", "policy", group_outcome, clip_with_kl, chosen_loss_type)"""

    name: str
    source: Literal["demonstrations", "policy"]
    """Where completions come from: the dataset's own, or the current policy's samples."""
    credit: Callable[[Tensor, TrainingConfig], Tensor]
    """rewards [P, G] -> advantages [P, G], once per batch."""
    coefficient: Callable[[Tokens, TrainingConfig], Terms]
    """Runs at every gradient step."""
    weight: Callable[[Tensor, Denominators, TrainingConfig], Tensor]
    """Completion lengths [B] -> weight [B] of each token of that completion."""


METHODS = {
    row.name: row
    for row in (
        Method("sft", "demonstrations", ones, imitate, sequence_mean),
        Method("grpo", "policy", group_outcome, clip_with_kl, chosen_loss_type),
    )
}
