"""What TRL's and transformers' trainers take beside our own arguments."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from cohort.types import UserError

log = logging.getLogger("cohort")


class LoadsModel(Protocol):
    """The part of a training configuration that says how a named model is loaded."""

    model_init_kwargs: dict[str, Any]

    def model_copy(self, *, update: dict[str, Any]) -> Any: ...


Config = TypeVar("Config", bound=LoadsModel)

NOT_HERE = {
    "tools": "there are no tools: a completion is one turn",
    "rollout_func": "the built-in engine samples; rewards judge what it sampled",
    "environment_factory": "there are no environments: a completion is one turn",
    "optimizers": "AdamW and its schedule are made from args: learning_rate, lr_scheduler_type, optim",
    "ref_model": "the reference is the starting model, or the model without its adapter; DPOTrainer takes another",
    "data_collator": "batches are packed",
    "compute_metrics": "evaluation scores completions by reward_funcs",
    "formatting_func": "give rows with a prompt column",
    "model_init": "give a model or its name",
}
"""Arguments of TRL's trainers that have no counterpart, and what takes their place."""


def settle(config: Config, model: Any, processing_class: Any, familiar: dict[str, Any]) -> tuple[Config, Any]:
    """(configuration, tokenizer) from a trainer's arguments; `familiar` are those that only TRL has. Raises UserError
    for one that asks for something that is not here."""
    given = {name: value for name, value in familiar.items() if value is not None and value != (None, None)}
    tokenizer = given.pop("tokenizer", None)
    if tokenizer is not None and processing_class is not None:
        raise UserError("tokenizer and processing_class are the same thing: give one of them")
    quantization = given.pop("quantization_config", None)
    if quantization is not None:
        if not isinstance(model, str):
            raise UserError("quantization_config is for a model that is named; this one is loaded already")
        if config.model_init_kwargs.get("quantization_config") is not None:
            raise UserError("quantization_config is given twice, here and in model_init_kwargs: give it once")
        kwargs = {**config.model_init_kwargs, "quantization_config": quantization}
        config = config.model_copy(update={"model_init_kwargs": kwargs})
    if config.model_init_kwargs and not isinstance(model, str):
        log.warning("model_init_kwargs have no effect here: the model is loaded already")
    for name, value in given.items():
        if name in NOT_HERE:
            raise UserError(f"{name} is a {type(value).__name__}, and is not supported: {NOT_HERE[name]}")
        known = [
            "tokenizer",
            "processing_class",
            "quantization_config",
            "train_dataset",
            "eval_dataset",
            "reward_funcs",
            "reward_processing_classes",
        ]
        close = difflib.get_close_matches(name, [*known, "callbacks", "peft_config", "args", "model"], n=1)
        hint = f": did you mean {close[0]!r}?" if close else ""
        raise TypeError(f"unknown argument {name!r}{hint}")
    return config, processing_class if tokenizer is None else tokenizer


def made(callbacks: Sequence[Any]) -> list[Any]:
    """Callbacks, those given as classes made into objects, as transformers does."""
    return [callback() if isinstance(callback, type) else callback for callback in callbacks]
