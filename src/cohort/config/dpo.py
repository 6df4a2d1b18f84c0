"""The settings of DPO."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from cohort.config.sampled import SampledConfig


class DPOConfig(SampledConfig):
    """Direct preference optimisation, on preference rows or on pairs made from the starting model's samples."""

    learning_rate: float = Field(1e-6, ge=0, description="Peak of the schedule.")
    per_device_train_batch_size: int = Field(8, ge=1, description="Pairs.")
    beta: float = Field(
        0.1, gt=0, description="Strength of the pull to the reference. DPO, arXiv 2305.18290, section 6"
    )
    max_length: int | None = Field(
        None,
        ge=2,
        description="Most tokens of prompt and answer, for pairs in the data; see truncation. None: the model's "
        "positions.",
    )
    loss_type: Literal[
        "sigmoid",
        "sigmoid_norm",
        "hinge",
        "ipo",
        "ipo_sum",
        "robust",
        "exo_pair",
        "nca_pair",
        "bco_pair",
        "sppo_hard",
        "apo_zero",
        "apo_down",
    ] = Field("sigmoid", description="The loss of a pair. sigmoid: DPO's; the others: docs/variants.md")
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Fraction of pairs assumed to be labelled the wrong way round."
    )
    dpo_pairs: Literal["best-worst", "random"] | None = Field(
        None, description="How a pair is chosen among each prompt's rewarded samples. None: pairs are in the data."
    )

    @property
    def max_sequence_length(self) -> int | None:
        return self.max_length

    @property
    def learns_from_rewards(self) -> bool:
        return self.dpo_pairs is not None

    @field_validator("loss_type", mode="before")
    @classmethod
    def _one(cls, value: object) -> object:
        return value[0] if isinstance(value, list) and len(value) == 1 else value  # TRL's is a list

    @model_validator(mode="after")
    def _smoothed(self) -> DPOConfig:
        if self.label_smoothing and self.loss_type not in ("sigmoid", "robust", "exo_pair"):
            raise ValueError(
                f"label_smoothing is {self.label_smoothing} and would do nothing: loss_type: {self.loss_type} does not "
                "read it. Leave it out"
            )
        if not self.label_smoothing and self.loss_type == "exo_pair":
            raise ValueError(
                "loss_type: exo_pair takes the logarithm of label_smoothing: set it above 0, such as 0.001"
            )
        return self

    @model_validator(mode="after")
    def _possible(self) -> DPOConfig:
        if self.dpo_pairs is not None and self.num_generations < 2:
            raise ValueError(f"num_generations is {self.num_generations}: a pair takes at least 2; 8 is common")
        sampling = ("num_generations", "temperature", "top_p", "top_k", "min_p") if self.dpo_pairs is None else ()
        for key in sampling:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"{key} is {getattr(self, key)!r} and would do nothing: nothing is sampled where pairs are in the "
                    "data. Leave it out, or set dpo_pairs"
                )
        return self
