"""Arguments that TRL's and transformers' trainers have and ours have not."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from cohort.compat.trl_keys import KEYS
from cohort.types import UserError, did_you_mean

log = logging.getLogger("cohort")


class LoadsModel(Protocol):
    """The part of a training configuration that sets how a model is loaded by name."""

    model_init_kwargs: dict[str, Any]

    def model_copy(self, *, update: dict[str, Any]) -> Any: ...


Config = TypeVar("Config", bound=LoadsModel)

UNSUPPORTED = {
    "tools": "there are no tools: a completion is one turn",
    "rollout_func": "the built-in engine samples, and reward functions score its completions",
    "environment_factory": "there are no environments: a completion is one turn",
    "optimizers": "AdamW and its schedule come from args: learning_rate, lr_scheduler_type, optim",
    "ref_model": "the reference is the starting model, or the model without its adapter; DPOTrainer accepts another",
    "teacher": "method distill learns from a teacher",
    "data_collator": "batches are packed",
    "compute_metrics": "evaluation scores completions by reward_funcs",
    "formatting_func": "pass rows with a prompt column",
    "model_init": "pass a model or its name",
}
"""Arguments of TRL's trainers without a counterpart -> what takes their place."""

ARGUMENTS = (
    "model", "args", "train_dataset", "eval_dataset", "reward_funcs", "processing_class", "tokenizer",
    "reward_processing_classes", "quantization_config", "peft_config", "callbacks", "teacher",
)  # fmt: skip
"""Names that a misspelt argument is compared with."""


def read_trl_arguments(
    config: Config, model: Any, processing_class: Any, trl_arguments: dict[str, Any]
) -> tuple[Config, Any]:
    """(configuration, tokenizer) of a trainer; `trl_arguments` are those that only TRL's and transformers' trainers
    have. Raises UserError for one without a counterpart, TypeError for an unknown one."""
    arguments = {name: value for name, value in trl_arguments.items() if value is not None and value != (None, None)}
    tokenizer = arguments.pop("tokenizer", None)
    if tokenizer is not None and processing_class is not None:
        raise UserError("tokenizer and processing_class are the same thing: give one of them")
    quantization = arguments.pop("quantization_config", None)
    if quantization is not None:
        if not isinstance(model, str):
            raise UserError("quantization_config needs a model given by name; this one is loaded already")
        if config.model_init_kwargs.get("quantization_config") is not None:
            raise UserError("quantization_config is given twice, here and in model_init_kwargs: give it once")
        kwargs = {**config.model_init_kwargs, "quantization_config": quantization}
        config = config.model_copy(update={"model_init_kwargs": kwargs})
    if config.model_init_kwargs and not isinstance(model, str):
        log.warning("model_init_kwargs have no effect here: the model is loaded already")
    for name, value in arguments.items():
        if name in UNSUPPORTED:
            raise UserError(f"{name} is a {type(value).__name__}, and is not supported: {UNSUPPORTED[name]}")
        raise TypeError(f"unknown argument {name!r}{did_you_mean(name, ARGUMENTS)}")
    return config, processing_class if tokenizer is None else tokenizer


def instantiate_callbacks(callbacks: Sequence[Any]) -> list[Any]:
    """The callbacks; one given as a class is instantiated, as transformers does."""
    return [callback() if isinstance(callback, type) else callback for callback in callbacks]


def of_training_arguments(kind: type[Any], arguments: Any) -> Any:
    """A configuration of the class from an instance of transformers' TrainingArguments: the values that are not their
    defaults there."""
    from transformers import TrainingArguments

    usual = TrainingArguments(arguments.output_dir, use_cpu=True, report_to="none")
    names = {field.name for field in dataclasses.fields(TrainingArguments) if field.init} - {"use_cpu", "report_to"}
    values = {name: getattr(arguments, name) for name in names if getattr(arguments, name) != getattr(usual, name)}
    values |= {"use_cpu": arguments.use_cpu, "report_to": arguments.report_to, "output_dir": arguments.output_dir}
    known = {name: value for name, value in values.items() if name in kind.model_fields or name in KEYS}
    log.info(
        "args are transformers' TrainingArguments: what is set there is read (%s), all else is %s's default",
        ", ".join(sorted(known)),
        kind.__name__,
    )
    return kind(**known)
