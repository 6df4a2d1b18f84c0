"""What callbacks see of a run: transformers' state, control and handler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_callback import CallbackHandler, TrainerControl
from transformers.trainer_callback import TrainerState as TransformersState

from cohort.config import TrainingConfig
from cohort.types import TrainerState


class RunState(TransformersState, TrainerState):
    """transformers' TrainerState, which reward functions read too."""

    def begin(self, config: TrainingConfig, total: int) -> None:
        """Set what is known before the first step. Intervals are in steps, also those that are fractions of the run."""
        self.compute_steps(config, total)  # type: ignore[no-untyped-call]
        self.max_steps, self.num_train_epochs = total, math.ceil(config.num_train_epochs)
        self.train_batch_size = config.batch_size

    def forget(self) -> None:
        """A new run begins: what the last one left is dropped."""
        self.log_history, self.global_step, self.epoch = [], 0, 0.0
        self.best_metric = self.best_global_step = self.best_model_checkpoint = None

    def take_best(self, record: dict[str, Any], folder: Path) -> None:
        """Set the best evaluation from train/saving.py's record of it."""
        self.best_metric, self.best_global_step = record["value"], record["step"]
        self.best_model_checkpoint = str(folder / record["checkpoint"])


def speed(split: str, seconds: float, samples: float, steps: float) -> dict[str, float]:
    """transformers' speed_metrics: how long a part of the run took, and what it did in a second."""
    seconds = max(seconds, 1e-9)  # of a run without a step
    return {
        f"{split}_runtime": round(seconds, 4),
        f"{split}_samples_per_second": round(samples / seconds, 3),
        f"{split}_steps_per_second": round(steps / seconds, 3),
    }


def speed_of_evaluation(split: str, seconds: float, samples: float, config: TrainingConfig) -> dict[str, float]:
    """What transformers logs of an evaluation's speed. Its steps are batches of per_device_eval_batch_size rows."""
    return speed(split, seconds, samples, math.ceil(samples / (config.eval_batch_size * config.world_size)))


def summary(seconds: float, steps: int, batch_size: int, losses: Sequence[float], epoch: float) -> dict[str, float]:
    """What transformers logs of a run that has ended. `losses`: of its steps."""
    loss = sum(losses) / len(losses) if losses else 0.0
    return speed("train", seconds, steps * batch_size, steps) | {"total_flos": 0.0, "train_loss": loss, "epoch": epoch}


class Schedule:
    """The learning rate as callbacks read it: transformers' `lr_scheduler`. The rate is a function of the step."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer

    def get_last_lr(self) -> list[float]:
        """The rate of the last step for each group of parameters."""
        return [group["lr"] for group in self.optimizer.param_groups]


class Callbacks(CallbackHandler):
    """transformers' handler of callbacks. A callback need not have every event, and the first one that stops the run is
    remembered."""

    def __init__(
        self,
        callbacks: Sequence[Any],
        args: TrainingConfig,
        state: RunState,
        model: Any,
        tokenizer: Any,
        optimizer: torch.optim.Optimizer,
    ):
        # Not transformers' own: it wants a DefaultFlowCallback, and here the configuration says what is due.
        self.callbacks: list[Any] = []
        for callback in callbacks:
            self.add_callback(callback)  # type: ignore[no-untyped-call]
        self.model, self.processing_class, self.optimizer = model, tokenizer, optimizer
        self.lr_scheduler = Schedule(optimizer)
        self.train_dataloader = self.eval_dataloader = None
        self.args, self.state, self.control = args, state, TrainerControl()
        self.stopped_by = ""
        """The callback that stopped the run."""
        optimizer.register_step_pre_hook(lambda *_: self.call("on_pre_optimizer_step"))
        optimizer.register_step_post_hook(lambda *_: self.call("on_optimizer_step"))

    def log(self, logs: dict[str, Any]) -> None:
        """Add a row to log_history and call on_log, as transformers' Trainer.log does."""
        row = {"epoch": self.state.epoch, **logs, "step": self.state.global_step}
        self.state.log_history.append(row)
        self.call("on_log", logs=row)

    def call(self, event: str, **details: Any) -> None:
        """Call an event of every callback, as transformers does; a control that one returns takes the place of ours."""
        self.control = getattr(self, event)(self.args, self.state, self.control, **details)

    def call_event(self, event: str, args: Any, state: Any, control: Any, **details: Any) -> Any:
        for callback in self.callbacks:
            method = getattr(callback, event, None)
            if method is None:
                continue
            returned = method(
                args,
                state,
                control,
                model=self.model,
                processing_class=self.processing_class,
                optimizer=self.optimizer,
                lr_scheduler=self.lr_scheduler,
                train_dataloader=self.train_dataloader,
                eval_dataloader=self.eval_dataloader,
                **details,
            )
            control = control if returned is None else returned
            if control.should_training_stop and not self.stopped_by:
                self.stopped_by = getattr(callback, "stops_by", type(callback).__name__)
        return control
