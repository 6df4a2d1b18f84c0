"""Training only some layers of a model."""

from __future__ import annotations

from typing import Any

from torch import nn

from cohort.config import TrainingConfig
from cohort.policy.first_layers import layer_stack
from cohort.types import UserError


def freeze(model: Any, config: TrainingConfig) -> None:
    """Freeze all parameters but those that `freeze_trainable_layers`, `freeze_trainable_modules` and
    `freeze_extra_modules` name. Raises UserError where a name matches nothing."""
    stack = _layers(model)
    count = config.freeze_trainable_layers
    if not 0 < abs(count) <= len(stack):
        raise UserError(
            f"freeze_trainable_layers is {count}, and this model has {len(stack)} layers: give 1 to {len(stack)} for "
            "the last ones, -1 and below for the first"
        )
    chosen = stack[-count:] if count > 0 else stack[:-count]
    model.requires_grad_(False)
    names = config.freeze_trainable_modules
    for layer in chosen:
        for part in _named(layer, names, "freeze_trainable_modules") if names else [layer]:
            part.requires_grad_(True)
    if config.freeze_extra_modules:
        inside = {id(module) for layer in stack for module in layer.modules()}
        for part in _named(model, config.freeze_extra_modules, "freeze_extra_modules", inside):
            part.requires_grad_(True)


def _layers(model: Any) -> list[nn.Module]:
    """The layers of the decoder: the longest module list of the model's backbone."""
    stack = layer_stack(model.base_model)
    if stack is None:
        raise UserError(f"finetuning_type: freeze finds no stack of layers in {type(model).__name__}; use lora or full")
    module, name = stack
    return list(getattr(module, name))


def _named(root: nn.Module, names: list[str], key: str, but: set[int] | None = None) -> list[nn.Module]:
    """The modules under `root` with one of these names."""
    own = [
        (path.rpartition(".")[2], module)
        for path, module in root.named_modules()
        if path and id(module) not in (but or ())
    ]
    modules = []
    for name in names:
        matches = [module for last, module in own if last == name]
        if not matches:
            there = sorted({last for last, module in own if not last.isdigit()})
            raise UserError(f"{key}: no module is named {name!r}; there are {', '.join(there)}")
        modules += matches
    return modules
