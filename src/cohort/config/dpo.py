"""The settings of DPO."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from cohort.config.problems import unknown_name
from cohort.config.sampled import SampledConfig

PairLoss = Literal[
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
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
]
OF_SCORES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "ipo_sum", "robust", "exo_pair", "discopop", "sft")
"""Losses that an f-divergence is defined for: those of the difference of scores."""
READ_BY: dict[str, tuple[str, ...]] = {
    "label_smoothing": ("sigmoid", "robust", "exo_pair", "aot", "aot_unpaired"),
    "discopop_tau": ("discopop",),
}
"""Key -> the values of `loss_type` that read it."""


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
    loss_type: PairLoss | list[PairLoss] = Field(
        "sigmoid",
        description="The loss of a pair, or several, whose sum is taken. sigmoid: DPO's; the others: docs/variants.md",
    )
    loss_weights: list[float] | None = Field(None, description="One for each of several losses; null: 1 each.")
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Fraction of pairs assumed to be labelled the wrong way round."
    )
    discopop_tau: float = Field(0.05, gt=0, description="For discopop: its temperature. arXiv 2406.08414, Eq. 5")
    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = Field(
        "reverse_kl",
        description="What keeps the policy at the reference; reverse_kl is DPO's. f-DPO, arXiv 2309.16240",
    )
    f_alpha_divergence_coef: float = Field(
        0.5, description="For alpha_divergence: a in (u^(a - 1) - 1) / (a - 1); the paper's alpha is 1 - a."
    )
    ld_alpha: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Weight of the log-probabilities of tokens behind the shorter answer's length. None or 1: full. "
        "LD-DPO, arXiv 2409.06411",
    )
    use_weighting: bool = Field(
        False,
        description="Weight each pair by how likely the policy is to write both answers. WPO, arXiv 2406.11827",
    )
    precompute_ref_log_probs: bool = Field(
        False,
        description="The reference's log-probabilities of the data are computed once, before the first step, in any "
        "case. true: nothing that could compute more is kept, and evaluate() takes no other dataset after training.",
    )
    sync_ref_model: bool = Field(
        False,
        description="Every ref_model_sync_steps the reference becomes alpha * policy + (1 - alpha) * reference, alpha "
        "being ref_model_mixup_alpha. Its log-probabilities are then computed at each step. TR-DPO, arXiv 2404.09656",
    )
    ref_model_mixup_alpha: float = Field(
        0.6, gt=0, le=1, description="For sync_ref_model: the policy's part. With an adapter it must be 1."
    )
    ref_model_sync_steps: int = Field(512, ge=1, description="For sync_ref_model: optimiser steps between two moves.")
    dpo_pairs: Literal["best-worst", "random"] | None = Field(
        None, description="How a pair is chosen among each prompt's rewarded samples. None: pairs are in the data."
    )

    # What moves a reference reads of every configuration (train/iterations): here there is one iteration.
    iterations: ClassVar[int] = 1
    steps_per_iteration: ClassVar[int | None] = None
    reward_model_refit: ClassVar[None] = None

    @property
    def max_sequence_length(self) -> int | None:
        return self.max_length

    @property
    def learns_from_rewards(self) -> bool:
        return self.dpo_pairs is not None

    @property
    def losses(self) -> list[tuple[str, float]]:
        """(name, weight) of each loss."""
        names = self.loss_type if isinstance(self.loss_type, list) else [self.loss_type]
        return list(zip(names, self.loss_weights or [1.0] * len(names), strict=True))

    @field_validator("loss_type", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        names = value if isinstance(value, list | tuple) else [value]
        if not names:
            raise ValueError("name a loss, or leave it out")
        for name in names:
            if name not in get_args(PairLoss):
                raise ValueError(f"{name!r} is no loss of pairs{unknown_name(str(name), get_args(PairLoss))}")
        return names[0] if len(names) == 1 else list(names)  # TRL's is a list

    @model_validator(mode="after")
    def _weighted(self) -> DPOConfig:
        names = self.loss_type if isinstance(self.loss_type, list) else [self.loss_type]
        if self.loss_weights is not None and len(self.loss_weights) != len(names):
            raise ValueError(
                f"loss_weights has {len(self.loss_weights)} weights, and loss_type names {len(names)}: `loss_weights` "
                "must have the same length as `loss_type`"
            )
        return self

    @model_validator(mode="after")
    def _read(self) -> DPOConfig:
        names = [name for name, _ in self.losses]
        for key, readers in READ_BY.items():
            value = getattr(self, key)
            if value != type(self).model_fields[key].default and not set(names) & set(readers):
                raise ValueError(
                    f"{key} is {value} and would do nothing: loss_type: {', '.join(names)} does not read it. Leave it "
                    "out"
                )
        if self.f_alpha_divergence_coef != 0.5 and self.f_divergence_type != "alpha_divergence":
            raise ValueError(
                f"f_alpha_divergence_coef is {self.f_alpha_divergence_coef} and would do nothing: f_divergence_type is "
                f"{self.f_divergence_type!r}. Leave it out"
            )
        if not self.label_smoothing and "exo_pair" in names:
            raise ValueError(
                "loss_type: exo_pair takes the logarithm of label_smoothing: set it above 0, such as 0.001"
            )
        if self.ld_alpha not in (None, 1) and "sft" in names:
            raise ValueError(
                f"ld_alpha is {self.ld_alpha}, a weight in log-ratios of pairs, and loss_type: sft has none: leave one "
                "of them out"
            )
        other = [name for name in names if name not in OF_SCORES]
        if self.f_divergence_type != "reverse_kl" and other:
            raise ValueError(
                f"f_divergence_type is {self.f_divergence_type!r}, and {', '.join(other)} has no form for it: use "
                f"{', '.join(OF_SCORES)}, or reverse_kl"
            )
        return self

    @model_validator(mode="after")
    def _moving_reference(self) -> DPOConfig:
        if self.sync_ref_model and self.precompute_ref_log_probs:
            raise ValueError("sync_ref_model moves the reference, and precompute_ref_log_probs keeps it: give one")
        for key in ("ref_model_mixup_alpha", "ref_model_sync_steps"):
            if not self.sync_ref_model and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"{key} is {getattr(self, key)!r} and would do nothing: sync_ref_model is off. Leave it out"
                )
        if self.sync_ref_model and 0 < self.max_steps < self.ref_model_sync_steps:
            raise ValueError(
                f"sync_ref_model would do nothing: ref_model_sync_steps is {self.ref_model_sync_steps}, and max_steps "
                f"is {self.max_steps}"
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
