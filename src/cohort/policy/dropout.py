"""Dropout of a model: where it is, and how it is switched off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

PROBABILITIES = ("p", "prob", "rate")
"""What a dropout module calls its probability, where the name does not say that it is dropout's."""


def dropouts(model: Any) -> Iterator[tuple[nn.Module, str]]:
    """(module, attribute) of each probability of dropping something that is above 0: of nn.Dropout and its like, and
    of modules that call torch's function. An adapter's own dropout is not among them."""
    of_adapters = {id(part) for child in adapter_parts(model) for part in child.modules()}
    for module in model.modules():
        if id(module) in of_adapters:
            continue
        is_dropout = "drop" in type(module).__name__.lower()
        for name, value in list(vars(module).items()):
            if ("drop" in name.lower() or (is_dropout and name in PROBABILITIES)) and is_probability(value):
                yield module, name


def is_probability(value: Any) -> bool:
    """Whether the value is a float above 0 and at most 1."""
    return isinstance(value, float) and 0 < value <= 1


def adapter_parts(model: Any) -> list[nn.Module]:
    """The modules that peft added beside the model's own."""
    return [
        child
        for module in model.modules()
        if hasattr(module, "base_layer")
        for name, child in module.named_children()
        if name != "base_layer"
    ]


def zero_dropout(model: Any) -> None:
    """Set the model's dropout to 0, and leave an adapter's as it is."""
    for module, name in dropouts(model):
        setattr(module, name, 0.0)


def zero_dropout_of_config(config: Any) -> list[str]:
    """Set dropout to 0 in transformers' configuration, for a model that reads it there in each pass; returns the names
    of what was changed."""
    parts = [config] if config.get_text_config() is config else [config, config.get_text_config()]
    dropped = [
        (part, name) for part in parts for name, value in vars(part).items() if "drop" in name and is_probability(value)
    ]
    for part, name in dropped:
        setattr(part, name, 0.0)
    return [name for _, name in dropped]
