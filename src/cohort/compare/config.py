"""The configuration of `cohort compare`.

Keys at the top are a run's and apply to all methods; `sft:` holds keys of the training of the start, `methods:` keys of
single methods. Nothing here imports torch or transformers, so mistakes are reported at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cohort.config import (
    METHOD_CONFIGS,
    ConfigOf,
    DPOConfig,
    GRPOConfig,
    OnlineConfig,
    RunConfig,
    SampledConfig,
    SFTConfig,
    TrainingConfig,
    build,
    built_in_config,
    read_values,
    unknown_key,
    unknown_name,
)
from cohort.types import UserError


class CompareConfig(BaseModel):
    """Keys of a comparison in addition to a run's."""

    model_config = ConfigDict(extra="forbid")

    task: Literal["chains"] | None = Field(None, description="A built-in task in place of `model` and `dataset`.")
    task_kwargs: dict[str, Any] = Field(default_factory=dict, description="The task's settings.")
    sft: dict[str, Any] | None = Field(
        None, description="Keys of the SFT that makes the start. None: `model` is the start."
    )
    methods: dict[str, dict[str, Any]] = Field(default_factory=dict, description="Keys of single methods.")
    correct: str = Field("accuracy", description="The reward function that says what is correct: 0 or 1.")
    final_generations: int = Field(
        16, ge=1, description="K: completions of each held-out problem for pass@k and maj@k, before and after."
    )


class ChainsConfig(BaseModel):
    """The demo's task. Each seed has its own problems, teacher and start."""

    model_config = ConfigDict(extra="forbid")

    operations: int = Field(6, ge=1, description="Operations of a chain.")
    mistaught: float = Field(0.5, ge=0, le=1, description="Share of the 200 facts that the teacher gets wrong.")
    rate: float = Field(0.6, ge=0, le=1, description="Share of the uses of such a fact in which the teacher is wrong.")
    problems: int = Field(6000, ge=1, description="Number of demonstrations, and of problems to train on.")


HELD_OUT = 300
"""Held-out chains if eval_samples is not given."""
DATA_KEYS = ("dataset", "dataset_dir", "dataset_split", "dataset_kwargs", "max_samples", "columns", "system_prompt")
"""A run's keys that `sft:` may set."""
KEYS_WITH_TASK = ("method", "reward_funcs", "eval_samples")
"""A run's keys that may be set with a built-in task."""
REFUSED = {
    "method": "--methods says which methods run",
    "resume_from_checkpoint": "a comparison always resumes from what its output_dir holds",
}


@dataclass(frozen=True)
class Comparison:
    """A checked comparison: everything but the seeds and folders of single runs."""

    output_dir: Path
    seeds: list[int]
    run: RunConfig
    """Model, data and rewards; with a built-in task, model and dataset are the task's name."""
    chains: ChainsConfig | None
    shared: OnlineConfig
    sft: tuple[RunConfig, SFTConfig] | None
    methods: dict[str, str]
    """Label of each method, which is the folder of its runs -> its name, or the place of the user's own row."""
    configs: dict[str, SampledConfig]
    """By label, as `rewards`."""
    rewards: dict[str, list[str | dict[str, Any]]]
    correct: str
    final_generations: int
    budget: int
    """Completions that each method samples."""


def read_comparison(
    path: str | Path,
    overrides: Sequence[str],
    methods: Sequence[str],
    seeds: int,
    config_of: ConfigOf = built_in_config,
) -> Comparison:
    """Read a YAML file and overrides (`sft.max_steps=400` sets a nested key). Raises UserError for unknown keys,
    impossible values, and methods that would sample different numbers of completions."""
    values = {"apply_chat_template": True, **_nested(read_values(path, list(overrides)))}
    where = str(path)
    kinds = _kinds(methods, config_of)
    for key, why in REFUSED.items():
        if key in values:
            raise UserError(f"{where}: leave `{key}` out: {why}")
    allowed = [*CompareConfig.model_fields, *RunConfig.model_fields, *_keys_of_methods(kinds)]
    unknown = next((key for key in values if key not in allowed), None)
    if unknown is not None:
        raise UserError(f"{where}: {unknown_key(unknown, allowed)}")
    compare = build(CompareConfig, _only(values, CompareConfig), where)
    chains = _chains(compare, values, where)
    run_values = _only(values, RunConfig)
    if chains is not None:
        run_values = {"eval_samples": HELD_OUT, **run_values, "model": "chains", "dataset": "chains"}
    run = build(RunConfig, run_values, where)
    if chains is None and run.eval_dataset is None and not run.val_size:
        raise UserError(f"{where}: give `eval_dataset` or `val_size`: methods are compared on held-out problems")
    settings = {"save_steps": 10, **values, "eval_strategy": values.get("eval_strategy", "steps")}
    settings.setdefault("eval_on_start", True)
    shared = build(OnlineConfig, _only(settings, OnlineConfig), where)
    _check_shared(shared, where)
    configs, rewards = _of_methods(compare, kinds, settings, run, where)
    comparison = Comparison(
        output_dir=Path(shared.output_dir),
        seeds=[shared.seed + i for i in range(seeds)],
        run=run,
        chains=chains,
        shared=shared,
        sft=_sft(compare, values, run, where),
        methods={label_of(name): name for name in methods},
        configs=configs,
        rewards=rewards,
        correct=compare.correct,
        final_generations=compare.final_generations,
        budget=completions_after(shared, shared.max_steps),
    )
    _check_budgets(comparison, where)
    return comparison


