"""Reward functions, and the weighted sum of several of them.

A reward function has TRL's signature: `f(completions, **columns) -> list[float | None]`. Start reading at
`compose.Rewards`, which calls a set of functions on a batch; `resolve` turns a name of the configuration into a
function.

The rooms: `functions/` (the built-in rewards), `answers/` (extracting and comparing answers), `models/` (reward
models), `check/` (testing a reward set before training), `sandbox/` (running untrusted programs).

For other packages: the names exported here, and `steps` (cutting a completion into steps of reasoning), `votes` (what
the samples of a problem vote on), `resolve.with_run_defaults`, `resolve.with_tokenizers`, `component.column_of` (a
score's name in records), and what each room's docstring names. `calls`, `logs`, `pool` and `pool_worker` serve
`compose` only.
"""

from __future__ import annotations

from cohort.rewards.calls import RewardFunctionError
from cohort.rewards.compose import Rewards, Scores
from cohort.rewards.functions.choice import choice, choice_accuracy
from cohort.rewards.functions.code import unit_tests, unit_tests_reward
from cohort.rewards.functions.facts import facts
from cohort.rewards.functions.gym import reasoning_gym
from cohort.rewards.functions.matched import Matched
from cohort.rewards.functions.table import BUILTIN
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
from cohort.rewards.functions.trl import (
    accuracy_reward,
    get_cosine_scaled_reward,
    get_repetition_penalty_reward,
    get_soft_overlong_punishment,
    reasoning_accuracy_reward,
    think_format_reward,
)
from cohort.rewards.resolve import resolve, reward

__all__ = [
    "BUILTIN",
    "Matched",
    "RewardFunctionError",
    "Rewards",
    "Scores",
    "accuracy",
    "accuracy_reward",
    "choice",
    "choice_accuracy",
    "correctness",
    "facts",
    "format_reward",
    "get_cosine_scaled_reward",
    "get_repetition_penalty_reward",
    "get_soft_overlong_punishment",
    "keyword_reward",
    "overlong",
    "overlong_penalty",
    "reasoning_accuracy_reward",
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
    "think_format_reward",
    "too_short",
    "too_short_penalty",
    "unit_tests",
    "unit_tests_reward",
    "xml_count",
]
