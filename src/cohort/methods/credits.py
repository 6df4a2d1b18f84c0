"""The credit functions of the rows: rewarded groups -> advantages, called once per batch.

Each takes the configuration class of the rows that name it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cohort.config import (
    DistillConfig,
    GreedyBaselineConfig,
    GRPOConfig,
    OnlineRFTConfig,
    PassAtKConfig,
    PPOConfig,
    RFTConfig,
    RLOOConfig,
    TrainingConfig,
)
from cohort.formulas import credit
from cohort.formulas.gae import gae, shaped_rewards, whiten
from cohort.formulas.spread import EPS
from cohort.types import Group, UserError

Advantages = list[list[Tensor]]
"""By group and completion: float32 [n_i], one advantage for each token."""


def group_outcome(groups: list[Group], config: GRPOConfig) -> Advantages:
    """A_i = (r_i - mean r) / (std r + eps), the same for every token: DeepSeekMath section 4.1.2."""
    return to_tokens(AGGREGATIONS[config.multi_objective_aggregation](groups, config), groups)


def _summed(groups: list[Group], config: GRPOConfig) -> Tensor:
    """Advantages of the weighted sum of the rewards. -> [P, G]."""
    return credit.SCALES[config.scale_rewards](_rewards_PG(groups))


def _decoupled(groups: list[Group], config: GRPOConfig) -> Tensor:
    """Each reward normalised over its group, their weighted sum over the batch: GDPO, arXiv 2601.05242. -> [P, G]."""
    names = list(groups[0].components)
    scores_KPG = torch.tensor(
        [[[torch.nan if x is None else x for x in group.components[name]] for group in groups] for name in names]
    )
    return credit.decoupled(scores_KPG, torch.tensor(config.reward_weights or [1.0] * len(names)))


AGGREGATIONS = {"sum_then_normalize": _summed, "normalize_then_sum": _decoupled}
"""`multi_objective_aggregation` -> function."""


def group_process(groups: list[Group], config: GRPOConfig) -> Advantages:
    """A_t = sum of the step rewards that follow, normalised over all steps of the group: DeepSeekMath section 4.1.3."""
    steps_of_groups = [group.steps or [] for group in groups]
    rewards = [torch.tensor([r for steps in of_group for r in steps.rewards]) for of_group in steps_of_groups]
    judged = [rewards_S for rewards_S in rewards if len(rewards_S) > 1]
    scaled = iter(credit.STEP_SCALES[config.scale_rewards](judged) if judged else ())
    # Of a group in which no two steps have a reward, nothing is better than anything else.
    normalised = [next(scaled) if len(rewards_S) > 1 else torch.zeros_like(rewards_S) for rewards_S in rewards]
    advantages = []
    for group, of_group, rewards_S in zip(groups, steps_of_groups, normalised, strict=True):
        parts = rewards_S.split_with_sizes([len(steps.rewards) for steps in of_group])
        advantages.append(
            [
                credit.following_steps(part_S, torch.tensor(steps.ends, dtype=torch.long), len(completion.ids))
                for part_S, steps, completion in zip(parts, of_group, group.completions, strict=True)
            ]
        )
    return advantages


def leave_one_out(groups: list[Group], config: RLOOConfig) -> Advantages:
    """A_i = R_i - mean of the others, R = r - beta * sum over tokens of log(pi_old / ref): RLOO, arXiv 2402.14740."""
    kl_PG = torch.tensor([[_kl_of(group, i) for i in range(len(group.completions))] for group in groups])
    advantages_PG = credit.leave_one_out(_rewards_PG(groups) - config.beta * kl_PG)
    if config.normalize_advantages and advantages_PG.numel() > 1:
        advantages_PG = (advantages_PG - advantages_PG.mean()) / (advantages_PG.std() + EPS)
    return to_tokens(advantages_PG, groups)


def _kl_of(group: Group, i: int) -> float:
    """log(pi_old / ref) of a completion; 0 without a reference."""
    if group.reference_logprobs is None:
        return 0.0
    return float((group.completions[i].logprobs - group.reference_logprobs[i]).sum())


def length_weighted(groups: list[Group], config: TrainingConfig) -> Advantages:
    """A_i = r_i - the group's mean weighted by length: OPO, arXiv 2505.23585."""
    lengths_PG = torch.tensor([[float(len(c.ids)) for c in group.completions] for group in groups])
    return to_tokens(credit.optimal_baseline(_rewards_PG(groups), lengths_PG), groups)


