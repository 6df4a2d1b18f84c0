"""The settings of each method, and how they depart from DeepSeekMath's."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from cohort.config.refit import RefitConfig
from cohort.config.training import SFTConfig, TrainingConfig

DSM = "DeepSeekMath, arXiv 2402.03300, section 4.2"


class SampledConfig(TrainingConfig):
    """What every method has that learns from sampled completions."""

    num_generations: int = Field(64, ge=1, description=f"G, completions of one prompt. {DSM}")
    max_completion_length: int = Field(1024, ge=1, description=DSM)
    temperature: float = Field(
        1.0, gt=0, description="Of sampling, and of the log-probabilities an online method trains."
    )
    top_p: float = Field(1.0, gt=0, le=1, description="Sample from the most likely tokens of this total probability.")
    top_k: int = Field(0, ge=0, description="0: all.")
    min_p: float = Field(0.0, ge=0, le=1, description="Drop tokens less likely than this share of the likeliest.")
    stop: list[str] = Field(default_factory=list, description="Strings that end a completion.")
    reward_weights: list[float] | None = Field(None, description="One for each reward function; null: 1 each.")
    reward_clip: tuple[float, float] | None = Field(
        (-5.0, 5.0), description="[lowest, highest] total of a completion; what is clipped is counted. null: none."
    )
    reward_preflight: bool = Field(
        True, description="Try the rewards on right, wrong, empty and truncated answers before training."
    )

    @field_validator("reward_clip")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError(f"{list(value)} is no interval: give [lowest, highest], or null")
        return value


class OnlineConfig(SampledConfig):
    """What every method has that samples the current policy. Batch sizes count completions, as in TRL; groups are
    never split."""

    learning_rate: float = Field(1e-6, ge=0, description=DSM)
    per_device_train_batch_size: int = Field(1024, ge=1, description=f"Completions. {DSM}")
    mask_truncated_completions: bool = Field(False, description="A completion that hit the length limit gets no loss.")
    entropy_coef: float = Field(
        0.0, ge=0, description="Weight of the bonus for the policy's entropy, its mean over the step's tokens."
    )
    log_completions: int = Field(8, ge=0, description="Completions of each step kept in completions.jsonl.")
    iterations: int = Field(
        1,
        ge=1,
        description="I: the reference becomes the policy at the start of each. DeepSeekMath, arXiv 2402.03300, "
        "Algorithm 1",
    )
    steps_per_iteration: int | None = Field(
        None, ge=1, description="M, optimiser steps of an iteration; I x M take max_steps' place."
    )
    reward_model_refit: RefitConfig | None = Field(
        None, description="Train a reward model further on the policy's own samples; its keys: RefitConfig."
    )
    gold_reward: str | None = Field(
        None,
        description="Reward function that says what is really good: logged with weight 0 and compared with the rewards "
        "that are learned from. Scaling laws for reward model overoptimization, arXiv 2210.10760",
    )
    stop_on_overoptimization: bool = Field(
        False, description="Stop where gold_reward falls while the rewards that are learned from rise."
    )

    @model_validator(mode="after")
    def _whole_iterations(self) -> OnlineConfig:
        steps, uses = self.steps_per_iteration, math.prod(self.batch_uses)
        if steps is None and self.iterations > 1:
            raise ValueError(f"iterations is {self.iterations}: say with steps_per_iteration how long each is")
        if self.stop_on_overoptimization and self.gold_reward is None:
            raise ValueError("stop_on_overoptimization needs to know what is good: name a rule as gold_reward")
        if self.reward_model_refit is not None and steps is None and self.reward_model_refit.every is None:
            raise ValueError(
                "reward_model_refit would act after the last step: give steps_per_iteration, or its own `every`"
            )
        if steps is None:
            return self
        if steps % uses:
            raise ValueError(
                f"steps_per_iteration is {steps}, and a sampled batch serves {uses} steps: an iteration ends with a "
                f"batch; use a multiple of {uses}"
            )
        total = self.iterations * steps
        if self.max_steps not in (-1, total):
            raise ValueError(
                f"max_steps is {self.max_steps}, and {self.iterations} iterations of {steps} steps are {total}: leave "
                "max_steps out"
            )
        self.max_steps = total
        return self

    @property
    def training_temperature(self) -> float:
        return self.temperature

    @property
    def needs_reference(self) -> bool:
        """Whether the reference's log-probabilities enter reward or loss."""
        return False

    @property
    def prompts_per_step(self) -> int:
        """Whole groups in one optimiser step: at least one, rounded up."""
        return -(-self.batch_size // self.num_generations)


class RFTConfig(SampledConfig):
    """Rejection sampling fine-tuning: the starting model is sampled once, its correct completions are imitated."""

    learning_rate: float = Field(2e-5, ge=0, description="The highest of the schedule.")
    per_device_train_batch_size: int = Field(8, ge=1, description="Kept completions.")
    reward_threshold: float = Field(1.0, description="A completion is correct where its reward is at least this.")
    mask_truncated_completions: bool = Field(False, description="Keep no completion that hit the length limit.")


class OnlineRFTConfig(OnlineConfig):
    """Online RFT: the current policy's correct completions are imitated."""

    reward_threshold: float = Field(1.0, description="A completion is correct where its reward is at least this.")


class DPOConfig(SampledConfig):
    """Direct preference optimisation, on preference rows or on pairs made from the starting model's samples."""

    learning_rate: float = Field(1e-6, ge=0, description="The highest of the schedule.")
    per_device_train_batch_size: int = Field(8, ge=1, description="Pairs.")
    beta: float = Field(
        0.1, gt=0, description="Strength of the pull to the reference. DPO, arXiv 2305.18290, section 6"
    )
    max_length: int | None = Field(
        None,
        ge=2,
        description="Tokens of prompt and answer where pairs are in the data; see truncation. None: the model's "
        "positions.",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="Share of pairs taken to be the wrong way round.")
    dpo_pairs: Literal["best-worst", "random"] | None = Field(
        None, description="Make a pair of each prompt's rewarded samples. None: pairs are in the data."
    )

    @model_validator(mode="after")
    def _possible(self) -> DPOConfig:
        if self.dpo_pairs is not None and self.num_generations < 2:
            raise ValueError(f"num_generations is {self.num_generations}: a pair takes at least 2; 8 is common")
        sampling = ("num_generations", "temperature", "top_p", "top_k", "min_p") if self.dpo_pairs is None else ()
        for key in sampling:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"{key} is {getattr(self, key)!r} and would do nothing: nothing is sampled where pairs are in the "
                    "data. Leave it out, or set dpo_pairs"
                )
        return self


