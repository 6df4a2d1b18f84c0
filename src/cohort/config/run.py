"""A run as a YAML file describes it: model, data and rewards, and the method's settings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cohort.compat import llama_factory as coming_from_llama_factory
from cohort.compat import trl_keys, trl_yaml
from cohort.compat.llama_factory_keys import KEYS
from cohort.config.methods import ConfigOf, built_in_config
from cohort.config.problems import as_meant, build, unknown_key
from cohort.config.training import TrainingConfig
from cohort.config.yaml_text import YamlError, parsed
from cohort.types import UserError

NO_FILE = "-"
"""In the place of a path: there is no file, all keys are overrides."""


SAMPLING = {"temperature": (0, math.inf), "top_p": (0, 1), "top_k": (0, math.inf), "min_p": (0, 1)}
"""Keys of predict_sampling -> the lowest and the highest value."""


class RunConfig(BaseModel):
    """The keys of a YAML file beside the method's settings: model, data and rewards."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), defer_build=True, allow_inf_nan=False)

    method: str = Field(
        "grpo",
        description="A row of the table of methods (`cohort methods`), a row of your own as path/to/file.py:row "
        "(docs/new-method.md), `reward_model` or `process_reward_model`.",
    )
    model: str = Field(description="Hub name or path of a causal language model; of an encoder too for a reward model.")
    model_sizes: dict[str, Any] = Field(
        default_factory=dict,
        description="For cohort plan only: values of the model's config.json, where that cannot be read, such as "
        "{model_type: qwen2, hidden_size: 3584, ...}.",
    )
    dataset: str = Field(description="File (JSON, JSONL, CSV, Parquet), directory, hub name, or reasoning_gym:TASK.")
    dataset_split: str = Field("train", description="Split of a hub data set.")
    dataset_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="For datasets.load_dataset or reasoning_gym.create_dataset, such as {name: main}.",
    )
    max_samples: int | None = Field(None, ge=1, description="Rows to take from the start.")
    eval_dataset: str | None = Field(None, description="Held-out data, named as for dataset.")
    eval_split: str = Field("test", description="Split of a hub data set.")
    eval_samples: int | None = Field(None, ge=1, description="Held-out rows to take.")
    columns: dict[str, str] = Field(default_factory=dict, description="Our column -> the file's: {prompt: question}")
    dataset_dir: str | None = Field(
        None, description="Folder of a LLaMA-Factory dataset_info.json; dataset then names its entries."
    )
    val_size: float = Field(
        0, ge=0, description="Rows of dataset held out where there is no eval_dataset: count or share."
    )
    system_prompt: str | None = Field(
        None, description="Turns plain prompts into conversations with this system turn; '': without a system turn."
    )
    reward_funcs: list[str | dict[str, Any]] = Field(
        default_factory=list,
        description="Names, or {name: …, weight: …, gate: …} (docs/rewards.md). For sft, and dpo on preference rows: "
        "rewards of the evaluation only.",
    )
    do_train: bool = Field(True, description="Train.")
    do_eval: bool = Field(
        False, description="Evaluate the held-out rows at the end, or without training: eval_results.json."
    )
    do_predict: bool = Field(
        False,
        description="Write one completion of each held-out row, by the trained model or without training: "
        "generated_predictions.jsonl, predict_results.json.",
    )
    predict_sampling: dict[str, float] = Field(
        default_factory=dict, description="temperature, top_p, top_k and min_p of do_predict. {}: the likeliest token."
    )

    @model_validator(mode="after")
    def _does_something(self) -> RunConfig:
        if not (self.do_train or self.do_eval or self.do_predict):
            raise ValueError("do_train, do_eval and do_predict are false: set one of them to true")
        if self.val_size > 1 and self.val_size != int(self.val_size):
            raise ValueError(f"val_size is {self.val_size:g}: give a whole number of rows, or below 1 a share of them")
        for name, value in self.predict_sampling.items():
            if name not in SAMPLING:
                raise ValueError(f"predict_sampling has {name!r}: {', '.join(SAMPLING)} are read")
            low, high = SAMPLING[name]
            if not low <= value <= high or (name == "top_k" and value != int(value)) or (name == "top_p" and not value):
                bounds = f"from {low:g} to {high:g}" if high < math.inf else f"{low:g} or more"
                raise ValueError(f"predict_sampling: {name} is {value:g}: it must be {bounds}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _split(cls, values: Any) -> Any:
        values = as_meant(cls, values)
        if isinstance(values, dict) and isinstance(values.get("reward_funcs"), str):
            names = [name.strip() for name in values["reward_funcs"].split(",")]
            values = {**values, "reward_funcs": [name for name in names if name]}
        elif isinstance(values, dict) and isinstance(values.get("reward_funcs"), dict):
            values = {**values, "reward_funcs": [values["reward_funcs"]]}
        return values


def read_run(
    path: str | Path, overrides: list[str] | None = None, config_of: ConfigOf = built_in_config
) -> tuple[RunConfig, TrainingConfig]:
    """Read a YAML file and `key=value` overrides. Raises UserError for anything it cannot use.

    `config_of` finds the class of the method's settings; the default knows the built-in methods alone.
    """
    values, where = read_values(path, overrides), place(path)
    if coming_from_llama_factory.is_llama_factory(values) and not trl_yaml.is_trl(values):
        values = coming_from_llama_factory.translate(values, where)
    else:
        values = trl_yaml.translate(values, where)
    return split_run(values, where, config_of)


def place(path: str | Path) -> str:
    """How messages name the configuration."""
    return "command line" if str(path) == NO_FILE else str(path)


def read_values(path: str | Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """A YAML file's mapping with the overrides applied. Raises UserError for a file that is not a mapping and for a
    wrong override."""
    values = {} if str(path) == NO_FILE else _of_file(Path(path))
    for override in overrides or []:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"{override!r} is not an override: write key=value")
        values[_name_in(values, key)] = _override_value(key, text)
    return {str(key): value for key, value in values.items()}


def _of_file(path: Path) -> dict[Any, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of a YAML configuration, such as examples/gsm8k.yaml")
    try:
        values = parsed(path.read_text(encoding="utf-8-sig"))
    except (YamlError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected `key: value` lines, found {type(values).__name__}")
    return values


def _name_in(values: dict[Any, Any], key: str) -> str:
    """The key itself, or the file's other name for it, which an override replaces: model for model_name_or_path."""
    return next((name for name in (key, *values) if name in values and _ours(name) == _ours(key)), key)


def _ours(name: Any) -> Any:
    """The key of ours that a name of TRL's or LLaMA-Factory's stands for. LLaMA-Factory's `stage` says too whose file
    it is, and stays."""
    theirs = KEYS.get(name) if name != "stage" else None
    return trl_yaml.OURS.get(name) or (theirs.ours if theirs is not None else None) or name


def _override_value(key: str, text: str) -> Any:
    try:
        return parsed(text)
    except YamlError as error:
        raise UserError(f"override {key}={text}: the value is not readable as YAML: {error}") from None


def split_run(
    values: dict[str, Any], where: str, config_of: ConfigOf = built_in_config
) -> tuple[RunConfig, TrainingConfig]:
    """Split one flat mapping into the run's keys and the method's. `where` begins the messages."""
    method = values.get("method", "grpo")
    try:
        kind = config_of(method if isinstance(method, str) else "grpo")  # RunConfig refuses other types
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    keys = [*RunConfig.model_fields, *kind.model_fields]
    of_run = {key: value for key, value in values.items() if key in RunConfig.model_fields}
    of_method = {key: value for key, value in values.items() if key not in RunConfig.model_fields}
    if of_method.get("apply_chat_template") is None:
        of_method["apply_chat_template"] = True
    try:
        run = build(RunConfig, of_run, where, keys)
    except UserError as error:
        # A misspelt `model` is missing here and unknown there: both are told.
        unknown = [unknown_key(key, keys) for key in of_method if not _is_known(key, kind)]
        raise UserError("\n".join([str(error), *unknown])) from None
    return run, build(kind, of_method, where, keys)


def _is_known(key: str, kind: type[TrainingConfig]) -> bool:
    return key in kind.model_fields or key in trl_keys.KEYS or key in trl_keys.RENAMED
