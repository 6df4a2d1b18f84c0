"""The settings of a run over several ranks: what each of them holds of the model."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, model_validator


class ShardingConfig(BaseModel):
    """How a model is held by the ranks of a run (torchrun), and how long they wait for each other."""

    ddp_timeout: float = Field(
        1800, gt=0, description="Seconds that a rank (torchrun) waits for the others; then the run ends with an error."
    )
    distributed: Literal["replicated", "fsdp2"] = Field(
        "replicated",
        description="replicated: each rank has all weights; fsdp2: weights, gradients and optimiser state are divided "
        "among ranks, by PyTorch's FSDP2, and gathered for sampling.",
    )
    fsdp_param_dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="For fsdp2: what weights are converted to where they are gathered. bfloat16 halves their memory "
        "and traffic; each rank's part, its gradients and the optimiser stay float32. With float32 and bf16, "
        "autocast's copies of all weights stay until the backward pass, unless gradient_checkpointing is on.",
    )
    fsdp_offload: bool = Field(
        False,
        description="For fsdp2: each rank's part of weights, gradients and optimiser state is in the CPU's memory, "
        "where the optimiser runs.",
    )

    @model_validator(mode="after")
    def _only_for_fsdp2(self) -> ShardingConfig:
        if self.distributed != "fsdp2":
            for key in ("fsdp_param_dtype", "fsdp_offload"):
                if getattr(self, key) != ShardingConfig.model_fields[key].default:
                    raise ValueError(f"{key} is {getattr(self, key)!r} and would do nothing: set distributed: fsdp2")
        return self