class PPOConfig(OnlineConfig):
    """PPO with a critic. Keys are those of TRL's PPOConfig."""

    num_generations: int = Field(1, ge=1, description="Completions of one prompt; PPO compares none with another.")
    num_ppo_epochs: int = Field(4, ge=1, description="Passes over each sampled batch.")
    num_mini_batches: int = Field(1, ge=1, description="Optimiser steps of one pass over a sampled batch.")
    kl_coef: float = Field(0.05, ge=0, description="Weight of the per-token KL in the reward.")
    cliprange: float = Field(0.2, ge=0, description="PPO, arXiv 1707.06347, section 6.1")
    gamma: float = Field(1.0, ge=0, le=1, description="Discount.")
    lam: float = Field(0.95, ge=0, le=1, description="GAE's lambda. GAE, arXiv 1506.02438, Eq. 16")
    vf_coef: float = Field(
        0.1, ge=0, description="Weight of the critic's loss; with a trunk of its own a matter of clipping."
    )
    cliprange_value: float = Field(
        0.2, gt=0, description="How far a value may move from its old one before it is clipped."
    )
    critic: Literal["own", "shared"] = Field(
        "own", description="The critic's trunk: a copy of the model, or the policy's."
    )
    critic_learning_rate: float | None = Field(
        None, ge=0, description="The highest of the schedule. None: learning_rate."
    )

    @property
    def batch_uses(self) -> tuple[int, int]:
        return self.num_mini_batches, self.num_ppo_epochs

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0


