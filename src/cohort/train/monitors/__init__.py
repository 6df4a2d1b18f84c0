"""Monitors: warnings while a run goes on. They change nothing that is learned.

`rewards.py` watches reward functions (never above 0, saturated, dominating the sum), `reward_models.py` compares the
scores of reward models with their validation sets, `overoptimization.py` compares the reward that is learned from with
a gold reward and can stop the run."""
