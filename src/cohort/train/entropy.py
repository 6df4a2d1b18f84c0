"""The weight of the entropy bonus, constant or steered to a target (Skywork-OR1, arXiv 2505.22312)."""

from __future__ import annotations

from cohort.config import OnlineConfig, TrainingConfig


class EntropyWeight:
    """The weight in use, and after each step the next one. `state` is what a checkpoint keeps."""

    def __init__(self, config: TrainingConfig):
        self.config = config if isinstance(config, OnlineConfig) and config.use_adaptive_entropy else None
        self.constant = config.entropy_weight
        self.state: dict[str, float] = {} if self.config is None else {"entropy_coef": self.constant}

    @property
    def is_used(self) -> bool:
        """Whether any step may have a bonus, so that every token's entropy counts."""
        return self.config is not None or self.constant > 0

    @property
    def current(self) -> float:
        """The weight of this step's bonus: of a steered one 0 while the last entropy was above the target, and in the
        first step, before any was measured."""
        if self.config is None:
            return self.constant
        low = self.state.get("entropy", float("inf")) <= self.config.entropy_target
        return self.state["entropy_coef"] if low else 0.0

    def logged(self, loss: float, entropy: float) -> dict[str, float]:
        """What to log of a step with the loss, the bonus included, and the mean entropy of its trained tokens, in
        nats."""
        if not self.is_used:
            return {}
        coef = self.state.get("entropy_coef", self.constant)
        return {"policy_loss": loss + self.current * entropy, "entropy_coef": coef}

    def adapt(self, entropy: float) -> dict[str, float]:
        """Set the weight of the next step from this step's mean entropy, in nats. Returns what to log."""
        if self.config is None:
            return {}
        config, coef = self.config, self.state["entropy_coef"]
        change = config.entropy_coef_delta if entropy <= config.entropy_target else -config.entropy_coef_delta
        coef = min(max(coef + change, config.entropy_coef_min), config.entropy_coef_max)
        self.state |= {"entropy": entropy, "entropy_coef": coef}
        return {"entropy_coef": coef}
