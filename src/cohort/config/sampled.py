"""The settings of methods that learn from sampled completions."""

from __future__ import annotations

import math

from pydantic import Field, field_validator, model_validator

from cohort.config.engines import EngineConfig
from cohort.config.refit import RefitConfig
from cohort.config.training import TrainingConfig

DSM = "DeepSeekMath, arXiv 2402.03300, section 4.2"


class SampledConfig(TrainingConfig):
    """The settings of every method that learns from sampled completions."""

    num_generations: int = Field(64, ge=1, description=f"G, completions of one prompt. {DSM}")
    max_completion_length: int = Field(1024, ge=1, description=DSM)
    temperature: float = Field(
        1.0, gt=0, description="Temperature of sampling, and of the log-probabilities that an online method trains."
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="Sample from the fewest most likely tokens with at least this total probability."
    )
    top_k: int = Field(0, ge=0, description="Sample from so many of the most likely tokens. 0: from all.")
    min_p: float = Field(
        0.0, ge=0, le=1, description="Drop tokens whose probability is below this fraction of the most likely token's."
    )
    stop: list[str] = Field(default_factory=list, description="Strings that end a completion.")
    engine: EngineConfig = Field(
        EngineConfig(),
        description="What samples. local: this process; {ray: {workers: 2}}: processes of a Ray cluster; "
        "{vllm: {url: http://localhost:8000}}: servers of vLLM. docs/scaling.md",
    )
    reward_weights: list[float] | None = Field(None, description="One for each reward function; null: 1 each.")
    reward_clip: tuple[float, float] | None = Field(
        (-5.0, 5.0),
        description="[lowest, highest] total reward of a completion; clipped totals are counted. null: no clipping.",
    )
    overlap_rewards: bool = Field(
        False,
        description="Score each group when its last completion has ended, in a thread that runs while other groups are "
        "sampled, instead of all groups after sampling. For rewards that wait: a judge, programs, pools. Functions are "
        "called with whole groups. Where it is not set, it is true with an engine outside this process.",
    )
    reward_preflight: bool = Field(
        True, description="Try the rewards on right, wrong, empty and truncated answers before training."
    )

    @field_validator("reward_clip")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError(f"{list(value)} is not an interval: give [lowest, highest], or null")
        return value

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: list[str]) -> list[str]:
        if "" in value:
            raise ValueError("an empty text is in every completion: leave it out")
        return value

    @model_validator(mode="after")
    def _free_process(self) -> SampledConfig:
        # While others sample, this process has nothing else to do.
        if not self.engine.is_local and "overlap_rewards" not in self.model_fields_set:
            self.overlap_rewards = True
        return self

    @model_validator(mode="after")
    def _samples_all_tokens(self) -> SampledConfig:
        truncating = [
            name for name, is_set in (("top_p", self.top_p < 1), ("top_k", self.top_k), ("min_p", self.min_p)) if is_set
        ]
        if self.engine.vllm is not None and truncating:
            raise ValueError(
                f"engine: vllm with {' and '.join(truncating)}: its log-probabilities would be those of the tokens "
                "that are left, and not the policy's. Leave them out, or use engine: local"
            )
        return self

    @property
    def learns_from_rewards(self) -> bool:
        return True


