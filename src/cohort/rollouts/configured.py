"""The engine that a configuration names."""

from __future__ import annotations

from pathlib import Path

from cohort.config import SampledConfig, TrainingConfig
from cohort.config.engines import EngineConfig
from cohort.policy.model import Policy
from cohort.rollouts.engine import Engine, local_engine


def configured_engine(policy: Policy, config: TrainingConfig) -> Engine:
    """The engine of the key `engine`. Raises UserError where its package is not installed."""
    chosen = config.engine if isinstance(config, SampledConfig) else EngineConfig()
    if chosen.vllm is not None:
        from cohort.rollouts.vllm.engine import VLLMEngine

        return VLLMEngine(policy, chosen.vllm, str(Path(config.output_dir) / "engine_weights"), config.max_rows)
    if chosen.ray is None:
        return local_engine(policy, config.max_rows)
    from cohort.rollouts.ray_pool import RayPool

    return RayPool(policy, chosen.ray, config.max_rows)
