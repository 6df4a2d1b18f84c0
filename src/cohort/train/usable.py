"""A check of rows and rewards before a model is loaded: whether the method can use them."""

from __future__ import annotations

from cohort.config import TrainingConfig
from cohort.data.preferences import require_pairs
from cohort.methods.method import Method
from cohort.rewards.check.references import RewardParts, require_references
from cohort.types import Row, UserError


def require_usable(
    method: Method, config: TrainingConfig, rewards: RewardParts | None, rows: list[Row], held_out: list[Row]
) -> None:
    """Raise UserError where the method cannot use the data."""
    learns_from_rewards = config.learns_from_rewards
    if method.source == "preferences" and not learns_from_rewards:
        require_pairs(rows, method.name)
        if rewards is None:
            require_pairs(held_out, f"evaluation of {method.name} without reward_funcs")
    elif method.source != "demonstrations" and learns_from_rewards and rewards is None:
        raise UserError(
            f"No reward source provided: {method.name} learns from rewarded samples and reward_funcs is empty: name at "
            "least one reward, for example accuracy"
        )
    if rewards is not None:
        samples = learns_from_rewards or method.source not in ("demonstrations", "preferences")
        for sampled in (rows if samples else [], held_out):
            require_references(rewards, sampled)
