"""The settings of trackers: services and files that get the metrics beside metrics.jsonl."""

from __future__ import annotations

from pydantic import BaseModel, Field


class TrackingConfig(BaseModel):
    """Which trackers there are, and how they name the run."""

    report_to: list[str] = Field(
        default_factory=list,
        description="Trackers beside metrics.jsonl and the plots, by transformers' callbacks: tensorboard, wandb, "
        "trackio, mlflow, swanlab, comet_ml, clearml, dvclive, azure_ml, codecarbon, dagshub, flyte, kubeflow, "
        "neptune; all: those that are installed; none. wandb, trackio, mlflow and swanlab get a table of "
        "completions where log_completions is set.",
    )
    logging_dir: str | None = Field(None, description="Folder of tensorboard's files. None: runs/ in output_dir.")
    run_name: str | None = Field(None, description="The run's name in trackers. None: the name of output_dir.")
    project: str | None = Field(
        None,
        description="The project in trackers, unless the tracker's own variable (WANDB_PROJECT, ...) is set.",
    )
    trackio_space_id: str | None = Field(None, description="A Space of the hub that trackio shows the run in.")
