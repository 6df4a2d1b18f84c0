"""Trainers by the names that TRL has: Trainer with a method chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cohort.config import DPOConfig, GRPOConfig, PPOConfig, RFTConfig, RLOOConfig, SFTConfig
from cohort.data.held_out import formatted
from cohort.train.compute_metrics import ComputeMetrics, tell_predictions
from cohort.train.run_rewards import RewardSpec
from cohort.train.trainer import Trainer


class _Rewarded(Trainer):
    """Trainers of methods that learn from rewarded samples; arguments in TRL's order."""

    row: str

    def __init__(
        self,
        model: Any,
        reward_funcs: RewardSpec | Sequence[RewardSpec] | None = None,
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: Sequence[Any] | None = None,
        peft_config: Any = None,
        **trl_arguments: Any,
    ):
        super().__init__(
            model,
            reward_funcs,
            args,
            train_dataset,
            eval_dataset,
            processing_class,
            callbacks,
            peft_config,
            method=self.row,
            **trl_arguments,
        )


class GRPOTrainer(_Rewarded):
    """Group relative policy optimisation (DeepSeekMath, arXiv 2402.03300); `args` is a GRPOConfig."""

    row = "grpo"
    args: GRPOConfig


class RLOOTrainer(_Rewarded):
    """REINFORCE leave-one-out (arXiv 2402.14740); `args` is an RLOOConfig."""

    row = "rloo"
    args: RLOOConfig


class PPOTrainer(_Rewarded):
    """PPO (arXiv 1707.06347) with a critic; `args` is a PPOConfig."""

    row = "ppo"
    args: PPOConfig


class RFTTrainer(_Rewarded):
    """Rejection sampling fine-tuning: samples the starting model once and imitates what is correct; `args` is an
    RFTConfig."""

    row = "rft"
    args: RFTConfig


class _Given(Trainer):
    """Trainers of methods that learn from the dataset's completions. `reward_funcs`, if given, score sampled
    completions of `eval_dataset`; else evaluation is the held-out loss."""

    row: str

    def __init__(
        self,
        model: Any,
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: Sequence[Any] | None = None,
        peft_config: Any = None,
        reward_funcs: RewardSpec | Sequence[RewardSpec] | None = None,
        **trl_arguments: Any,
    ):
        super().__init__(
            model,
            reward_funcs,
            args,
            train_dataset,
            eval_dataset,
            processing_class,
            callbacks,
            peft_config,
            method=self.row,
            **trl_arguments,
        )


class SFTTrainer(_Given):
    """Supervised fine-tuning on demonstrations, loss on the completion only; `args` is an SFTConfig."""

    row = "sft"
    args: SFTConfig

    def __init__(
        self,
        model: Any,
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *more: Any,
        formatting_func: Callable[[dict[str, Any]], str] | None = None,
        **arguments: Any,
    ):
        """`formatting_func`: a record of the dataset -> its text, which is trained on as a whole."""
        if formatting_func is not None:
            train_dataset = formatted(train_dataset, formatting_func)
            eval_dataset = formatted(eval_dataset, formatting_func)
        super().__init__(model, args, train_dataset, eval_dataset, *more, **arguments)


class DPOTrainer(_Given):
    """Direct preference optimisation (arXiv 2305.18290) on rows with `prompt`, `chosen` and `rejected`, or, with
    `dpo_pairs` and `reward_funcs`, on pairs made of the starting model's samples; `args` is a DPOConfig."""

    row = "dpo"
    args: DPOConfig

    def __init__(self, *given: Any, compute_metrics: ComputeMetrics | None = None, **arguments: Any):
        tell_predictions(compute_metrics, "the implicit rewards")
        self.compute_metrics = compute_metrics
        super().__init__(*given, **arguments)