def relative_to_mean(groups: list[Group], config: TrainingConfig) -> Advantages:
    """A_i = (r_i - mean r) / mean r: MaxRL, arXiv 2602.02710."""
    for group in groups:
        if min(group.rewards) < max(group.rewards) and sum(group.rewards) <= 0:
            raise UserError(
                f"{group.row.source}: its rewards, {[round(r, 4) for r in group.rewards]}, have a mean that is not "
                "positive, and maxrl divides by it: use rewards of 0 and above"
            )
    return to_tokens(credit.relative_to_mean(_rewards_PG(groups)), groups)


def uneven_rescaled(groups: list[Group], config: TrainingConfig) -> Advantages:
    """A_i = (r_i - mean r) B / B', B' the completions of groups whose rewards differ: GPG, arXiv 2504.02546."""
    return to_tokens(credit.rescaled_by_uneven(_rewards_PG(groups)), groups)


def above_greedy(groups: list[Group], config: GreedyBaselineConfig) -> Advantages:
    """A_i = r_i - the reward of the prompt's greedy completion: ReMax, arXiv 2310.10505."""
    rewards_PG = _rewards_PG(groups)
    greedy_P = torch.tensor([group.greedy_reward for group in groups], dtype=rewards_PG.dtype)
    return to_tokens(rewards_PG - greedy_P[:, None], groups)


def baseline_whitened(groups: list[Group], config: GRPOConfig) -> Advantages:
    """r_i - mean r, whitened over the batch's tokens: REINFORCE++-baseline, arXiv 2501.03262."""
    return whitened(to_tokens(credit.unscaled(_rewards_PG(groups)), groups), groups, config.mask_truncated_completions)


def passing_draws(groups: list[Group], config: PassAtKConfig) -> Advantages:
    """Advantages of the reward "one of k completions drawn from the group is correct", in closed form: Pass@k training,
    arXiv 2508.10751."""
    return to_tokens(credit.pass_at_k(_rewards_PG(groups) >= config.reward_threshold, config.pass_k), groups)


def batch_return(groups: list[Group], config: GRPOConfig) -> Advantages:
    """A_t = r - beta * sum over i >= t of log(pi_old / ref)_i, whitened over the batch's tokens: REINFORCE++, arXiv
    2501.03262."""
    returns = [
        [
            credit.rewards_to_go(
                shaped_rewards(
                    group.rewards[i],
                    completion.logprobs,
                    None if group.reference_logprobs is None else group.reference_logprobs[i],
                    config.beta,
                )
            )
            for i, completion in enumerate(group.completions)
        ]
        for group in groups
    ]
    return whitened(returns, groups, config.mask_truncated_completions)


def whitened(advantages: Advantages, groups: list[Group], mask_truncated: bool) -> Advantages:
    """Mean 0 and standard deviation 1 over the tokens of the batch that carry loss; the others get 0."""
    masked = [mask_truncated and c.truncated for group in groups for c in group.completions]
    flat = [a for of_group in advantages for a in of_group]
    active = [a for a, out in zip(flat, masked, strict=True) if not out]
    white = iter(whiten(torch.cat(active)).split_with_sizes([len(a) for a in active]) if active else ())
    results = iter([torch.zeros_like(a) if out else next(white) for a, out in zip(flat, masked, strict=True)])
    return [[next(results) for _ in group.completions] for group in groups]


