"""Weights on their way to an engine that does not sample the policy of this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor

from cohort.policy.model import Policy
from cohort.rollouts.engine import Engine, LocalEngine, ShardedEngine
from cohort.rollouts.row_engine import RowEngine
from cohort.rollouts.sampling import Generation, OnGroup, OnTokens, Sampling


class Following:
    """An engine that is given the policy's weights before it samples, where they have changed since the last time."""

    def __init__(self, engine: Engine, policy: Policy):
        self.engine, self.policy = engine, policy
        self.followed: tuple[int, ...] | None = None

    def generate(
        self,
        prompts: list[Tensor],
        n: int,
        sampling: Sampling,
        seeds: Sequence[int],
        on_tokens: OnTokens | None = None,
        on_group: OnGroup | None = None,
        keep_tokens: int = 0,
    ) -> Generation:
        self.follow(self.policy, self.policy.version)
        return self.engine.generate(prompts, n, sampling, seeds, on_tokens, on_group)

    def follow(self, policy: Policy, version: int) -> None:
        # Weights may change without an update too: a checkpoint is loaded, a run begins again. PyTorch counts the
        # changes of each tensor.
        now = (version, *(parameter._version for parameter in policy.parameters))
        if now != self.followed:
            self.followed = None  # if it fails, the engine may have some of the weights
            self.engine.follow(policy, version)
            self.followed = now

    def present(self) -> Engine:
        """The engine of the weights that the policy has now, also after it has others."""
        self.follow(self.policy, self.policy.version)
        return cast("Engine", self.engine.present())  # type: ignore[attr-defined]

    def check(self) -> None:
        if hasattr(self.engine, "check"):
            self.engine.check()


def following(engine: Engine, policy: Policy) -> Engine:
    """The engine with its weights kept up to date; itself where it samples the policy of this process."""
    if isinstance(engine, ShardedEngine):
        return ShardedEngine(engine.policy, following(engine.engine, engine.policy.whole))
    if isinstance(engine, LocalEngine | RowEngine) or not hasattr(engine, "follow"):
        return engine
    return Following(engine, policy)
