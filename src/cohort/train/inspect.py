"""What a run would train on, found without its model: the tokenizer and the model's configuration are enough."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from cohort.config import DistillConfig, GRPOProcessConfig, RewardModelConfig, RunConfig, SampledConfig, TrainingConfig
from cohort.data.configured import configured_rows
from cohort.data.inspect import (
    Inspection,
    inspect_demonstrations,
    inspect_pairs,
    inspect_prompts,
    inspection_of,
    repeated_rows,
)
from cohort.data.preferences import has_pair
from cohort.data.templates import prepared
from cohort.methods.named import find_method
from cohort.policy.load import context_length, load_tokenizer
from cohort.rewards.check.references import unloaded_rewards
from cohort.rewards.models.classifier import load_tokenizer as load_reward_tokenizer
from cohort.rewards.resolve import with_run_defaults
from cohort.train.reward_models.examples import loss_type, require_two_labels
from cohort.train.reward_models.inspect import inspect_examples
from cohort.train.reward_models.model import blank_scorer
from cohort.train.run import refuse_rewards, reward_functions
from cohort.train.usable import require_usable
from cohort.types import Row, UserError


@dataclass
class RunInspection:
    """The data of a run, and why it would not start, if it would not."""

    tokenizer: Any
    training: Inspection
    held_out: Inspection | None
    repeats: list[tuple[Row, Row, bool]]
    """(held-out row, training row with the same prompt, whether all their columns are the same)."""
    problem: UserError | None = None


def inspect_run(run: RunConfig, config: TrainingConfig) -> RunInspection:
    """Inspect a run's data. Raises UserError for rows that cannot be read or encoded."""
    rows, held_out = configured_rows(run, config.seed, by_prompt=isinstance(config, RewardModelConfig))
    inspect = _inspect_reward_rows if isinstance(config, RewardModelConfig) else _inspect_rows
    result = inspect(run, config, rows, held_out or [])
    if result.problem is None and not result.training.trained:
        result.problem = UserError(
            f"none of the {len(result.training.rows)} {result.training.what} is left to train on"
        )
    return result


def _inspect_reward_rows(run: RunConfig, config: Any, rows: list[Row], held_out: list[Row]) -> RunInspection:
    refuse_rewards(run)
    kind = loss_type(rows, config)
    tokenizer = load_reward_tokenizer(run.model, config.trust_remote_code)
    rows, held_out = prepared(rows, held_out, tokenizer, config)
    scorer = blank_scorer(run.model, tokenizer, config)
    training, examples = inspect_examples(rows, scorer, config, kind)
    others = inspect_examples(held_out, scorer, config, kind, held_out=True)[0] if held_out else None
    result = RunInspection(tokenizer, training, others, repeated_rows(rows, held_out))
    try:
        require_two_labels(examples, kind)
    except UserError as error:
        result.problem = error
    return result


def _inspect_rows(run: RunConfig, config: TrainingConfig, rows: list[Row], held_out: list[Row]) -> RunInspection:
    method = find_method(run.method)
    rewards, problem = None, None
    specs = with_run_defaults(reward_functions(run), config.max_completion_length, config.use_cpu)
    if specs:
        weights = config.reward_weights if isinstance(config, SampledConfig) else None
        rewards = unloaded_rewards(specs, weights, isinstance(config, GRPOProcessConfig))
    try:
        require_usable(method, config, rewards, rows, held_out)
    except UserError as error:
        problem = error
    tokenizer = load_tokenizer(run.model, trust_remote_code=config.trust_remote_code)
    context = context_length(run.model, trust_remote_code=config.trust_remote_code)
    rows, held_out = prepared(rows, held_out, tokenizer, config)
    inspect = inspection_of(method.source, config)
    if problem is not None and inspect is inspect_pairs and not all(map(has_pair, rows)):
        raise problem
    try:
        training = inspect(rows, tokenizer, config, context)
        if held_out and (rewards is not None or isinstance(config, DistillConfig)):
            sampled = f"completion, sampled to be scored, up to {config.max_completion_length} tokens"
            inspect = partial(inspect_prompts, sampled=sampled)
        elif inspect is not inspect_pairs:
            inspect = inspect_demonstrations
        others = inspect(held_out, tokenizer, config, context) if held_out else None
    except UserError as error:
        raise problem or error from None
    return RunInspection(tokenizer, training, others, repeated_rows(rows, held_out), problem)
