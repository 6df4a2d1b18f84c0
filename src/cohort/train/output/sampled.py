"""Sampled and rewarded groups that wait for their turn, and their place in a checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file

from cohort.rollouts.collect import Round
from cohort.train.output.groups import groups_of, plain, tensors_of
from cohort.types import Group

RECORD, TENSORS = "sampled.json", "sampled.safetensors"


@dataclass
class Sampled:
    """What was sampled for one batch."""

    rounds: list[Round]
    groups: list[Group]
    """Those of the batch, among the groups of all rounds."""
    whole: bool = True
    """False: completions that have not ended are among them, and none is rewarded."""


def save(folder: Path, batches: dict[int, Sampled]) -> None:
    """Write batches by their number; nothing where there are none."""
    if not batches:
        return
    every = [group for batch in batches.values() for each in batch.rounds for group in each.groups]
    places = {id(group): i for i, group in enumerate(every)}
    record = {
        "groups": [{**plain(group), "extra": group.extra} for group in every],
        "batches": [
            {
                "number": number,
                "whole": batch.whole,
                "used": [places[id(group)] for group in batch.groups],
                "rounds": [
                    {"count": len(each.groups), "logged": each.logged, "seconds": each.seconds} for each in batch.rounds
                ],
            }
            for number, batch in batches.items()
        ],
    }
    (folder / RECORD).write_text(json.dumps(record, default=str), encoding="utf-8")
    save_file(tensors_of(every), folder / TENSORS)


def load(folder: Path) -> dict[int, Sampled]:
    """What `save` wrote."""
    if not (folder / RECORD).is_file():
        return {}
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    extras = [each.pop("extra") for each in record["groups"]]
    every = groups_of(record["groups"], load_file(folder / TENSORS))
    for group, extra in zip(every, extras, strict=True):
        group.extra = extra
    batches, waiting = dict[int, Sampled](), iter(every)
    for batch in record["batches"]:
        rounds = [
            Round([next(waiting) for _ in range(each["count"])], each["logged"], each["seconds"])
            for each in batch["rounds"]
        ]
        # Checkpoints of earlier versions have whole batches alone.
        batches[batch["number"]] = Sampled(rounds, [every[i] for i in batch["used"]], batch.get("whole", True))
    return batches