class OnlineConfig(SampledConfig):
    """The settings of every method that samples the current policy. Batch sizes count completions, as in TRL; groups
    are never split."""

    learning_rate: float = Field(1e-6, ge=0, description=DSM)
    per_device_train_batch_size: int = Field(1024, ge=1, description=f"Completions. {DSM}")
    staleness: int = Field(
        0,
        ge=0,
        le=16,
        description="Batches sampled ahead: batch i is sampled and rewarded beside training, with the weights that "
        "batch i - staleness begins with. 0: in turn with training. Above 0 it needs an engine outside this process: "
        "docs/scaling.md",
    )
    partial_rollouts: int | None = Field(
        None,
        ge=1,
        description="Tokens of a segment, for staleness of 2 or more: when a batch is taken, every completion of the "
        "next ones that has not ended gets up to so many tokens more from the weights of that time, those of the batch "
        "that is next all of the rest. null: completions are sampled whole. docs/scaling.md",
    )
    mask_truncated_completions: bool = Field(False, description="Completions that hit the length limit have no loss.")
    entropy_coef: float = Field(
        0.0, ge=0, description="Weight of the bonus for the policy's entropy, its mean over the step's tokens."
    )
    use_adaptive_entropy: bool = Field(
        False,
        description="Change that weight after each step: by entropy_coef_delta up where the entropy is at most "
        "entropy_target, else down. The bonus counts only at or below the target. Skywork-OR1, arXiv 2505.22312",
    )
    entropy_target: float = Field(0.2, ge=0, description="For use_adaptive_entropy: nats, mean over the step's tokens.")
    entropy_coef_delta: float = Field(0.005, ge=0, description="For use_adaptive_entropy: the change of a step.")
    entropy_coef_min: float = Field(0.0, ge=0, description="For use_adaptive_entropy: the lowest weight.")
    entropy_coef_max: float = Field(1.0, ge=0, description="For use_adaptive_entropy: the highest weight.")
    log_completions: int = Field(8, ge=0, description="Completions of each step written to completions.jsonl.")
    sync_ref_model: bool = Field(
        False,
        description="Every ref_model_sync_steps the reference becomes alpha * policy + (1 - alpha) * reference, alpha "
        "being ref_model_mixup_alpha. TR-DPO, arXiv 2404.09656",
    )
    ref_model_mixup_alpha: float = Field(
        0.6, gt=0, le=1, description="For sync_ref_model: the policy's part. With an adapter it must be 1."
    )
    ref_model_sync_steps: int = Field(512, ge=1, description="For sync_ref_model: optimiser steps between two moves.")
    iterations: int = Field(
        1,
        ge=1,
        description="I: the reference becomes the policy at the start of each. DeepSeekMath, arXiv 2402.03300, "
        "Algorithm 1",
    )
    steps_per_iteration: int | None = Field(
        None, ge=1, description="M, optimiser steps of an iteration; I x M replaces max_steps."
    )
    reward_model_refit: RefitConfig | None = Field(
        None, description="Train a reward model further on the policy's samples; its keys: RefitConfig."
    )
    gold_reward: str | None = Field(
        None,
        description="Reward function taken as the truth: logged with weight 0 and compared with the rewards that "
        "train the policy. Scaling laws for reward model overoptimization, arXiv 2210.10760",
    )
    stop_on_overoptimization: bool = Field(
        False, description="Stop the run when gold_reward falls while the rewards that train the policy rise."
    )

    @property
    def masks_truncated(self) -> bool:
        return self.mask_truncated_completions

    @property
    def entropy_weight(self) -> float:
        return self.entropy_coef

    @property
    def logged_completions(self) -> int:
        return self.log_completions

    @property
    def replaces_equal_groups(self) -> bool:
        """Whether groups whose rewards are all equal are replaced by groups of other prompts."""
        return False

    @property
    def kl_in_reward(self) -> bool:
        """Whether the KL is a part of the rewards, by the sampler's log-probabilities, and not a term of the loss."""
        return False

    @property
    def kept_tokens(self) -> int:
        """The token budget where one update takes the whole sampled batch and no activations are recomputed."""
        one_update = self.batch_uses[0] == 1 and not self.replaces_equal_groups
        return self.token_budget if one_update and not self.gradient_checkpointing else 0

    @model_validator(mode="after")
    def _ahead(self) -> OnlineConfig:
        if self.staleness and self.reward_model_refit is not None:
            raise ValueError(
                f"staleness is {self.staleness} and reward_model_refit is set: batches would be rewarded while the "
                "reward model changes. Use staleness: 0"
            )
        if self.staleness and self.engine.vllm is not None and self.engine.vllm.sleep:
            raise ValueError(
                f"engine: vllm with sleep, and staleness is {self.staleness}: servers would sleep while they sample. "
                "Sleeping is for a card that sampling and training share in turn: use staleness: 0, or sleep: false"
            )
        if self.partial_rollouts is not None and self.staleness < 2:
            raise ValueError(
                f"partial_rollouts is {self.partial_rollouts} and staleness is {self.staleness}: a batch is sampled in "
                "`staleness` segments. Use staleness: 2 or more, or leave partial_rollouts out"
            )
        if self.partial_rollouts is not None and self.partial_rollouts >= self.max_completion_length:
            raise ValueError(
                f"partial_rollouts is {self.partial_rollouts} and would do nothing: max_completion_length is "
                f"{self.max_completion_length}. Give fewer tokens, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _entropy(self) -> OnlineConfig:
        if self.use_adaptive_entropy:
            if not self.entropy_coef_min <= self.entropy_coef <= self.entropy_coef_max:
                raise ValueError(
                    f"entropy_coef is {self.entropy_coef}, the weight of the first step: give one from "
                    f"entropy_coef_min, {self.entropy_coef_min}, to entropy_coef_max, {self.entropy_coef_max}"
                )
            return self
        for key in ("entropy_target", "entropy_coef_delta", "entropy_coef_min", "entropy_coef_max"):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"{key} is {getattr(self, key)!r} and would do nothing: use_adaptive_entropy is off. Leave it out"
                )
        return self

    @model_validator(mode="after")
    def _moving_reference(self) -> OnlineConfig:
        if not self.sync_ref_model:
            for key in ("ref_model_mixup_alpha", "ref_model_sync_steps"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(
                        f"{key} is {getattr(self, key)!r} and would do nothing: sync_ref_model is off. Leave it out"
                    )
            return self
        if not self.needs_reference:
            raise ValueError("sync_ref_model would do nothing: there is no KL term, so no reference. Leave it out")
        if self.iterations > 1:
            raise ValueError(
                f"sync_ref_model and iterations, {self.iterations}, both move the reference: give one of them"
            )
        if 0 < self.max_steps < self.ref_model_sync_steps:
            raise ValueError(
                f"sync_ref_model would do nothing: ref_model_sync_steps is {self.ref_model_sync_steps}, and max_steps "
                f"is {self.max_steps}"
            )
        return self

    @model_validator(mode="after")
    def _whole_iterations(self) -> OnlineConfig:
        steps, uses = self.steps_per_iteration, math.prod(self.batch_uses)
        if steps is None and self.iterations > 1:
            raise ValueError(f"iterations is {self.iterations}: give the length of each as steps_per_iteration")
        if self.stop_on_overoptimization and self.gold_reward is None:
            raise ValueError(
                "stop_on_overoptimization compares with a reward that is not trained on: name a rule as gold_reward"
            )
        if self.reward_model_refit is not None and steps is None and self.reward_model_refit.every is None:
            raise ValueError(
                "reward_model_refit would act after the last step: give steps_per_iteration, or its own `every`"
            )
        if steps is None:
            return self
        if steps % uses:
            raise ValueError(
                f"steps_per_iteration is {steps}, and a sampled batch is used for {uses} steps: an iteration must end "
                f"with a batch; use a multiple of {uses}"
            )
        total = self.iterations * steps
        if self.max_steps not in (-1, total):
            raise ValueError(
                f"max_steps is {self.max_steps}, and {self.iterations} iterations of {steps} steps are {total}: leave "
                "max_steps out"
            )
        self.__dict__["max_steps"] = total  # an assignment would check everything again
        self.model_fields_set.add("max_steps")
        return self

    @property
    def training_temperature(self) -> float:
        return self.temperature

    @property
    def prompts_per_step(self) -> int:
        """Groups in one optimiser step: batch_size / num_generations, rounded up."""
        return -(-self.batch_size // self.num_generations)