class GRPOConfig(OnlineConfig):
    """GRPO. Groups are never split."""

    generation_batch_size: int | None = Field(None, ge=1, description="Completions sampled at a time.")
    steps_per_generation: int | None = Field(
        None, ge=1, description="In units of per_device_train_batch_size. None: gradient_accumulation_steps."
    )
    num_iterations: int = Field(1, ge=1, description=f"mu, updates on each batch. {DSM}: one")

    beta: float = Field(0.04, ge=0, description=f"Weight of the KL term. {DSM}")
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k3", description="DeepSeekMath Eq. 4: k3")
    use_bias_correction_kl: bool = Field(False, description="Weight the KL estimate by the ratio.")
    epsilon: float = Field(0.2, ge=0, description="PPO, arXiv 1707.06347, section 6.1")
    epsilon_high: float | None = Field(None, ge=0, description="None: epsilon.")
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo"] = Field(
        "grpo", description="DeepSeekMath Eq. 3: grpo"
    )
    scale_rewards: Literal["group", "batch", "none"] = Field("group", description="DeepSeekMath, section 4.1.2")
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = Field(
        "sum_then_normalize",
        description="normalize_then_sum: each reward by its group, their sum by the batch. GDPO, arXiv 2601.05242",
    )
    importance_sampling_level: Literal["token", "sequence"] = Field(
        "token", description="sequence: one ratio for a completion, epsilon about 3e-4. GSPO, arXiv 2507.18071"
    )
    delta: float | None = Field(
        None,
        gt=1,
        description="Upper bound of the ratio where the advantage is negative. Dual clip, arXiv 1912.09729",
    )
    top_entropy_quantile: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of tokens, those of highest entropy, that learn. Beyond the 80/20 rule, arXiv 2506.01939",
    )
    vllm_importance_sampling_correction: bool = Field(
        False, description="Weight tokens by min(policy / sampler, C): for another engine's or older weights' samples."
    )
    vllm_importance_sampling_clip_max: float = Field(2.0, gt=0, description="C of that weight.")
    dynamic_sampling: bool = Field(
        False, description="Replace groups whose rewards are all equal by other prompts'. DAPO, arXiv 2503.14476"
    )
    max_sampling_rounds: int = Field(
        10, ge=1, description="Rounds of sampling for one batch; then it keeps such groups. For dynamic_sampling."
    )

    least_generations: ClassVar[int] = 2
    unused: ClassVar[tuple[str, ...]] = ()
    """Keys that have no part in the row."""

    @model_validator(mode="before")
    @classmethod
    def _switches(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("scale_rewards"), bool):
            values = {**values, "scale_rewards": "group" if values["scale_rewards"] else "none"}
        return values

    @model_validator(mode="after")
    def _possible(self) -> GRPOConfig:
        if self.num_generations < self.least_generations:
            raise ValueError(
                f"num_generations is {self.num_generations}: a completion is judged against its siblings, "
                "so a group needs at least 2; 8 is common"
            )
        _without_effect(self)
        if self.generation_batch_size is not None and self.steps_per_generation is not None:
            raise ValueError("generation_batch_size and steps_per_generation say the same thing: give one of them")
        return self

    @property
    def batch_uses(self) -> tuple[int, int]:
        return self.updates_per_generation, self.num_iterations

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0

    @property
    def updates_per_generation(self) -> int:
        """Optimiser steps that share one sampled batch, before it is repeated num_iterations times."""
        if self.generation_batch_size is not None:
            return max(1, -(-self.generation_batch_size // self.batch_size))
        if self.steps_per_generation is not None:
            return max(1, -(-self.steps_per_generation // self.gradient_accumulation_steps))
        return 1


def _without_effect(config: GRPOConfig) -> None:
    """Raise ValueError where a key is set that another one, or the row, takes no notice of."""
    useless = {
        "scale_rewards": config.multi_objective_aggregation == "normalize_then_sum",
        "delta": config.loss_type == "cispo",
        "max_sampling_rounds": not config.dynamic_sampling,
        "vllm_importance_sampling_clip_max": not config.vllm_importance_sampling_correction,
        **dict.fromkeys(config.unused, True),
    }
    why = {
        "scale_rewards": "multi_objective_aggregation: normalize_then_sum has a scale of its own",
        "delta": "loss_type: cispo has one bound, epsilon_high",
        "max_sampling_rounds": "dynamic_sampling is off",
        "vllm_importance_sampling_clip_max": "vllm_importance_sampling_correction is off",
    } | dict.fromkeys(config.unused, "this method's credit has no use for it")
    for key, vain in useless.items():
        if vain and getattr(config, key) != type(config).model_fields[key].default:
            raise ValueError(f"{key} is {getattr(config, key)!r} and would do nothing: {why[key]}. Leave it out")
    if config.delta is not None and config.delta <= 1 + (config.epsilon_high or config.epsilon):
        raise ValueError(f"delta is {config.delta}: it must lie above the clip, 1 + epsilon_high")


class GRPOProcessConfig(GRPOConfig):
    """GRPO with a reward for each step of reasoning."""

    step_separator: str = Field("\n", min_length=1, description="What ends a step.")
    step_pattern: str | None = Field(
        None, description="Regular expression (RE2) of what ends a step. None: step_separator."
    )
    step_splitter: str | None = Field(
        None, description="path/to/file.py:function from a text to its steps. None: step_pattern."
    )

    unused: ClassVar[tuple[str, ...]] = ("multi_objective_aggregation",)


class BaselineConfig(GRPOConfig):
    """GRPO's loss with another baseline and no scale: rloo and opo."""

    unused: ClassVar[tuple[str, ...]] = ("scale_rewards", "multi_objective_aggregation")


class PassAtKConfig(BaselineConfig):
    """GRPO's loss with advantages for "one of k is correct"."""

    pass_k: int = Field(4, ge=1, description="Draws of which one is to be correct. Pass@k training, arXiv 2508.10751")
    reward_threshold: float = Field(1.0, description="A completion is correct where its reward is at least this.")

    @model_validator(mode="after")
    def _enough(self) -> PassAtKConfig:
        if self.pass_k > self.num_generations:
            raise ValueError(f"pass_k is {self.pass_k}, more than num_generations, {self.num_generations}")
        return self


class ReinforceConfig(BaselineConfig):
    """REINFORCE++: GRPO's clipped loss, the KL in the reward, normalisation over the batch."""

    num_generations: int = Field(1, ge=1, description="Completions of one prompt; they are not compared.")

    least_generations: ClassVar[int] = 1
    unused: ClassVar[tuple[str, ...]] = (*BaselineConfig.unused, "kl_estimator", "use_bias_correction_kl")


PAPER = ("learning_rate", "num_generations", "max_completion_length", "num_iterations", "beta", "kl_estimator",
         "use_bias_correction_kl", "loss_type", "scale_rewards", "multi_objective_aggregation",
         "importance_sampling_level", "delta", "top_entropy_quantile", "vllm_importance_sampling_correction",
         "dynamic_sampling", "entropy_coef", "mask_truncated_completions")  # fmt: skip


def differences_from_paper(config: TrainingConfig) -> list[str]:
    """`key: value (paper: value)` for each of DeepSeekMath's GRPO settings that this run departs from."""
    if not isinstance(config, GRPOConfig):
        return []
    differences = [
        f"{key}: {getattr(config, key)} (paper: {GRPOConfig.model_fields[key].default})"
        for key in PAPER
        if getattr(config, key) != GRPOConfig.model_fields[key].default
    ]
    completions = config.prompts_per_step * config.num_generations
    return differences + ([f"completions per step: {completions} (paper: 1024)"] if completions != 1024 else [])


METHOD_CONFIGS: dict[str, type[TrainingConfig]] = {
    "sft": SFTConfig,
    "rft": RFTConfig,
    "online_rft": OnlineRFTConfig,
    "dpo": DPOConfig,
    "ppo": PPOConfig,
    "grpo": GRPOConfig,
    "grpo_process": GRPOProcessConfig,
    "rloo": BaselineConfig,
    "opo": BaselineConfig,
    "pass_at_k": PassAtKConfig,
    "reinforce++": ReinforceConfig,
}
