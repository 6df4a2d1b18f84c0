"""The table of methods. All have the gradient of DeepSeekMath Eq. 5,

    grad J = E_{(q,o)~D} [ sum_t w_t * GC_t * grad log pi(o_t | q, o_<t) ],

and differ in where D comes from, what rewards it, how rewards become advantages (credit, once per batch) and how an
advantage becomes GC (coefficient, at each gradient step, where the ratio and its clip live). A method is a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cohort.config import GRPOConfig, TrainingConfig
from cohort.formulas.aggregation import Denominators, grpo
from cohort.formulas.loss_types import LOSS_TYPES
from cohort.methods.coefficients import (
    Terms,
    Tokens,
    Unit,
    by_ratio,
    clip,
    clip_only,
    clip_with_kl,
    each_token,
    imitate,
    prefer,
    whole_groups,
)
from cohort.methods.credits import (
    Advantages,
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
)
from cohort.types import Group


def chosen_loss_type(lengths_B: Tensor, denominators: Denominators, config: TrainingConfig) -> Tensor:
    """w of each completion's tokens by `loss_type`; "grpo" is DeepSeekMath Eq. 3's 1/|o|, then the mean."""
    assert isinstance(config, GRPOConfig)
    return LOSS_TYPES[config.loss_type].weight(lengths_B, denominators)


def sequence_mean(lengths_B: Tensor, denominators: Denominators, config: TrainingConfig) -> Tensor:
    """w = 1 / (|o| * sequences)."""
    return grpo(lengths_B, denominators)


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
