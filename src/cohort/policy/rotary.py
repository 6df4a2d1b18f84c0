"""Rotary embeddings whose angles depend on the length of the whole sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LengthDependence:
    """Up to `limit` tokens the angles depend on positions alone; in a longer sequence all of them depend on its length.

    transformers takes the largest position of a call for the length of all its sequences, and `dynamic` remembers the
    longest call. Here a sequence's angles are those of the model's forward pass on that sequence alone."""

    limit: int
    kind: str
    """dynamic or longrope."""
    modules: list[Any]

    def forget(self) -> None:
        """Undo what earlier and longer calls left in the modules."""
        for module in self.modules:
            for layer_type, kind in _kinds(module):
                if "dynamic" in kind:
                    prefix = f"{layer_type}_" if layer_type else ""
                    frequencies = getattr(module, f"{prefix}original_inv_freq")
                    module.register_buffer(
                        f"{prefix}inv_freq", frequencies.to(getattr(module, f"{prefix}inv_freq").device), False
                    )
                    setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)

    def same_angles(self, lengths: list[int]) -> list[list[int]]:
        """Indices of sequences that can be in one call: those within the limit, then those of each longer length."""
        indices: dict[int, list[int]] = {}
        for i, length in enumerate(lengths):
            indices.setdefault(max(length, self.limit), []).append(i)
        return list(indices.values())

    def why_rows(self, longest: int | None) -> str:
        """Why groups are not packed: a stream has one set of angles and one copy of a prompt's keys. Empty where no
        sequence passes the limit."""
        if longest is not None and longest <= self.limit:
            return ""
        return (
            f"beyond {self.limit} tokens its {self.kind} rotary embedding depends on the length of the sequence "
            "(the sum of max_prompt_length and max_completion_length, and max_length, may promise that none is longer)"
        )


def length_dependence(model: Any) -> LengthDependence | None:
    """None where the angles depend on positions alone, in sequences of any length."""
    limits = []
    modules = [module for module in model.modules() if isinstance(getattr(module, "rope_type", None), (str, dict))]
    for module in modules:
        for layer_type, kind in _kinds(module):
            parameters = module.config.rope_parameters
            if "dynamic" in kind:
                limits.append((int(module.original_max_seq_len), kind))
            elif kind == "longrope":
                parameters = parameters[layer_type] if layer_type else parameters
                limits.append((int(parameters["original_max_position_embeddings"]), kind))
    return LengthDependence(*min(limits), modules) if limits else None


def _kinds(module: Any) -> list[tuple[str, str]]:
    """(type of layers, or "" for all; kind of rotary embedding)."""
    kinds: str | dict[str, str] = module.rope_type
    return list(kinds.items()) if isinstance(kinds, dict) else [("", kinds)]
