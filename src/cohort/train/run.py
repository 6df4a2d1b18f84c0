"""Training as a configuration file describes it: what `cohort train` calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cohort.config import RewardModelConfig, RunConfig, TrainingConfig
from cohort.data.configured import configured_rows
from cohort.evaluation.predict import predict
from cohort.policy import ranks
from cohort.texts import without_secrets
from cohort.train.output.lock import require_free
from cohort.train.output.record import make_folder, require_folder, told_when_full
from cohort.train.reward_models.trainer import RewardTrainer
from cohort.train.trainer import Trainer
from cohort.types import Row, TrainerState, UserError


def train_from_config(run: RunConfig, config: TrainingConfig, callbacks: Sequence[Any] = ()) -> TrainerState:
    """Load data and model, write the configuration into output_dir, and train, evaluate and predict, as the run says.
    Raises UserError for bad input."""
    if run.do_predict and isinstance(config, RewardModelConfig):
        raise UserError(
            "do_predict writes completions, and a reward model has none: `cohort reward try` scores completions by it"
        )
    ranks.join(config.ddp_timeout, config.use_cpu)
    require_folder(config.output_dir)
    if ranks.is_main():
        require_free(Path(config.output_dir))
    rows, eval_rows = configured_rows(run, config.seed, by_prompt=isinstance(config, RewardModelConfig))
    held_out = eval_rows if run.do_train else eval_rows or rows
    if run.do_predict and not held_out:
        raise UserError("do_predict needs held-out rows: give eval_dataset or val_size")
    state = TrainerState()
    if run.do_train or run.do_eval:
        state = _trained(run, config, rows, held_out, callbacks)
    if run.do_predict and held_out and ranks.is_main():
        predict(config.output_dir if run.do_train else run.model, run, config, held_out)
    return state


def _trained(
    run: RunConfig, config: TrainingConfig, rows: list[Row], held_out: list[Row] | None, callbacks: Sequence[Any]
) -> TrainerState:
    """The state after training and evaluation, each where the run says so."""
    trainer: Trainer | RewardTrainer
    if isinstance(config, RewardModelConfig):
        refuse_rewards(run)
        trainer = RewardTrainer(run.model, config, rows, held_out, callbacks=callbacks)
    else:
        trainer = Trainer(
            run.model, reward_functions(run), config, rows, held_out, callbacks=callbacks, method=run.method
        )
    if ranks.is_main():
        _write_configuration(run, config)
    if run.do_train:
        trainer.train()
    if run.do_eval:
        trainer.save_metrics("eval", trainer.evaluate(), combined=run.do_train)
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
