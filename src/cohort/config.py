"""One typed configuration. Keys are TRL's wherever TRL has one; defaults are DeepSeekMath's where it gives one.

Nothing here imports torch or transformers, so that a mistake in a configuration is told at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cohort import coming_from_llama_factory, coming_from_trl, trl_keys
from cohort.types import UserError

DSM = "DeepSeekMath, arXiv 2402.03300, section 4.2"


class InvalidConfig(UserError):
    """A configuration with mistakes; `problems` are pydantic's."""

    def __init__(self, message: str, problems: list[Any]):
        super().__init__(message)
        self.problems = problems


class TrainingConfig(BaseModel):
    """What every method shares: optimiser, schedule, batches, precision, saving, evaluation."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    output_dir: str = Field("output", description="Where the model, metrics, completions and checkpoints go.")
    seed: int = Field(42, description="Order of the data, sampling, LoRA's start.")

    learning_rate: float = Field(1e-6, ge=0, description="The highest of the schedule.")
    lr_scheduler_type: Literal[
        "linear",
        "cosine",
        "constant",
        "constant_with_warmup",
        "cosine_with_restarts",
        "cosine_with_min_lr",
        "cosine_warmup_with_min_lr",
        "polynomial",
        "inverse_sqrt",
        "warmup_stable_decay",
    ] = Field("linear", description="transformers' schedule of that name.")
    lr_scheduler_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="The schedule's own settings, such as {min_lr_rate: 0.1}."
    )
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="Share of the steps.")
    warmup_steps: int = Field(0, ge=0, description="Wins over warmup_ratio where it is not 0.")
    weight_decay: float = Field(0.0, ge=0, description="Not on norms and biases.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW.")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW.")
    optim: str = Field(
        "adamw_torch_fused",
        description="transformers' name. AdamW always; an 8-bit one (bitsandbytes) takes its place on CUDA by name.",
    )
    max_grad_norm: float = Field(1.0, ge=0, description="0 leaves gradients as they are.")

    num_train_epochs: float = Field(1.0, gt=0, description="Passes over the data, where max_steps is not given.")
    max_steps: int = Field(-1, description="Optimiser steps; -1 takes num_train_epochs.")
    per_device_train_batch_size: int = Field(8, ge=1, description="Demonstrations.")
    gradient_accumulation_steps: int = Field(
        1, ge=1, description="Times per_device_train_batch_size is the batch of one optimiser step."
    )
    token_budget: int = Field(
        16384,
        ge=1,
        description="Tokens of one micro-batch: a matter of memory only, never of the gradient.",
    )
    shuffle_dataset: bool = Field(True, description="An order of its own in each epoch.")

    bf16: bool | None = Field(None, description="None: where the hardware has fast bfloat16.")
    use_cpu: bool = Field(False, description="Even where there is a GPU.")
    gradient_checkpointing: bool = Field(False, description="Less memory, about a third more time.")
    disable_dropout: bool = Field(True, description="Sets the model's dropout to 0.")
    model_init_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="For AutoModelForCausalLM.from_pretrained, such as {dtype: bfloat16}."
    )
    trust_remote_code: bool = Field(False, description="Run code that comes with a model.")
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="For the chat template, such as {enable_thinking: false}."
    )

    template: str | None = Field(
        None, description="Chat template by name (qwen, llama3, ...), where the tokenizer has none: docs/data.md"
    )

    finetuning_type: Literal["full", "lora", "freeze"] = Field(
        "full", description="All weights, an adapter through peft, or some layers."
    )
    freeze_trainable_layers: int = Field(
        2, description="For freeze: the last layers that are trained; negative: the first."
    )
    freeze_trainable_modules: list[str] = Field(
        default_factory=list, description="For freeze: only these modules of them, such as mlp; none: all."
    )
    freeze_extra_modules: list[str] = Field(
        default_factory=list, description="For freeze: modules beside the layers that are trained too, such as norm."
    )
    lora_rank: int = Field(8, ge=1, description="LoRA's r.")
    lora_alpha: int | None = Field(None, description="None: 2 * lora_rank.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before LoRA's A.")
    lora_target: str | list[str] = Field("all", description="'all': every linear layer; else names.")
    use_dora: bool = Field(False, description="DoRA, arXiv 2402.09353")
    use_rslora: bool = Field(False, description="Rank-stabilised LoRA, arXiv 2312.03732")
    modules_to_save: list[str] = Field(
        default_factory=list, description="Modules beside LoRA's that are trained whole and saved with the adapter."
    )

    max_prompt_length: int | None = Field(
        None,
        ge=1,
        description="Longer prompts are counted, and dropped or cut. None: what the model's positions leave.",
    )
    truncation: Literal["drop", "cut"] = Field(
        "drop", description="Of what is too long: left out, or a prompt keeps its end, a demonstration its beginning."
    )

    logging_steps: float = Field(
        1, gt=0, description="Steps between on_log calls, or a share of all; metrics.jsonl has every step."
    )
    report_to: list[str] = Field(default_factory=list, description="Beside metrics.jsonl and the plots: tensorboard.")
    logging_dir: str | None = Field(None, description="Of the trackers. None: runs/ in output_dir.")
    save_strategy: Literal["no", "steps", "epoch"] = Field("steps", description="Checkpoints during the run.")
    save_steps: float = Field(0, ge=0, description="Steps between checkpoints, or a share of all. 0: none.")
    save_only_model: bool = Field(False, description="Checkpoints without optimiser state: a run cannot resume.")
    save_total_limit: int | None = Field(2, ge=1, description="Newest checkpoints kept; null: all.")
    resume_from_checkpoint: bool | str = Field(
        False, description="true: the newest in output_dir (from the start where there is none); or a path."
    )
    eval_strategy: Literal["no", "steps", "epoch"] = Field(
        "no", description="steps: every eval_steps; epoch: after each pass; both at the end too."
    )
    eval_steps: float = Field(50, gt=0, description="Steps between evaluations, or a share of all.")
    eval_on_start: bool = Field(False, description="Evaluate before the first step too.")
    num_generations_eval: int = Field(1, ge=1, description="Completions of each held-out problem.")
    eval_temperature: float = Field(0.0, ge=0, description="0: greedy, one completion a problem.")
    max_rows: int = Field(256, ge=1, description="Completions decoded side by side.")
    max_completion_length: int = Field(1024, ge=1, description="Tokens a completion may have.")

    def __init__(self, output_dir: str | None = None, /, **values: Any):
        """Keys of TRL and transformers are taken too: docs/coming-from-trl.md. Raises InvalidConfig."""
        given = values if output_dir is None else {"output_dir": output_dir, **values}
        try:
            super().__init__(**coming_from_trl.translate(given, type(self).model_fields))
        except ValidationError as error:
            problems = error.errors()
            known = [*type(self).model_fields, *trl_keys.KEYS]
            lines = [_explain(problem, known) for problem in problems]
            raise InvalidConfig(f"{type(self).__name__}: " + "\n".join(lines), problems) from None

    @field_validator("eval_strategy", "save_strategy", mode="before")
    @classmethod
    def _yaml_no(cls, value: Any) -> Any:
        return "no" if value is False else value  # YAML reads a bare `no` as false

    @property
    def batch_size(self) -> int:
        """Sequences with loss in one optimiser step, on one process."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def batch_uses(self) -> tuple[int, int]:
        """(optimiser steps that share a batch of the source, times each of those parts is used)."""
        return 1, 1

    @property
    def training_temperature(self) -> float:
        """Of the log-probabilities that are trained: an online method trains the distribution it samples."""
        return 1.0


