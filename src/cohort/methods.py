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
from cohort.formulas.aggregation import LOSS_TYPES, Denominators
from cohort.formulas.coefficient import Clipped, clipped, constant
from cohort.formulas.credit import SCALES
from cohort.formulas.divergence import ESTIMATORS, ratio_weighted
from cohort.formulas.gae import gae, shaped_rewards, whiten
from cohort.formulas.preference import preference
from cohort.types import Completion, Group

Unit = Literal["token", "completion", "group"]
Advantages = list[list[Tensor]]
"""By group and completion, float32 [n_i], one for each token."""


class Tokens(NamedTuple):
    """Some completion tokens at one gradient step, each tensor [n]. `old_logprobs` None: the policy has not changed
    since it sampled them; `reference_logprobs` None: no KL term. `lengths` cuts them into completions, groups in
    order; None in a row that looks at single tokens, which come in any cut."""

    logprobs: Tensor
    advantages: Tensor
    old_logprobs: Tensor | None
    reference_logprobs: Tensor | None
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
    """J = min(ratio A, clip(ratio) A) - beta KL: DeepSeekMath Eq. 3, with its KL estimator Eq. 4 in the loss."""
    assert isinstance(config, GRPOConfig)
    old = tokens.logprobs if tokens.old_logprobs is None else tokens.old_logprobs
    high = config.epsilon if config.epsilon_high is None else config.epsilon_high
    surrogate = clipped(tokens.logprobs, old, tokens.advantages, config.epsilon, high)
    logged = _ratio_log(surrogate)
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


def whole_groups(config: TrainingConfig) -> Unit:
    return "group"


def group_outcome(groups: list[Group], config: TrainingConfig) -> Advantages:
    """A_i = (r_i - mean r) / (std r + eps), the same for every token: DeepSeekMath section 4.1.2."""
    assert isinstance(config, GRPOConfig)
    return _spread(SCALES[config.scale_rewards](torch.tensor([group.rewards for group in groups])), groups)


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
    advantages = [a for row in estimated(groups, config) for a in row]
    masked = [config.mask_truncated_completions and c.truncated for group in groups for c in group.completions]
    active = [a for a, out in zip(advantages, masked, strict=True) if not out]
    white = iter(whiten(torch.cat(active)).split_with_sizes([len(a) for a in active]) if active else ())
    flat = iter([torch.zeros_like(a) if out else next(white) for a, out in zip(advantages, masked, strict=True)])
    return [[next(flat) for _ in group.completions] for group in groups]


def _rewarded(group: Group) -> list[tuple[float, Completion]]:
    return list(zip(group.rewards, group.completions, strict=True))


def _spread(advantages_PG: Tensor, groups: list[Group]) -> Advantages:
    """One advantage for each completion to the same one for each of its tokens."""
    return [
        [a.expand(len(c.ids)) for a, c in zip(row, group.completions, strict=True)]
        for row, group in zip(advantages_PG, groups, strict=True)
    ]


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
    critic: bool = False
    """Whether a critic learns beside the policy and gives `credit` its values."""


METHODS = {
    row.name: row
    for row in (
        Method("sft", "demonstrations", ones, imitate, sequence_mean),
        Method("rft", "start", is_correct, imitate, sequence_mean),
        Method("online_rft", "policy", is_correct, imitate, sequence_mean),
        Method("dpo", "preferences", chosen_rejected, prefer, pair_mean, sees=whole_groups),
        Method("ppo", "policy", gae_whitened, clip, sequence_mean, critic=True),
        Method("grpo", "policy", group_outcome, clip_with_kl, chosen_loss_type),
    )
}
