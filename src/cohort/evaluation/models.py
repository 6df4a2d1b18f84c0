"""Evaluation of a model by name: what `cohort eval` calls."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from cohort.config import TrainingConfig
from cohort.data.benchmarks import BENCHMARKS, benchmark_rows
from cohort.data.messages import in_turns
from cohort.data.rows import load_rows
from cohort.data.templates import prompt_text
from cohort.evaluation.evaluate import Evaluation, maj_at_k, pass_at_k
from cohort.evaluation.loaded_model import LoadedModel
from cohort.policy.process import seed_everything
from cohort.rewards.check.references import require_references
from cohort.rewards.component import Component
from cohort.rewards.compose import Rewards
from cohort.rewards.votes import ballot_of, candidates
from cohort.types import Row, UserError

log = logging.getLogger("cohort")


def evaluate_model(
    model: str,
    data: str | None = None,
    *,
    benchmark: str | None = None,
    split: str | None = None,
    rewards: Sequence[str] = (),
    samples: int = 1,
    ks: Sequence[int] = (1,),
    temperature: float | None = None,
    max_completion_length: int = 1024,
    limit: int | None = None,
    columns: dict[str, str] | None = None,
    system_prompt: str | None = None,
    dataset_kwargs: dict[str, Any] | None = None,
    seed: int = 42,
    template: str | None = None,
    plain: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> dict[str, Any]:
    """Accuracy (the first reward above 0), pass@k and maj@k of a model, or an adapter, on a data set or a benchmark.

    Plain prompts become chat turns where the tokenizer has a chat template, unless `plain`. `temperature=None` means 0
    (greedy) for one sample of each problem and 1 for several. Raises UserError where a k exceeds `samples`.
    """
    too_many = [k for k in ks if k > samples]
    if too_many:
        raise UserError(f"pass@{too_many[0]} needs at least {too_many[0]} samples of each problem, not {samples}")
    if temperature is None:
        temperature = 0.0 if samples == 1 else 1.0
    if temperature == 0 and samples > 1:
        raise UserError(f"{samples} greedy samples of a problem are all the same: set a temperature above 0")
    functions = Rewards(list(rewards) or [BENCHMARKS[benchmark].reward if benchmark else "accuracy"], seed=seed)
    rows = _rows(data, benchmark, split, limit, columns, system_prompt, dataset_kwargs)
    require_references(functions, rows)
    config = TrainingConfig(
        seed=seed,
        max_completion_length=max_completion_length,
        apply_chat_template=not plain,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )
    seed_everything(seed)
    loaded = LoadedModel(model, config, template)
    sampling = loaded.sampling(temperature=temperature, max_tokens=max_completion_length)
    evaluation = loaded.evaluate(loaded.encode(rows), functions, sampling, samples, seed)
    too_long = len(rows) - len(evaluation.prompts)
    if too_long:
        log.warning("%d of %d problems are too long for the model and count as wrong", too_long, len(rows))
    return summary(evaluation, functions.parts[0], ks, too_long)


def _rows(
    data: str | None,
    benchmark: str | None,
    split: str | None,
    limit: int | None,
    columns: dict[str, str] | None,
    system_prompt: str | None,
    dataset_kwargs: dict[str, Any] | None,
) -> list[Row]:
    if benchmark is not None:
        rows = benchmark_rows(benchmark, data, split=split, max_samples=limit, dataset_kwargs=dataset_kwargs)
        return rows if system_prompt is None else [in_turns(row, system_prompt) for row in rows]
    assert data is not None
    return load_rows(
        data,
        split=split or "test",
        columns=columns,
        system_prompt=system_prompt,
        max_samples=limit,
        dataset_kwargs=dataset_kwargs,
    )


def summary(evaluation: Evaluation, part: Component, ks: Sequence[int], unanswered: int = 0) -> dict[str, Any]:
    """The evaluation as plain numbers and texts for a table or JSON; `part` is the reward that says what is correct.
    Its maj@k is empty where the reward reads no answer that samples could vote on. `unanswered`: further problems that
    the model could not be given; they count as wrong."""
    answered = evaluation.correct(part.name)
    correct = answered + [[False] * evaluation.n] * unanswered
    return {
        "problems": len(correct),
        "unanswered": unanswered,
        "samples": evaluation.n,
        "accuracy": sum(sum(row) for row in correct) / (len(correct) * evaluation.n),
        "correct": sum(sum(row) for row in correct),
        "pass@k": {k: pass_at_k(correct, k) for k in ks},
        "maj@k": _majorities(evaluation, correct, part, ks),
        "metrics": evaluation.metrics(),
        "completions": [
            {
                "prompt": prompt_text(prompt.row.prompt),
                "completions": [c.text for c in row],
                "correct": verdicts,
            }
            for prompt, row, verdicts in zip(evaluation.prompts, evaluation.sampled, answered, strict=True)
        ],
    }


def _majorities(
    evaluation: Evaluation, correct: list[list[bool]], part: Component, ks: Sequence[int]
) -> dict[int, float]:
    ballot = ballot_of(part)
    if ballot is None:
        if evaluation.n > 1:
            log.info("no maj@k: %s reads no answer on which samples could vote", part.name)
        return {}
    texts = [[completion.text for completion in row] for row in evaluation.sampled]
    answers = candidates(ballot, texts, [prompt.row.columns for prompt in evaluation.prompts])
    answers += [[None] * evaluation.n] * (len(correct) - len(answers))
    return {k: maj_at_k(answers, correct, k) for k in ks}
