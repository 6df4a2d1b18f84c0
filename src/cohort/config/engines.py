"""The settings of engines: what samples completions."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator


class RayEngineConfig(BaseModel):
    """`engine: {ray: {...}}`: processes of a Ray cluster sample, each with a copy of the policy."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), defer_build=True)

    workers: int = Field(2, ge=1, description="Processes that sample.")
    address: str | None = Field(
        None, description="Of a running cluster, such as auto. None: the run starts Ray on this machine."
    )
    cpus: float = Field(1, gt=0, description="CPU cores of each worker.")
    gpus: float = Field(0, ge=0, description="GPUs of each worker; 0: it samples on CPU cores.")
    timeout: float = Field(
        600,
        gt=0,
        description="Seconds in which a worker must answer a request, which has some prompts of a batch. One that "
        "takes longer is replaced, and its prompts are asked again.",
    )
    max_failures: int = Field(
        10, ge=1, description="The run stops where so many workers in a row end without an answer."
    )


class EngineConfig(BaseModel):
    """One engine and its settings; without any, the one of this process, which is written `local`."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), defer_build=True)

    ray: RayEngineConfig | None = Field(None, description="Processes of a Ray cluster.")

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if value == "local":
            return {}
        if value == "ray":
            return {"ray": {}}
        if isinstance(value, EngineConfig):
            return value
        if not isinstance(value, dict) or value.keys() - {"ray"}:
            raise ValueError("use local or {ray: {workers: 2}}; an engine of your own is Trainer(engine=...)")
        return {name: {} if settings is None else settings for name, settings in value.items()}

    @model_serializer(mode="wrap")
    def _as_written(self, serialize: SerializerFunctionWrapHandler) -> Any:
        named = {name: settings for name, settings in serialize(self).items() if settings is not None}
        return named or "local"

    @property
    def is_local(self) -> bool:
        return self.ray is None
