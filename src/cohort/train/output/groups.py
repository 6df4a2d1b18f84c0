"""A sampled batch in a checkpoint: what is plain as JSON, and the tensors."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import Tensor

from cohort.types import Completion, Group, Row, Steps


def plain(group: Group) -> dict[str, Any]:
    """The group without tensors, ready for JSON."""
    return {
        "row": asdict(group.row),
        "rewards": group.rewards,
        "components": group.components,
        "steps": None if group.steps is None else [asdict(steps) for steps in group.steps],
        "completions": [
            {"text": c.text, "truncated": c.truncated, "version": c.version, "segments": c.segments}
            for c in group.completions
        ],
    }


def tensors_of(groups: list[Group]) -> dict[str, Tensor]:
    """The tensors of the groups, by name."""
    tensors: dict[str, Tensor] = {}
    for g, group in enumerate(groups):
        tensors[f"{g}.prompt"] = group.prompt_ids
        for r, completion in enumerate(group.completions):
            tensors[f"{g}.{r}.ids"] = completion.ids
            tensors[f"{g}.{r}.logprobs"] = completion.logprobs
            if group.advantages:
                tensors[f"{g}.{r}.advantages"] = group.advantages[r].contiguous()
            if group.old_logprobs is not None:
                tensors[f"{g}.{r}.old"] = group.old_logprobs[r]
            if group.reference_logprobs is not None:
                tensors[f"{g}.{r}.reference"] = group.reference_logprobs[r]
            if group.values is not None:
                tensors[f"{g}.{r}.values"] = group.values[r]
    # safetensors refuses tensors that share memory; slices of one buffer do.
    return {name: tensor.clone() for name, tensor in tensors.items()}


def groups_of(records: list[dict[str, Any]], tensors: dict[str, Tensor]) -> list[Group]:
    """The groups whose `plain` and `tensors_of` these are."""
    groups = []
    for g, record in enumerate(records):
        rows = range(len(record["completions"]))

        def column(name: str, g: int = g, rows: range = rows) -> list[Tensor] | None:
            return [tensors[f"{g}.{r}.{name}"] for r in rows] if f"{g}.0.{name}" in tensors else None

        completions = [
            Completion(tensors[f"{g}.{r}.ids"], tensors[f"{g}.{r}.logprobs"], **c)
            for r, c in enumerate(record["completions"])
        ]
        groups.append(
            Group(
                tensors[f"{g}.prompt"],
                completions,
                Row(**record["row"]),
                record["rewards"],
                record["components"],
                None if record["steps"] is None else [Steps(**steps) for steps in record["steps"]],
                column("advantages") or [],
                column("old"),
                column("reference"),
                column("values"),
            )
        )
    return groups
