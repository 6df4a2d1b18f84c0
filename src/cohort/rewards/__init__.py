"""Reward functions with TRL's signature and their sum: `f(completions, **columns) -> list[float | None]`."""

from __future__ import annotations

from cohort.rewards.check.explain import Matched
from cohort.rewards.compose import BUILTIN, RewardFunctionError, Rewards, Scores, resolve
from cohort.rewards.functions.choice import choice, choice_accuracy
from cohort.rewards.functions.code import unit_tests, unit_tests_reward
from cohort.rewards.functions.facts import facts
from cohort.rewards.functions.gym import reasoning_gym
from cohort.rewards.functions.tags import format_reward, soft_format, strict_format, tag_presence, xml_count
from cohort.rewards.functions.text import (
    accuracy,
    correctness,
    keyword_reward,
    overlong,
    overlong_penalty,
    reasoning_keywords,
    reasoning_length,
    repetition,
    repetition_penalty,
    too_short,
    too_short_penalty,
)
from cohort.rewards.resolve import reward

__all__ = [
    "BUILTIN",
    "Matched",
    "RewardFunctionError",
    "Rewards",
    "Scores",
    "accuracy",
    "choice",
    "choice_accuracy",
    "correctness",
    "facts",
    "format_reward",
    "keyword_reward",
    "overlong",
    "overlong_penalty",
    "reasoning_gym",
    "reasoning_keywords",
    "reasoning_length",
    "repetition",
    "repetition_penalty",
    "resolve",
    "reward",
    "soft_format",
    "strict_format",
    "tag_presence",
    "too_short",
    "too_short_penalty",
    "unit_tests",
    "unit_tests_reward",
    "xml_count",
]
