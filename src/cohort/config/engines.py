"""The settings of engines: what samples completions."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator


class VLLMEngineConfig(BaseModel):
    """`engine: {vllm: {...}}`: a vLLM server samples."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), defer_build=True)

    url: str = Field("http://127.0.0.1:8000", description="Where the server listens.")


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

    vllm: VLLMEngineConfig | None = Field(None, description="A vLLM server.")
    ray: RayEngineConfig | None = Field(None, description="Processes of a Ray cluster.")

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if value == "local":
            return {}
        if value in ("vllm", "ray"):
            return {value: {}}
        if not isinstance(value, dict | EngineConfig):
            raise ValueError("use local, {ray: {workers: 2}} or {vllm: {url: ...}}")
        if isinstance(value, EngineConfig):
            return value
        return {name: {} if settings is None else settings for name, settings in value.items()}

    @model_validator(mode="after")
    def _one(self) -> EngineConfig:
        if self.vllm is not None and self.ray is not None:
            raise ValueError("vllm and ray are two engines: give one of them")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, serialize: SerializerFunctionWrapHandler) -> Any:
        named = {name: settings for name, settings in serialize(self).items() if settings is not None}
        return named or "local"

    @property
    def is_local(self) -> bool:
        return self.vllm is None and self.ray is None
