"""The settings of engines: what samples completions."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)


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


class VLLMEngineConfig(BaseModel):
    """`engine: {vllm: {...}}`: servers of vLLM sample, each with the weights that it is sent after an update."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), defer_build=True)

    url: list[str] = Field(
        ["http://localhost:8000"],
        min_length=1,
        description="Of a server that `cohort vllm` starts, or a list of them, among which prompts are dealt. Where "
        "it asks for a key, the environment variable VLLM_API_KEY has it.",
    )
    folder: str | None = Field(
        None,
        description="Where weights are written for the servers, on a disk that they and this process see under the "
        "same path; /dev/shm is quick on one machine. None: a folder in output_dir.",
    )
    start_timeout: float = Field(
        240, gt=0, description="Seconds in which a server must be there when the run begins, and where it restarts."
    )
    timeout: float = Field(
        600,
        gt=0,
        description="Seconds in which a server must have sampled a prompt's completions; then it is asked again.",
    )
    max_failures: int = Field(
        10, ge=1, description="The run stops where a prompt was asked so often without an answer."
    )
    max_logp_difference: float = Field(
        0.1,
        gt=0,
        description="The run stops where the log-probabilities of fixed sequences, as the server has them and as the "
        "policy has them, differ by more than this: mean over tokens, in nats. 0.01 is usual in bfloat16.",
    )
    sleep: bool = Field(
        False,
        description="Let the servers give up their cache, and move their weights to the CPU, while the policy is "
        "trained on the same card. They are started with --enable-sleep-mode.",
    )

    @field_validator("url", mode="before")
    @classmethod
    def _one_url(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("url")
    @classmethod
    def _urls(cls, value: list[str]) -> list[str]:
        for url in value:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"{url!r} is no address of a server: write http://localhost:8000")
        if len(set(value)) < len(value):
            raise ValueError(f"a server is named twice: {', '.join(value)}")
        return [url.rstrip("/") for url in value]


class EngineConfig(BaseModel):
    """One engine and its settings; without any, the one of this process, which is written `local`."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), defer_build=True)

    ray: RayEngineConfig | None = Field(None, description="Processes of a Ray cluster.")
    vllm: VLLMEngineConfig | None = Field(None, description="Servers of vLLM.")

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if value == "local":
            return {}
        if value in ("ray", "vllm"):
            return {value: {}}
        if isinstance(value, EngineConfig):
            return value
        if not isinstance(value, dict) or len(value) > 1 or value.keys() - {"ray", "vllm"}:
            raise ValueError(
                "use local, {ray: {workers: 2}} or {vllm: {url: http://localhost:8000}}; an engine of your own is "
                "Trainer(engine=...)"
            )
        return {name: {} if settings is None else settings for name, settings in value.items()}

    @model_serializer(mode="wrap")
    def _as_written(self, serialize: SerializerFunctionWrapHandler) -> Any:
        named = {name: settings for name, settings in serialize(self).items() if settings is not None}
        return named or "local"

    @property
    def is_local(self) -> bool:
        return self.ray is None and self.vllm is None
