"""The settings of what is trained of a model: all weights, an adapter, or some layers."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, model_validator

from cohort.compat.keys import READ_WITH


class FinetuningConfig(BaseModel):
    """Which weights are trained."""

    finetuning_type: Literal["full", "lora", "freeze"] = Field(
        "full", description="All weights, an adapter through peft, or some layers."
    )
    freeze_trainable_layers: int = Field(
        2,
        description="For freeze: how many of the last layers are trained; negative: of the first; 0: only a reward "
        "model's head.",
    )
    freeze_trainable_modules: list[str] = Field(
        default_factory=list,
        description="For freeze: which modules of those layers are trained, such as mlp; empty: all.",
    )
    freeze_extra_modules: list[str] = Field(
        default_factory=list, description="For freeze: modules outside the layers that are trained too, such as norm."
    )
    lora_rank: int = Field(8, ge=1, description="LoRA's r.")
    lora_alpha: int | None = Field(None, ge=1, description="None: 2 * lora_rank.")
    lora_dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout before LoRA's A, in updates only. Above 0 the fast layers are not used."
    )
    lora_target: str | list[str] = Field("all", description="'all': every linear layer; else names.")
    use_dora: bool = Field(False, description="DoRA, arXiv 2402.09353")
    use_rslora: bool = Field(False, description="Rank-stabilised LoRA, arXiv 2312.03732")
    modules_to_save: list[str] = Field(
        default_factory=list, description="Modules that are trained whole, beside LoRA's, and saved with the adapter."
    )

    @model_validator(mode="after")
    def _keys_of_its_kind(self) -> FinetuningConfig:
        for kind, keys in READ_WITH.items():
            for key in keys if self.finetuning_type != kind else ():
                if getattr(self, key) != type(self).model_fields[key].get_default(call_default_factory=True):
                    raise ValueError(
                        f"{key} is {getattr(self, key)!r} and would do nothing: finetuning_type is "
                        f"{self.finetuning_type!r}. Set finetuning_type: {kind}, or leave it out"
                    )
        return self
