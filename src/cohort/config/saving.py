"""The settings of checkpoints and of resuming."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator


class SavingConfig(BaseModel):
    """When checkpoints are saved, which are kept, and what a resumed run may change."""

    save_strategy: Literal["no", "steps", "epoch", "best"] = Field(
        "steps",
        description="Checkpoints during the run; no: none, also not by time; best: where an evaluation is the best so "
        "far, and by time.",
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
    metric_for_best_model: str | None = Field(
        None,
        description="A metric of evaluations, such as reward: the checkpoint of its best value is saved and kept "
        "beside save_total_limit; best.json names it. loss where load_best_model_at_end or save_strategy: best is set.",
    )
    greater_is_better: bool | None = Field(
        None,
        description="Whether the best value of metric_for_best_model is the highest. None: yes, but for names that end "
        "in loss or kl.",
    )
    load_best_model_at_end: bool = Field(
        False, description="Whether the final model is that of the best evaluation instead of the last step's."
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

    @model_validator(mode="before")
    @classmethod
    def _with_best(cls, values: Any) -> Any:
        """transformers' rules: what asks for the best model and names no metric means the loss."""
        if not isinstance(values, dict):
            return values
        metric = values.get("metric_for_best_model")
        if metric is None and (values.get("load_best_model_at_end") or values.get("save_strategy") == "best"):
            metric = "loss"
        if isinstance(metric, str) and values.get("greater_is_better") is None:
            values = {**values, "greater_is_better": not metric.endswith(("loss", "kl"))}
        return values if metric is None else {**values, "metric_for_best_model": metric}
