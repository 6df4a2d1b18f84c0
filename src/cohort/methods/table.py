"""The table of methods. Every method has the gradient of DeepSeekMath Eq. 5,

    grad J = E_{(q,o)~D} [ sum_t w_t * GC_t * grad log pi(o_t | q, o_<t) ],

and is one row: where D comes from, what is rewarded, how rewards become advantages (credit, once per batch) and how an
advantage becomes GC (coefficient, at each gradient step, where the ratio and its clip are).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cohort.config import (
    BaselineConfig,
    DistillConfig,
    DPOConfig,
    GreedyBaselineConfig,
    GRPOConfig,
    GRPOProcessConfig,
    OnlineRFTConfig,
    PassAtKConfig,
    PolicyGradientConfig,
    PPOConfig,
    ReinforceConfig,
    RFTConfig,
    RLOOConfig,
    SFTConfig,
    TrainingConfig,
)
from cohort.formulas.aggregation import Denominators, dapo, grpo
from cohort.formulas.loss_types import LOSS_TYPES
from cohort.methods.coefficients import (
    by_covariance,
    by_pair_loss,
    by_ratio,
    clip,
    clip_only,
    clip_with_kl,
    imitate,
    imitate_demonstrations,
    prefer,
)
from cohort.methods.credits import (
    above_greedy,
    baseline_whitened,
    batch_return,
    chosen_rejected,
    gae_whitened,
    group_outcome,
    group_process,
    is_correct,
    leave_one_out,
    length_weighted,
    ones,
    passing_draws,
    relative_to_mean,
    toward_teacher,
    uneven_rescaled,
)
from cohort.methods.method import Method, Paper


def chosen_loss_type(lengths_B: Tensor, denominators: Denominators, config: GRPOConfig) -> Tensor:
    """w of each completion's tokens by `loss_type`; "grpo" is DeepSeekMath Eq. 3's 1/|o|, then the mean."""
    return LOSS_TYPES[config.loss_type].weight(lengths_B, denominators)


def token_mean(lengths_B: Tensor, denominators: Denominators, config: TrainingConfig) -> Tensor:
    """w = 1 / the tokens with loss of the sampled batch."""
    return dapo(lengths_B, denominators)


def sequence_mean(lengths_B: Tensor, denominators: Denominators, config: TrainingConfig) -> Tensor:
    """w = 1 / (|o| * sequences)."""
    return grpo(lengths_B, denominators)


def pair_mean(lengths_B: Tensor, denominators: Denominators, config: TrainingConfig) -> Tensor:
    """w = 1 / pairs: a pair's objective is one number, whatever its completions' lengths."""
    return torch.full((len(lengths_B),), 2 / denominators.sequences)


DEEPSEEK_MATH = Paper("DeepSeekMath", "2402.03300")
WITH_KL = "outcome, token KL"

BY_LOSS_TYPE: dict[str, Any] = {"sees": by_ratio, "selects": by_covariance}
"""What a row with GRPO's keys of the loss sees, and chooses."""

# fmt: off
ROWS = (
    Method("sft", "demonstrations", ones, imitate_demonstrations, sequence_mean, config=SFTConfig, reward="none"),
    Method("rft", "start", is_correct, imitate, sequence_mean, config=RFTConfig, reward="rule", paper=DEEPSEEK_MATH),
    Method("online_rft", "policy", is_correct, imitate, sequence_mean, config=OnlineRFTConfig, reward="rule",
           paper=DEEPSEEK_MATH),
    Method("dpo", "preferences", chosen_rejected, prefer, pair_mean, config=DPOConfig, sees=by_pair_loss,
           reward="preference", paper=Paper("Direct Preference Optimization", "2305.18290")),
    Method("ppo", "policy", gae_whitened, clip, sequence_mean, config=PPOConfig, reward=WITH_KL, critic=True,
           paper=Paper("Proximal Policy Optimization Algorithms", "1707.06347")),
    Method("grpo", "policy", group_outcome, clip_with_kl, chosen_loss_type, config=GRPOConfig, **BY_LOSS_TYPE,
           paper=DEEPSEEK_MATH),
    Method("grpo_process", "policy", group_process, clip_with_kl, chosen_loss_type, config=GRPOProcessConfig,
           **BY_LOSS_TYPE, reward="each step", paper=DEEPSEEK_MATH),
    Method("rloo", "policy", leave_one_out, clip_only, chosen_loss_type, config=RLOOConfig, **BY_LOSS_TYPE,
           reward=WITH_KL, paper=Paper("Back to Basics", "2402.14740")),
    Method("opo", "policy", length_weighted, clip_with_kl, chosen_loss_type, config=BaselineConfig, **BY_LOSS_TYPE,
           paper=Paper("On-Policy RL with Optimal Reward Baseline", "2505.23585")),
    Method("remax", "policy", above_greedy, clip_with_kl, chosen_loss_type, config=GreedyBaselineConfig,
           **BY_LOSS_TYPE, paper=Paper("ReMax", "2310.10505")),
    Method("maxrl", "policy", relative_to_mean, clip_with_kl, chosen_loss_type, config=BaselineConfig, **BY_LOSS_TYPE,
           paper=Paper("Maximum Likelihood Reinforcement Learning", "2602.02710")),
    Method("gpg", "policy", uneven_rescaled, imitate, token_mean, config=PolicyGradientConfig,
           paper=Paper("GPG", "2504.02546")),
    Method("pass_at_k", "policy", passing_draws, clip_with_kl, chosen_loss_type, config=PassAtKConfig, **BY_LOSS_TYPE,
           paper=Paper("Pass@k Training", "2508.10751")),
    Method("reinforce++", "policy", batch_return, clip_only, chosen_loss_type, config=ReinforceConfig, **BY_LOSS_TYPE,
           reward=WITH_KL, paper=Paper("REINFORCE++", "2501.03262")),
    Method("reinforce++_baseline", "policy", baseline_whitened, clip_with_kl, chosen_loss_type, config=BaselineConfig,
           **BY_LOSS_TYPE, paper=Paper("REINFORCE++", "2501.03262")),
    Method("distill", "policy", toward_teacher, clip_only, chosen_loss_type, config=DistillConfig, **BY_LOSS_TYPE,
           reward="a teacher, each token", paper=Paper("On-Policy Distillation of Language Models", "2306.13649")),
)
# fmt: on

METHODS = {row.name: row for row in ROWS}
"""Name -> row."""
