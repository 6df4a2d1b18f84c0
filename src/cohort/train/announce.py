"""What a run says of itself before its first step."""

from __future__ import annotations

import logging

from cohort.config import OnlineConfig, TrainingConfig, differences_from_paper, easily_misread
from cohort.policy import ranks
from cohort.policy.model import Policy
from cohort.train.ranks import of_ranks

log = logging.getLogger("cohort")


def announce(policy: Policy, config: TrainingConfig) -> None:
    """Log the fast paths, what a step samples, and where the settings are not the paper's."""
    log.info("fast paths: %s", policy.paths.summary())
    if isinstance(config, OnlineConfig):
        G, P = config.num_generations, config.prompts_per_step
        # A batch that is no whole number of groups differs from what was asked for: a warning.
        level = logging.INFO if config.batch_size == P * G else logging.WARNING
        log.log(level, "each step: %d prompts x %d completions = %d completions%s", P, G, P * G, of_ranks())
    elif ranks.count() > 1:
        log.info("each step: %d sequences%s", config.batch_size, of_ranks())
    for difference in differences_from_paper(config):
        log.info("differs from the paper: %s", difference)
    for line in easily_misread(config):
        log.warning(line)