def to_tokens(advantages_PG: Tensor, groups: list[Group]) -> Advantages:
    """Give each token the advantage of its completion. [P, G] -> one tensor [n_i] for each completion."""
    return [
        [a.expand(len(c.ids)) for a, c in zip(row, group.completions, strict=True)]
        for row, group in zip(advantages_PG, groups, strict=True)
    ]


def _rewards_PG(groups: list[Group]) -> Tensor:
    """The groups' rewards as a [P, G] tensor; groups must be of equal size."""
    return torch.tensor([group.rewards for group in groups])


def toward_teacher(groups: list[Group], config: DistillConfig) -> Advantages:
    """A_t = log teacher_t - log pi_old_t: each token's share of the negative KL(policy || teacher). On-policy
    distillation, arXiv 2306.13649, with the reverse KL.

    A token is judged by its own term only: the terms of the tokens that follow it are left out (discount 0).
    """
    return [
        [teacher - c.logprobs for teacher, c in zip(group.reference_logprobs or [], group.completions, strict=True)]
        for group in groups
    ]


def ones(groups: list[Group], config: TrainingConfig) -> Advantages:
    """A_t = 1: every demonstration is imitated."""
    return [[torch.ones(len(c.ids)) for c in group.completions] for group in groups]


def is_correct(groups: list[Group], config: RFTConfig | OnlineRFTConfig) -> Advantages:
    """A_i = 1 where the reward reaches the threshold, else 0: DeepSeekMath, appendix A.1.2 and A.1.3."""
    return [
        [
            torch.full((len(c.ids),), float(r >= config.reward_threshold))
            for r, c in zip(group.rewards, group.completions, strict=True)
        ]
        for group in groups
    ]


def chosen_rejected(groups: list[Group], config: TrainingConfig) -> Advantages:
    """A = 1 for the first completion of each pair, the chosen one, and -1 for the second."""
    return [
        [torch.full((len(c.ids),), sign) for sign, c in zip((1.0, -1.0), group.completions, strict=True)]
        for group in groups
    ]


def gae_advantages(groups: list[Group], config: PPOConfig, lam: Callable[[int, PPOConfig], float]) -> Advantages:
    """A_t = sum_l (gamma lam)^l delta_{t+l} on the critic's values and rewards with the KL in them, not whitened: GAE,
    arXiv 1506.02438, Eq. 16. `lam`: a completion's length and the settings to lambda. With `critic_lambda`, A_t plus
    the value is the critic's target."""
    advantages = []
    for group in groups:
        assert group.values is not None
        reference: Sequence[Tensor | None] = group.reference_logprobs or [None] * len(group.completions)
        rewards = [
            shaped_rewards(reward, completion.logprobs, logprobs, config.kl_coef)
            for reward, completion, logprobs in zip(group.rewards, group.completions, reference, strict=True)
        ]
        advantages.append(
            [gae(r, v, config.gamma, lam(len(r), config)) for r, v in zip(rewards, group.values, strict=True)]
        )
    return advantages


def policy_lambda(length: int, config: PPOConfig) -> float:
    """GAE's lambda of the policy's advantages: `lam`, or 1 - 1 / (lam_alpha * length) (VAPO, arXiv 2504.05118), which
    is not below 0."""
    return config.lam if config.lam_alpha is None else max(0.0, 1 - 1 / (config.lam_alpha * max(length, 1)))


def critic_lambda(length: int, config: PPOConfig) -> float:
    """GAE's lambda of the critic's targets: `critic_lam`, or the policy's."""
    return policy_lambda(length, config) if config.critic_lam is None else config.critic_lam


def gae_whitened(groups: list[Group], config: PPOConfig) -> Advantages:
    """`gae_advantages`, whitened over the tokens of the batch that carry loss."""
    return whitened(gae_advantages(groups, config, policy_lambda), groups, config.mask_truncated_completions)