class SFTConfig(TrainingConfig):
    """Supervised fine-tuning on demonstrations: the row `sft` of the table of methods."""

    learning_rate: float = Field(2e-5, ge=0, description="The highest of the schedule.")
    max_length: int | None = Field(
        None,
        ge=2,
        description="Tokens of prompt and completion; see truncation. None: the model's positions.",
    )


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


class RunConfig(BaseModel):
    """What a YAML file says beside the method's own settings: which model, data and rewards."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    method: Literal[
        "sft",
        "rft",
        "online_rft",
        "dpo",
        "ppo",
        "grpo",
        "grpo_process",
        "rloo",
        "opo",
        "pass_at_k",
        "reinforce++",
    ] = Field("grpo", description="Row of the table of methods.")
    model: str = Field(description="Hub name or path of a causal language model.")
    dataset: str = Field(description="File (JSON, JSONL, CSV, Parquet), directory, hub name, or reasoning_gym:TASK.")
    dataset_split: str = Field("train", description="Split of a hub data set.")
    dataset_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="For datasets.load_dataset or reasoning_gym.create_dataset, such as {name: main}.",
    )
    max_samples: int | None = Field(None, ge=1, description="Rows to take from the start.")
    eval_dataset: str | None = Field(None, description="Held-out data, named as dataset is.")
    eval_split: str = Field("test", description="Split of a hub data set.")
    eval_samples: int | None = Field(None, ge=1, description="Held-out rows to take.")
    columns: dict[str, str] = Field(default_factory=dict, description="Our column -> the file's: {prompt: question}")
    dataset_dir: str | None = Field(
        None, description="Folder of a LLaMA-Factory dataset_info.json; dataset then names its entries."
    )
    val_size: float = Field(
        0, ge=0, description="Rows of dataset held out where there is no eval_dataset: count or share."
    )
    system_prompt: str | None = Field(None, description="Makes plain prompts conversational; '' for no system turn.")
    reward_funcs: list[str | dict[str, Any]] = Field(
        default_factory=list,
        description="Names, or {name: …, weight: …, gate: …} (docs/rewards.md). For sft, and dpo on preference rows: "
        "what evaluation scores.",
    )

    @model_validator(mode="before")
    @classmethod
    def _split(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("reward_funcs"), str):
            names = [name.strip() for name in values["reward_funcs"].split(",")]
            values = {**values, "reward_funcs": [name for name in names if name]}
        elif isinstance(values, dict) and isinstance(values.get("reward_funcs"), dict):
            values = {**values, "reward_funcs": [values["reward_funcs"]]}
        return values


Config = TypeVar("Config", bound=BaseModel)


def build(kind: type[Config], values: dict[str, Any], where: str, known: list[str] | None = None) -> Config:
    """`kind(**values)`, with every problem told in one UserError: the key, what was seen, what to do."""
    try:
        return kind(**values)
    except ValidationError as error:
        problems: list[Any] = list(error.errors())
    except InvalidConfig as error:
        problems = error.problems
    known = [*(known or kind.model_fields), *trl_keys.KEYS]
    raise UserError(f"{where}: " + "\n".join(_explain(problem, known) for problem in problems))


def _explain(problem: Any, known: list[str]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return unknown_key(key, known)
    if problem["type"] == "missing":
        return f"`{key}` is missing: add it"
    message = problem["msg"].removeprefix("Value error, ")
    return f"`{key}` is {problem['input']!r}: {message}" if key else message


def unknown_name(name: str, known: Iterable[str]) -> str:
    """What to do about a name that is not one of `known`."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}"


