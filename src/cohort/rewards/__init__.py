"""Reward functions, by name and by hand: `from cohort.rewards import accuracy`."""

from cohort.rewards.compose import BUILTIN, Rewards, Scores, resolve
from cohort.rewards.gym import reasoning_gym
from cohort.rewards.text import accuracy, format_reward, tag_presence

__all__ = ["BUILTIN", "Rewards", "Scores", "accuracy", "format_reward", "reasoning_gym", "resolve", "tag_presence"]
