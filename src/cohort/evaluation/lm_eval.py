"""Runs tasks of EleutherAI's lm-eval on a model or an adapter, for `cohort eval --lm-eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cohort.policy.adapter import base_of, is_adapter
from cohort.policy.load import find_device
from cohort.types import UserError, did_you_mean

BATCH_SIZE = 8
"""Requests of one batch."""


def run_tasks(
    model: str,
    tasks: list[str],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: Path | None = None,
    trust_remote_code: bool = False,
    seed: int = 42,
) -> tuple[dict[str, Any], str]:
    """(lm-eval's results, its table as text). Raises UserError if the package is missing, or if a task is unknown or
    cannot run."""
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import make_table
    except ImportError:
        raise UserError("--lm-eval needs the package: pip install 'cohort-rl[lm-eval]'") from None
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    for task in tasks:
        if not manager.match_tasks([task]):
            hint = did_you_mean(task, manager.all_tasks, ": `lm-eval ls tasks` lists them")
            raise UserError(f"--lm-eval: there is no task {task!r}{hint}")
    try:
        results = lm_eval.simple_evaluate(
            model="hf",
            model_args=model_arguments(model, trust_remote_code),
            tasks=tasks,
            num_fewshot=num_fewshot,
            limit=limit,
            batch_size=BATCH_SIZE,
            device=str(find_device()),
            task_manager=manager,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        hint = ". Programs run in the sandbox with --benchmark mbpp or humaneval" if "unsafe" in reason else ""
        raise UserError(f"--lm-eval {','.join(tasks)}: {reason}{hint}") from error
    return {key: results[key] for key in ("results", "versions", "n-samples", "samples")}, make_table(results)


def model_arguments(model: str, trust_remote_code: bool) -> dict[str, Any]:
    """Arguments of lm-eval's `hf` model."""
    options = {"trust_remote_code": trust_remote_code, "use_safetensors": True}
    if is_adapter(model):
        return {"pretrained": base_of(model), "peft": model, **options}
    return {"pretrained": model, **options}
