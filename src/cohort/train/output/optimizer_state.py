"""An optimiser's state in safetensors: tensors by name, the other values as JSON in the file's metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

METADATA = "optimizer"
"""The entry of the metadata."""
SEPARATOR = "."
"""Between the levels of a name: 3.exp_avg, or 3.__bnb_optimizer_quant_state__.state1 in bitsandbytes' nested state."""


def state_of(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of the state by name, and metadata with its numbers and texts."""
    tensors: dict[str, Tensor] = {}
    others: dict[str, Any] = {}
    storages: set[int] = set()
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in _leaves(str(index), values):
            if not isinstance(value, Tensor):
                others[name] = value
                continue
            # safetensors refuses tensors that share memory, as bitsandbytes' quantisation tables do.
            shared = value.untyped_storage().data_ptr() in storages
            storages.add(value.untyped_storage().data_ptr())
            tensors[name] = value.clone() if shared else value.contiguous()
    return tensors, {METADATA: json.dumps(others)}


def nested(tensors: dict[str, Tensor], file: Path) -> dict[int, dict[str, Any]]:
    """The state, by the parameter's index, from the tensors of a file that was saved with `state_of`'s metadata."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata() or {}
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **json.loads(metadata.get(METADATA, "{}"))}.items():
        index, *levels, last = name.split(SEPARATOR)
        values = state.setdefault(int(index), {})
        for level in levels:
            values = values.setdefault(level, {})
        values[last] = value
    return state


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield name, value
        return
    for key, inner in value.items():
        yield from _leaves(f"{name}{SEPARATOR}{key}", inner)