def completions_after(config: OnlineConfig, step: int) -> int:
    """Completions that an online method has sampled after `step` optimiser steps."""
    chunks, iterations = config.batch_uses
    batches = -(-step // (chunks * iterations))
    return batches * config.prompts_per_step * chunks * config.num_generations


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """{"sft.max_steps": 4} -> {"sft": {"max_steps": 4}}; a nested key replaces the file's."""
    nested: dict[str, Any] = {key: value for key, value in values.items() if "." not in key}
    for key, value in values.items():
        if "." in key:
            *path, last = key.split(".")
            inner = nested
            for part in path:
                if not isinstance(inner.get(part) or {}, dict):
                    raise UserError(f"override {key}: `{part}` is {inner[part]!r} and has no keys")
                inner[part] = dict(inner.get(part) or {})
                inner = inner[part]
            inner[last] = value
    return nested


def _only(values: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key in kind.model_fields}


def _keys_of_methods(kinds: dict[str, type[SampledConfig]]) -> list[str]:
    every = (*METHOD_CONFIGS.values(), *kinds.values())
    return list(dict.fromkeys(key for kind in every for key in kind.model_fields))


def label_of(method: str) -> str:
    """The method's name in tables, folders and `methods:`: "raft" for "my_methods.py:raft"."""
    return method.rpartition(":")[2]


def _kinds(methods: Sequence[str], config_of: ConfigOf) -> dict[str, type[SampledConfig]]:
    """Label -> class of settings. Raises UserError for methods that cannot be compared."""
    kinds = {}
    for name in methods:
        if name == "sft":
            raise UserError("--methods sft: SFT makes the start that the methods share, and is in every table")
        try:
            kind = config_of(name)
        except UserError as error:
            raise UserError(f"--methods: {error}") from None
        if not issubclass(kind, SampledConfig):
            raise UserError(f"--methods {name}: its settings are a {kind.__name__}: it samples nothing to compare")
        kinds[label_of(name)] = kind
    if len(kinds) < len(methods):
        raise UserError(f"--methods {','.join(methods)}: name each method once")
    return kinds


def _chains(compare: CompareConfig, values: dict[str, Any], where: str) -> ChainsConfig | None:
    if compare.task is None:
        if compare.task_kwargs:
            raise UserError(f"{where}: `task_kwargs` is for a built-in task: add `task: chains`, or leave it out")
        return None
    surplus = [key for key in values if key in RunConfig.model_fields and key not in KEYS_WITH_TASK]
    if surplus:
        raise UserError(f"{where}: task: {compare.task} brings its own model and data: leave `{surplus[0]}` out")
    if compare.sft is None:
        raise UserError(f"{where}: task: {compare.task} starts from random weights: set under `sft:` how SFT trains it")
    chains = build(ChainsConfig, compare.task_kwargs, f"{where}: task_kwargs")
    needed, possible = 2 * chains.problems + (values.get("eval_samples") or HELD_OUT), 10 * 20**chains.operations
    if needed > possible:
        raise UserError(
            f"{where}: {needed} different chains are needed (twice `problems`, and eval_samples) and chains of "
            f"{chains.operations} operations are {possible}: lower `problems` in task_kwargs"
        )
    return chains


def _check_shared(shared: OnlineConfig, where: str) -> None:
    if shared.max_steps < 1:
        raise UserError(
            f"{where}: `max_steps` is {shared.max_steps}: give the steps that the methods share, such as 30"
        )
    if shared.eval_strategy != "steps":
        raise UserError(f"{where}: `eval_strategy` is {shared.eval_strategy}: methods are compared along their curves")


def _of_methods(
    compare: CompareConfig,
    kinds: dict[str, type[SampledConfig]],
    shared: dict[str, Any],
    run: RunConfig,
    where: str,
) -> tuple[dict[str, SampledConfig], dict[str, list[str | dict[str, Any]]]]:
    """(configuration, rewards) of each method: the shared keys that it has, replaced by its own."""
    for name in compare.methods:
        if name not in {**METHOD_CONFIGS, **kinds} or name == "sft":
            able = [method for method in (*METHOD_CONFIGS, *kinds) if method != "sft"]
            raise UserError(f"{where}: methods: {name}: no such method{unknown_name(name, able)}")
    configs: dict[str, SampledConfig] = {}
    rewards: dict[str, list[str | dict[str, Any]]] = {}
    for name, kind in kinds.items():
        values, place = dict(compare.methods.get(name) or {}), f"{where}: methods: {name}"
        _check_no_seed(values, place)
        listed = {"reward_funcs": values.pop("reward_funcs")} if "reward_funcs" in values else {}
        rewards[name] = build(RunConfig, {"model": "", "dataset": "", **listed}, place).reward_funcs or run.reward_funcs
        if not rewards[name]:
            raise UserError(f"{place}: `reward_funcs` is missing: name at least {compare.correct}")
        if issubclass(kind, DPOConfig) and {**shared, **values}.get("dpo_pairs") is None:
            raise UserError(f"{where}: dpo would not sample: add `methods: {{dpo: {{dpo_pairs: best-worst}}}}`")
        configs[name] = build(kind, {**_only(shared, kind), **values}, place)
    return configs, rewards


def _check_no_seed(values: dict[str, Any], where: str) -> None:
    if "seed" in values or "output_dir" in values:
        raise UserError(f"{where}: seeds and folders are the comparison's: leave `seed` and `output_dir` out")


def _sft(
    compare: CompareConfig, values: dict[str, Any], run: RunConfig, where: str
) -> tuple[RunConfig, SFTConfig] | None:
    if compare.sft is None:
        return None
    place = f"{where}: sft"
    of_data = {key: value for key, value in compare.sft.items() if key in DATA_KEYS}
    if of_data and compare.task is not None:
        raise UserError(f"{place}: task: {compare.task} brings its own data: leave `{next(iter(of_data))}` out")
    settings = {key: value for key, value in compare.sft.items() if key not in DATA_KEYS}
    _check_no_seed(settings, place)
    shared = {key: values[key] for key in SHARED_WITH_SFT if key in values}
    config = build(SFTConfig, {"save_steps": 100, **shared, **settings}, place, [*SFTConfig.model_fields, *DATA_KEYS])
    return run.model_copy(update=_checked_data(of_data, run, place)), config


SHARED_WITH_SFT = ("max_completion_length", "token_budget", "bf16", "use_cpu", "gradient_checkpointing", "max_rows",
                   "model_init_kwargs", "trust_remote_code", "chat_template_kwargs", "apply_chat_template")  # fmt: skip
"""Keys at the top that apply to the start's SFT too, unless `sft:` sets them."""


def _checked_data(of_data: dict[str, Any], run: RunConfig, where: str) -> dict[str, Any]:
    checked = build(RunConfig, {"model": run.model, "dataset": run.dataset, **of_data}, where)
    return {key: getattr(checked, key) for key in of_data}


def _check_budgets(comparison: Comparison, where: str) -> None:
    """Raise UserError if a method would sample more or fewer completions than the others."""
    for name, config in comparison.configs.items():
        place = f"{where}: {name}"
        if isinstance(config, GRPOConfig) and config.dynamic_sampling:
            raise UserError(f"{place}: dynamic_sampling samples more or less, depending on the rewards: leave it out")
        if not isinstance(config, OnlineConfig):
            if comparison.budget % config.num_generations:
                raise UserError(
                    f"{place}: {comparison.budget} completions are no whole number of prompts with num_generations "
                    f"{config.num_generations}: set a divisor of {comparison.budget} under `methods:`"
                )
            continue
        sampled = completions_after(config, config.max_steps)
        if sampled != comparison.budget:
            raise UserError(
                f"{place} would sample {sampled} completions and the shared settings {comparison.budget}: set its "
                "`max_steps` under `methods:` so that they are equal"
            )


def settings_of(run: RunConfig, config: TrainingConfig, **more: Any) -> dict[str, Any]:
    """The settings that a run's result depends on, as plain values: a folder with other settings is not reused."""
    values = config.model_dump(mode="json", exclude={"output_dir", "resume_from_checkpoint", *UNIMPORTANT})
    return {**run.model_dump(mode="json", exclude={"method", "reward_funcs"}), **values, **more}


UNIMPORTANT = (
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "log_completions",
    "logged_groups",
    "token_budget",
    "max_rows",
)
"""Keys that do not change the result."""
