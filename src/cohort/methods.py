"""The table of methods. All have the gradient of DeepSeekMath Eq. 5,

    grad J = E_{(q,o)~D} [ sum_t w_t * GC_t * grad log pi(o_t | q, o_<t) ],

and differ in where D comes from, what rewards it, how rewards become advantages (credit, once per batch) and how an
advantage becomes GC (coefficient, at each gradient step, where the ratio and its clip live). A method is a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cohort.config import DPOConfig, GRPOConfig, OnlineRFTConfig, PPOConfig, RFTConfig, TrainingConfig
from cohort.credits import (
    Advantages,
    batch_return,
    group_outcome,
    group_process,
    leave_one_out,
    length_weighted,
    passing_draws,
    whitened,
)
from cohort.formulas.aggregation import LOSS_TYPES, Denominators
from cohort.formulas.coefficient import (
    LEVELS,
    SURROGATES,
    Clipped,
    clipped,
    constant,
    truncated_weights,
)
from cohort.formulas.divergence import ESTIMATORS, ratio_weighted
from cohort.formulas.gae import gae, shaped_rewards
from cohort.formulas.preference import preference
from cohort.types import Completion, Group

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
    surrogate = SURROGATES[config.loss_type](
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


def ones(groups: list[Group], config: TrainingConfig) -> Advantages:
    """A_i = 1: every demonstration is to be imitated."""
    return [[torch.ones(len(c.ids)) for c in group.completions] for group in groups]


def is_correct(groups: list[Group], config: TrainingConfig) -> Advantages:
    """A_i = 1 where the reward reaches the threshold, else 0: DeepSeekMath, appendix A.1.2 and A.1.3."""
    assert isinstance(config, RFTConfig | OnlineRFTConfig)
    return [
        [torch.full((len(c.ids),), float(r >= config.reward_threshold)) for r, c in _rewarded(group)]
        for group in groups
    ]


def chosen_rejected(groups: list[Group], config: TrainingConfig) -> Advantages:
    """A = 1 for the first completion of each pair, the chosen one, and -1 for the second."""
    return [
        [torch.full((len(c.ids),), sign) for sign, c in zip((1.0, -1.0), group.completions, strict=True)]
        for group in groups
    ]


def estimated(groups: list[Group], config: TrainingConfig) -> Advantages:
    """GAE on the critic's values, before whitening. Added to the values they are the critic's targets."""
    assert isinstance(config, PPOConfig)
    found = []
    for group in groups:
        assert group.values is not None
        reference: Sequence[Tensor | None] = group.reference_logprobs or [None] * len(group.completions)
        rewards = [
            shaped_rewards(reward, completion.logprobs, logprobs, config.kl_coef)
            for (reward, completion), logprobs in zip(_rewarded(group), reference, strict=True)
        ]
        found.append([gae(r, v, config.gamma, config.lam) for r, v in zip(rewards, group.values, strict=True)])
    return found


def gae_whitened(groups: list[Group], config: TrainingConfig) -> Advantages:
    """GAE on the critic's values, whitened over the tokens of the batch that carry loss."""
    assert isinstance(config, PPOConfig)
    return whitened(estimated(groups, config), groups, config.mask_truncated_completions)


def _rewarded(group: Group) -> list[tuple[float, Completion]]:
    return list(zip(group.rewards, group.completions, strict=True))


def chosen_loss_type(lengths_B: Tensor, denominators: Denominators, config: TrainingConfig) -> Tensor:
    """w of each completion's tokens by `loss_type`; "grpo" is DeepSeekMath Eq. 3's 1/|o|, then the mean."""
    assert isinstance(config, GRPOConfig)
    return LOSS_TYPES[config.loss_type](lengths_B, denominators)


def sequence_mean(lengths_B: Tensor, denominators: Denominators, config: TrainingConfig) -> Tensor:
    """w = 1 / (|o| * sequences)."""
    return LOSS_TYPES["grpo"](lengths_B, denominators)


def pair_mean(lengths_B: Tensor, denominators: Denominators, config: TrainingConfig) -> Tensor:
    """w = 1 / pairs: a pair's objective is one number, whatever its completions' lengths."""
    return torch.full((len(lengths_B),), 2 / denominators.sequences)


@dataclass(frozen=True)
class Method:
    """One row. Method("grpo", "policy", group_outcome, clip_with_kl, chosen_loss_type)"""

    name: str
    source: Literal["demonstrations", "start", "preferences", "policy"]
    """Where completions come from: the dataset's own; the starting model's samples, once; pairs of the dataset or of
    the starting model's samples; the current policy's samples."""
    credit: Callable[[list[Group], TrainingConfig], Advantages]
    """Rewarded groups -> advantages, once per batch."""
    coefficient: Callable[[Tokens, TrainingConfig], Terms]
    """Runs at every gradient step."""
    weight: Callable[[Tensor, Denominators, TrainingConfig], Tensor]
    """Completion lengths [B] -> weight [B] of each token of that completion."""
    sees: Callable[[TrainingConfig], Unit] = each_token
    """What the coefficient must see at once: single tokens in any cut; or, with every log-probability of a
    micro-batch before it answers, whole completions, or whole groups."""
    reward: str = "outcome"
    """What is rewarded, in words, for the table that people read."""
    critic: bool = False
    """Whether a critic learns beside the policy and gives `credit` its values."""


WITH_KL = "outcome, token KL"

METHODS = {
    row.name: row
    for row in (
        Method("sft", "demonstrations", ones, imitate, sequence_mean, reward="none"),
        Method("rft", "start", is_correct, imitate, sequence_mean, reward="rule"),
        Method("online_rft", "policy", is_correct, imitate, sequence_mean, reward="rule"),
        Method("dpo", "preferences", chosen_rejected, prefer, pair_mean, sees=whole_groups, reward="preference"),
        Method("ppo", "policy", gae_whitened, clip, sequence_mean, reward=WITH_KL, critic=True),
        Method("grpo", "policy", group_outcome, clip_with_kl, chosen_loss_type, sees=by_ratio),
        Method(
            "grpo_process", "policy", group_process, clip_with_kl, chosen_loss_type, sees=by_ratio, reward="each step"
        ),
        Method("rloo", "policy", leave_one_out, clip_with_kl, chosen_loss_type, sees=by_ratio),
        Method("opo", "policy", length_weighted, clip_with_kl, chosen_loss_type, sees=by_ratio),
        Method("pass_at_k", "policy", passing_draws, clip_with_kl, chosen_loss_type, sees=by_ratio),
        Method("reinforce++", "policy", batch_return, clip_only, chosen_loss_type, sees=by_ratio, reward=WITH_KL),
    )
}
