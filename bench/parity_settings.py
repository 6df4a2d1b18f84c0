"""The lines of trl_parity.py: settings that TRL's GRPOTrainer and the step here have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LENGTHS = [[3, 17, 9, 24], [12, 1, 24, 6], [8, 20, 5, 14]]
"""Tokens of each completion, by prompt. 24 is the limit, so completions of 24 tokens are truncated."""
PROMPTS = [11, 5, 19]
MAX_COMPLETION_LENGTH = 24
SAME = {"temperature": 0.9, "epsilon": 0.2, "epsilon_high": 0.28, "max_completion_length": MAX_COMPLETION_LENGTH}


@dataclass(frozen=True)
class Settings:
    """One line of the table. Except for `off_policy`, the fields are keys of both libraries' GRPOConfig."""

    loss_type: str
    beta: float = 0.0
    use_bias_correction_kl: bool = False
    scale_rewards: str = "group"
    mask_truncated_completions: bool = False
    steps_per_generation: int = 1
    """If above 1, the first step of the sampled batch is compared."""
    off_policy: bool = False
    importance_sampling_level: str = "token"
    delta: float | None = None
    top_entropy_quantile: float = 1.0
    entropy_coef: float = 0.0
    use_adaptive_entropy: bool = False
    """The second step on the batch is compared: in the first no entropy is known."""
    off_policy_mask_threshold: float | None = None
    multi_objective_aggregation: str = "sum_then_normalize"

    @property
    def prompts(self) -> int:
        """Prompts in the step."""
        return len(PROMPTS) // self.steps_per_generation

    def shared(self) -> dict[str, Any]:
        values = {key: value for key, value in vars(self).items() if key != "off_policy"}
        generations = len(LENGTHS[0])
        size = self.prompts * generations
        # Ratios of whole completions are nearer to 1.
        clip = {"epsilon": 0.05, "epsilon_high": 0.06} if self.importance_sampling_level == "sequence" else {}
        if self.use_adaptive_entropy:
            values |= {"entropy_target": 9.0, "entropy_coef_delta": 0.07}
        return {**SAME, **clip, **values, "per_device_train_batch_size": size, "num_generations": generations}

    def ours(self) -> dict[str, Any]:
        """A loss without a clip refuses its bounds; cispo has the upper one."""
        unread = {"sapo": ("epsilon", "epsilon_high"), "vespo": ("epsilon", "epsilon_high"), "cispo": ("epsilon",)}
        return {key: value for key, value in self.shared().items() if key not in unread.get(self.loss_type, ())}

    def trls(self) -> dict[str, Any]:
        """CISPO's epsilon_high: TRL takes the cap itself, and here the cap is 1 + epsilon_high."""
        cap = {"epsilon_high": 1 + SAME["epsilon_high"]} if self.loss_type == "cispo" else {}
        return {**self.shared(), **cap}

    def __str__(self) -> str:
        parts = [f"{self.loss_type:7}", "off-policy" if self.off_policy else "on-policy "]
        parts.append(f"beta {self.beta:g}{' ratio-weighted' if self.use_bias_correction_kl else ''}")
        if self.scale_rewards != "group":
            parts.append(f"scale {self.scale_rewards}")
        if self.mask_truncated_completions:
            parts.append("masked")
        if self.steps_per_generation > 1:
            parts.append(f"1 of {self.steps_per_generation} steps")
        if self.importance_sampling_level == "sequence":
            parts.append("gspo")
        if self.delta is not None:
            parts.append(f"delta {self.delta:g}")
        if self.top_entropy_quantile < 1:
            parts.append(f"top {self.top_entropy_quantile:g}")
        if self.entropy_coef:
            parts.append(f"entropy {self.entropy_coef:g}{' steered' if self.use_adaptive_entropy else ''}")
        if self.off_policy_mask_threshold is not None:
            parts.append(f"off-policy mask {self.off_policy_mask_threshold:g}")
        if self.multi_objective_aggregation == "normalize_then_sum":
            parts.append("gdpo")
        return " ".join(parts)


def grid() -> list[Settings]:
    """Loss types by KL term and policy; then reward scales, masked completions, and batches of several steps."""
    loss_types = ["grpo", "bnpo", "dr_grpo", "dapo"]
    kl = [(0.0, False), (0.04, False), (0.04, True)]
    settings = [
        Settings(loss_type, beta, weighted, off_policy=off)
        for loss_type in loss_types
        for beta, weighted in kl
        for off in (False, True)
    ]
    settings += [Settings("grpo", 0.04, scale_rewards=scale, off_policy=True) for scale in ("batch", "none")]
    settings += [Settings(name, 0.04, mask_truncated_completions=True, off_policy=True) for name in loss_types]
    settings += [Settings(name, 0.04, steps_per_generation=3, off_policy=True) for name in loss_types]
    sequence = {"off_policy": True, "importance_sampling_level": "sequence"}
    settings += [Settings("grpo", beta, weighted, **sequence) for beta, weighted in kl]
    settings += [Settings("grpo", delta=1.1, **sequence), Settings("dapo", 0.04, delta=1.6, off_policy=True)]
    settings += [Settings("cispo", beta, off_policy=off) for beta in (0.0, 0.04) for off in (False, True)]
    settings += [Settings(name, 0.04, off_policy=True, top_entropy_quantile=0.3) for name in ("grpo", "bnpo", "cispo")]
    settings += [Settings(name, off_policy=True, entropy_coef=0.1) for name in ("grpo", "dr_grpo")]
    settings.append(Settings("grpo", off_policy=True, entropy_coef=0.1, top_entropy_quantile=0.3))
    settings += [
        Settings(name, beta, off_policy=off)
        for name in ("sapo", "vespo")
        for beta in (0.0, 0.04)
        for off in (False, True)
    ]
    settings += [
        Settings("sapo", 0.04, True, **sequence),
        Settings("luspo", 0.0, **sequence),
        Settings("luspo", 0.04, **sequence),
    ]
    settings += [
        Settings(name, 0.04, off_policy=True, off_policy_mask_threshold=0.0) for name in ("grpo", "sapo", "vespo")
    ]
    settings += [
        Settings(name, off_policy=True, entropy_coef=0.05, use_adaptive_entropy=True) for name in ("grpo", "dapo")
    ]
    settings.append(Settings("grpo", off_policy=True, multi_objective_aggregation="normalize_then_sum"))
    return settings