def unknown_key(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"unknown key `{key}`" + (f": did you mean `{near[0]}`?" if near else "; see docs/configuration.md")


def read_run(path: str | Path, overrides: list[str] | None = None) -> tuple[RunConfig, TrainingConfig]:
    """Read a YAML file and `key=value` overrides. Raises UserError for anything it cannot use."""
    values = read_values(path, overrides)
    return split_run(coming_from_llama_factory.translate(values, str(path)), str(path))


def read_values(path: str | Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """A YAML file's mapping with the overrides in it. Raises UserError for what is no mapping or no override."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of a YAML configuration, such as examples/gsm8k.yaml")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected `key: value` lines, found {type(values).__name__}")
    for override in overrides or []:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"{override!r} is not an override: write key=value")
        values[key] = _override_value(key, text)
    return {str(key): value for key, value in values.items()}


def _override_value(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"override {key}={text}: the value is not readable as YAML: {error}") from None


def split_run(values: dict[str, Any], where: str) -> tuple[RunConfig, TrainingConfig]:
    """Deal one flat mapping out to the run's keys and the method's."""
    method = values.get("method", "grpo")
    kind = METHOD_CONFIGS.get(method, GRPOConfig)
    known = [*RunConfig.model_fields, *kind.model_fields]
    of_run = {key: value for key, value in values.items() if key in RunConfig.model_fields}
    of_method = {key: value for key, value in values.items() if key not in RunConfig.model_fields}
    return build(RunConfig, of_run, where, known), build(kind, of_method, where, known)
