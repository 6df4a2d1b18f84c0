"""The engine that a configuration names."""

from __future__ import annotations

from cohort.config import SampledConfig, TrainingConfig
from cohort.config.engines import EngineConfig
from cohort.policy.model import Policy
from cohort.rollouts.engine import Engine, local_engine
from cohort.types import UserError


def configured_engine(policy: Policy, config: TrainingConfig) -> Engine:
    """The engine of the key `engine`. Raises UserError for one that cannot be had here."""
    chosen = config.engine if isinstance(config, SampledConfig) else EngineConfig()
    if chosen.is_local:
        return local_engine(policy, config.max_rows)
    if chosen.ray is not None:
        from cohort.rollouts.ray_pool import RayPool

        return RayPool(policy, chosen.ray, config.max_rows)
    raise UserError("engine: vllm is not available in this version: use local")
