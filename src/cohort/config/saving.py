"""The settings of checkpoints and of resuming."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class SavingConfig(BaseModel):
    """When checkpoints are saved, which are kept, and what a resumed run may change."""

    save_strategy: Literal["no", "steps", "epoch"] = Field(
        "steps", description="Checkpoints during the run; no: none, also not by time."
    )
    save_steps: float = Field(
        0, ge=0, description="Steps between checkpoints, below 1 as a fraction of all steps. 0: by save_minutes alone."
    )
    save_minutes: float | None = Field(
        15,
        gt=0,
        description="Minutes without a checkpoint after which one is saved at the end of the step, unless saving takes "
        "over a fiftieth of the time. null: never by time.",
    )
    save_only_model: bool = Field(False, description="Checkpoints without optimiser state: a run cannot resume.")
    save_total_limit: int | None = Field(2, ge=1, description="Newest checkpoints kept; null: all.")
    keep_best: str | None = Field(
        None,
        description="A metric of evaluations, such as eval/reward: the checkpoint of its best value is saved and kept "
        "beside save_total_limit; best.json names it. Less is better for names that end in loss or kl.",
    )
    resume_from_checkpoint: bool | str = Field(
        False,
        description="true: the newest whole checkpoint in output_dir (from the start where there is none); or the path "
        "of one.",
    )
    resume_changes: Literal["refuse", "allow"] = Field(
        "refuse",
        description="Whether a resumed run may have another model, other data, rewards or settings that change what "
        "the run is; docs/reliability.md lists those that always may change.",
    )
