"""Training as a configuration file describes it: what `cohort train` calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cohort.config import RewardModelConfig, RunConfig, TrainingConfig
from cohort.data.configured import configured_rows
from cohort.policy import ranks
from cohort.texts import without_secrets
from cohort.train.output.lock import require_free
from cohort.train.output.record import make_folder, require_folder, told_when_full
from cohort.train.reward_models.trainer import RewardTrainer
from cohort.train.trainer import Trainer
from cohort.types import TrainerState, UserError


def train_from_config(run: RunConfig, config: TrainingConfig, callbacks: Sequence[Any] = ()) -> TrainerState:
    """Load data and model, write the configuration into output_dir, and train. Raises UserError for bad input."""
    ranks.join(config.ddp_timeout, config.use_cpu)
    require_folder(config.output_dir)
    if ranks.is_main():
        require_free(Path(config.output_dir))
    trainer: Trainer | RewardTrainer
    if isinstance(config, RewardModelConfig):
        refuse_rewards(run)
        rows, eval_rows = configured_rows(run, config.seed, by_prompt=True)
        trainer = RewardTrainer(run.model, config, rows, eval_rows, callbacks=callbacks)
    else:
        rows, eval_rows = configured_rows(run, config.seed)
        trainer = Trainer(
            run.model, reward_functions(run), config, rows, eval_rows, callbacks=callbacks, method=run.method
        )
    if ranks.is_main():
        _write_configuration(run, config)
    trainer.train()
    return trainer.state


def _write_configuration(run: RunConfig, config: TrainingConfig) -> None:
    folder = Path(config.output_dir)
    make_folder(folder)
    settings = {
        **run.model_dump(exclude_defaults=True),
        "method": run.method,
        **config.model_dump(mode="json"),
    }
    settings = without_secrets(settings)
    with told_when_full(config.output_dir):
        (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def refuse_rewards(run: RunConfig) -> None:
    """Raise UserError where a reward model's run names rewards."""
    if run.reward_funcs:
        raise UserError(
            f"reward_funcs has no effect for method {run.method}, which learns from the labels in the data; "
            "`cohort reward label` makes labels by reward functions"
        )


def reward_functions(run: RunConfig) -> list[Any]:
    """The run's rewards; of a reasoning-gym task without any, the task's own."""
    return run.reward_funcs or (["reasoning_gym"] if run.dataset.startswith("reasoning_gym:") else [])
