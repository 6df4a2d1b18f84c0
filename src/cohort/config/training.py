"""The settings that every method has."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError, field_serializer, field_validator, model_validator

from cohort.compat import trl as coming_from_trl
from cohort.compat import trl_keys
from cohort.config.arguments import Arguments, NotGiven
from cohort.config.finetuning import FinetuningConfig
from cohort.config.loading import plain, with_dtype
from cohort.config.problems import InvalidConfig, as_meant, explain, nested_keys
from cohort.config.saving import SavingConfig
from cohort.config.sharding import ShardingConfig
from cohort.config.tracking import TrackingConfig
from cohort.world import world_size


class TrainingConfig(ShardingConfig, FinetuningConfig, SavingConfig, TrackingConfig, Arguments):
    """The settings that every method has: optimiser, schedule, batches, precision, saving, evaluation."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), defer_build=True, allow_inf_nan=False)

    output_dir: str = Field("output", description="Where the model, metrics, completions and checkpoints go.")
    seed: int = Field(
        42,
        ge=0,
        lt=2**32,
        description="Seed of the data's order, of sampling, and of Python's, NumPy's and PyTorch's generators.",
    )

    learning_rate: float = Field(1e-6, ge=0, description="Peak of the schedule.")
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
        default_factory=dict, description="Arguments of the schedule, such as {min_lr_rate: 0.1}."
    )
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="Warm-up steps as a fraction of all steps.")
    warmup_steps: int = Field(0, ge=0, description="Warm-up steps; unless 0, they replace warmup_ratio.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW; not applied to norms and biases.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW.")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW.")
    optim: str = Field(
        "adamw_torch_fused",
        description="transformers' name of an optimiser. It is always AdamW: bitsandbytes' 8-bit or paged one, "
        "where the name is of one of those and bitsandbytes is installed; on a CPU nothing is paged.",
    )
    max_grad_norm: float = Field(
        1.0, ge=0, description="Norm to which larger gradients are scaled down. 0: no clipping."
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop",
        description="What happens where a gradient is NaN or infinite. stop: the run ends with an error; skip: the "
        "update is left out, with a warning, and update_skipped is 1 in its metrics.",
    )

    max_nonfinite_updates: int = Field(
        10, ge=1, description="For on_nonfinite: skip. The run stops after so many updates in a row that were left out."
    )
    num_train_epochs: float = Field(1.0, gt=0, description="Passes over the data, where max_steps is not given.")
    max_steps: int = Field(-1, ge=-1, description="Optimiser steps. -1: as many as num_train_epochs needs.")
    per_device_train_batch_size: int = Field(8, ge=1, description="Demonstrations.")
    gradient_accumulation_steps: int = Field(
        1,
        ge=1,
        description="per_device_train_batch_size times this, times the ranks (torchrun), is the batch of one optimiser "
        "step.",
    )
    token_budget: int = Field(
        16384,
        ge=1,
        description="Most tokens of one micro-batch. It sets the memory used; the gradient does not depend on it.",
    )
    shuffle_dataset: bool = Field(True, description="A new order in each epoch.")

    bf16: bool | None = Field(None, description="Autocast to bfloat16. None: where the hardware has fast bfloat16.")
    use_cpu: bool = Field(False, description="Run on the CPU even where there is a GPU.")
    gradient_checkpointing: bool = Field(False, description="Less memory, about a third more time.")
    disable_dropout: bool = Field(True, description="Sets the model's dropout to 0; lora_dropout stays.")
    model_init_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="For AutoModelForCausalLM.from_pretrained, such as {dtype: bfloat16}, which is for frozen weights: "
        "trained ones are float32.",
    )
    trust_remote_code: bool = Field(False, description="Run code that comes with a model.")
    allow_pickle: bool = Field(False, description="Load weights in formats other than safetensors, which can run code.")
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="For the chat template, such as {enable_thinking: false}."
    )

    apply_chat_template: bool | None = Field(
        None,
        description="Make a plain prompt a user turn where the tokenizer has a chat template; false: it reaches the "
        "model as it is. None: true in YAML and on the command line, false in Python, as in TRL.",
    )
    template: str | None = Field(
        None, description="Name of a chat template (qwen, llama3, ...), for a tokenizer without one: docs/data.md"
    )
    replace_chat_template: bool = Field(False, description="`template` replaces the tokenizer's own chat template too.")

    router_aux_loss_coef: float | None = Field(
        None,
        ge=0,
        description="Weight of the load-balancing loss of a mixture of experts. None: the model's own where its "
        "output_router_logits is true (model_init_kwargs), else 0. Switch Transformer, arXiv 2101.03961",
    )

    max_prompt_length: int | None = Field(
        None,
        ge=1,
        description="Most tokens of a prompt; longer ones are counted, and dropped or cut. None: the model's "
        "positions less one.",
    )
    truncation: Literal["drop", "cut"] = Field(
        "drop",
        description="What happens to rows that are too long. drop: they are left out; cut: a prompt keeps its last "
        "tokens, a demonstration its first.",
    )

    logging_steps: float = Field(
        1,
        gt=0,
        description="Steps between on_log calls and the rows that are printed without a terminal, below 1 as a "
        "fraction of all steps. Where it is not set, ten rows of a run are printed. metrics.jsonl has every step.",
    )
    disable_tqdm: bool = Field(
        False, description="true: no live display and no moving lines on a terminal; each on_log prints a row."
    )
    log_level: Literal["passive", "detail", "debug", "info", "warning", "error", "critical"] = Field(
        "passive",
        description="Level of the logger `cohort`. passive: as the program has set it, else info. Rows are printed at "
        "every level.",
    )
    logged_groups: int = Field(
        1, ge=0, description="Whole groups of each batch in groups.jsonl, of demonstrations and pairs too."
    )
    profile: bool = Field(
        False, description="Trace two steps: trace.json for Perfetto and profile.txt in output_dir, printed too."
    )
    push_to_hub: bool = Field(False, description="Upload the final model to the Hugging Face hub: needs a token.")
    hub_model_id: str | None = Field(
        None, description="Repository on the hub, NAME or OWNER/NAME. None: output_dir's name."
    )
    hub_private_repo: bool | None = Field(
        None, description="Whether a newly created repository is private. None: the owner's setting."
    )
    eval_strategy: Literal["no", "steps", "epoch"] = Field(
        "no",
        description="steps: evaluate every eval_steps; epoch: after each pass over the data; both also at the end.",
    )
    eval_steps: float = Field(50, gt=0, description="Steps between evaluations, below 1 as a fraction of all steps.")
    eval_on_start: bool = Field(False, description="Evaluate before the first step too.")
    num_generations_eval: int = Field(1, ge=1, description="Completions of each held-out problem.")
    eval_temperature: float = Field(0.0, ge=0, description="0: greedy, one completion a problem.")
    fast_paths: Literal["auto", "off"] = Field(
        "auto",
        description="off: the model's own forward pass on padded rows and transformers' generate, to find the cause of "
        "a difference.",
    )
    max_rows: int = Field(256, ge=1, description="Most completions decoded at the same time.")
    max_completion_length: int = Field(1024, ge=1, description="Most tokens of a completion.")

    def __init__(self, output_dir: str | None = None, /, **values: Any):
        """Keys of TRL and transformers are accepted too: docs/coming-from-trl.md. Raises InvalidConfig."""
        settings = {key: value for key, value in values.items() if not isinstance(value, NotGiven)}
        settings = settings if output_dir is None else {"output_dir": output_dir, **settings}
        try:
            super().__init__(**coming_from_trl.translate(settings, type(self).model_fields))
            self._accept(settings)
        except ValidationError as error:
            problems = error.errors()
            keys = [*type(self).model_fields, *nested_keys(type(self)), *trl_keys.KEYS]
            lines = [explain(problem, keys) for problem in problems]
            raise InvalidConfig(f"{type(self).__name__}: " + "\n".join(lines), problems) from None

    @field_validator("eval_strategy", "save_strategy", mode="before")
    @classmethod
    def _yaml_no(cls, value: Any) -> Any:
        return "no" if value is False else value  # YAML reads a bare `no` as false

    @field_validator("fast_paths", mode="before")
    @classmethod
    def _yaml_off(cls, value: Any) -> Any:
        return "off" if value is False else value  # and a bare `off` too

    @model_validator(mode="before")
    @classmethod
    def _as_meant(cls, values: Any) -> Any:
        return as_meant(cls, values)

    @field_validator("max_steps")
    @classmethod
    def _some(cls, value: int) -> int:
        if value == 0:
            raise ValueError("there must be one step at least; -1 takes as many as num_train_epochs needs")
        return value

    @field_validator("logging_steps", "eval_steps", "save_steps")
    @classmethod
    def _whole(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError("give a whole number of steps, or below 1 a fraction of all steps")
        return value

    @model_validator(mode="after")
    def _best_is_looked_for(self) -> TrainingConfig:
        asks = "load_best_model_at_end" if self.load_best_model_at_end else "save_strategy: best"
        if self.eval_strategy == "no" and (self.load_best_model_at_end or self.save_strategy == "best"):
            raise ValueError(f"{asks} compares evaluations, and eval_strategy is no: set it to steps or epoch")
        if self.load_best_model_at_end and self.save_strategy == "no":
            raise ValueError("load_best_model_at_end takes a checkpoint, and save_strategy: no saves none")
        return self

    @field_validator("model_init_kwargs")
    @classmethod
    def _one_dtype(cls, value: dict[str, Any]) -> dict[str, Any]:
        return with_dtype(value)

    @field_serializer("model_init_kwargs", "chat_template_kwargs", "lr_scheduler_kwargs", when_used="json")
    def _plain(self, value: dict[str, Any]) -> Any:
        return plain(value)

    @property
    def batch_size(self) -> int:
        """Sequences with loss in one optimiser step, of all processes together."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * world_size()

    @property
    def batch_uses(self) -> tuple[int, int]:
        """(optimiser steps among which a batch of the source is divided, how often each of those parts is used)."""
        return 1, 1

    @property
    def training_temperature(self) -> float:
        """Temperature of the trained log-probabilities: an online method trains the distribution that it samples."""
        return 1.0

    # The loop and the planner read the properties below of every configuration; classes with a key for one return it.

    @property
    def max_sequence_length(self) -> int | None:
        """Most tokens of prompt and completion in the data. None: the model's positions."""
        return None

    @property
    def longest_sequence(self) -> int | None:
        """Most tokens of a sampled sequence and of one in the data, where keys limit both; else None."""
        lengths = [self.max_prompt_length and self.max_prompt_length + self.max_completion_length]
        if "max_length" in type(self).model_fields:
            lengths.append(self.max_sequence_length)
        return None if None in lengths else max(n for n in lengths if n is not None)

    @property
    def masks_truncated(self) -> bool:
        """Whether a completion that hit the length limit has no loss."""
        return False

    @property
    def entropy_weight(self) -> float:
        """Weight of the entropy bonus in the objective."""
        return 0.0

    @property
    def trained_fraction(self) -> float:
        """Fraction of the step's tokens, those of the highest entropy, that are trained on."""
        return 1.0

    @property
    def corrects_sampler(self) -> bool:
        """Whether tokens are weighted by the ratio of the policy's to the sampler's probability."""
        return False

    @property
    def takes_one_advantage(self) -> bool:
        """Whether the loss takes one advantage for a completion, the same for all its tokens."""
        return False

    @property
    def imitation_weight(self) -> float:
        """Weight of the negative log-likelihood of correct completions."""
        return 0.0

    @property
    def logged_completions(self) -> int:
        """Completions of each step written to completions.jsonl."""
        return 0

    @property
    def learns_from_rewards(self) -> bool:
        """Whether the method needs reward_funcs to train; else they are optional, and only logged."""
        return False

    @property
    def needs_reference(self) -> bool:
        """Whether log-probabilities under the reference enter reward or loss while the policy is sampled."""
        return False

    @property
    def kept_tokens(self) -> int:
        """Most sampled tokens whose activations sampling may keep for the update; 0: none are kept."""
        return 0
