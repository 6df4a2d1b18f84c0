"""A model cut to its first layers, long enough to hold each kind of layer: what two ways of computing a model are
compared on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from torch import nn

Result = TypeVar("Result")

LEAST = 2
"""Layers that are always left, since one layer's output is another's input."""
ERRORS = (TypeError, AssertionError, KeyError, IndexError, RuntimeError)
"""What a model raises that does not run with fewer layers, or not the grouped attention."""


def on_first_layers(backbone: nn.Module, measure: Callable[[], Result]) -> Result:
    """What `measure` returns while the model has its first layers only; with all layers where it does not run so."""
    with first_layers(backbone) as shortened:
        if shortened:
            with suppress(*ERRORS):
                return measure()
    return measure()


def layer_stack(backbone: nn.Module) -> tuple[nn.Module, str] | None:
    """The module that holds the decoder's layers and the name of its longest ModuleList; None where there is none."""
    lists = [
        (len(child), module, name)
        for module in backbone.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList)
    ]
    if not lists:
        return None
    _, module, name = max(lists, key=lambda entry: entry[0])
    return module, name


@contextmanager
def first_layers(backbone: nn.Module) -> Iterator[bool]:
    """Within the context the model has the first layers only, so many that each kind of layer is among them. Gives
    whether any were left out."""
    stack = layer_stack(backbone)
    if stack is None:
        yield False
        return
    module, name = stack
    layers: Any = getattr(module, name)
    count = _enough(layers, getattr(getattr(backbone, "config", None), "layer_types", None))
    setattr(module, name, layers[:count])
    try:
        yield count < len(layers)
    finally:
        setattr(module, name, layers)


def _enough(layers: nn.ModuleList, types: list[str] | None) -> int:
    """The smallest number of first layers in which each kind of layer occurs, and at least LEAST."""
    kinds, count = set(), LEAST
    for index, layer in enumerate(layers, 1):
        kind = (types[index - 1] if types and len(types) == len(layers) else "", *_kind(layer))
        if kind not in kinds:
            kinds.add(kind)
            count = max(count, index)
    return min(count, len(layers))


def _kind(layer: nn.Module) -> Iterator[tuple[Any, ...]]:
    """What tells a layer's computation from another's: classes, settings and shapes of its modules. The layer's own
    number does not count."""
    for path, module in layer.named_modules():
        settings = {
            name: value
            for name, value in vars(module).items()
            if isinstance(value, (bool, int, float, str)) and name not in ("training", "layer_idx", "layer_id")
        }
        yield path, type(module), *sorted(settings.items())
    for path, parameter in layer.named_parameters():
        yield path, tuple(parameter.shape), parameter.dtype
