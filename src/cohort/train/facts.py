"""What a run was made with: settings, model, data, rewards. A checkpoint keeps it, and a resumed run compares."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import platform
import tokenize
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cohort.config import TrainingConfig
from cohort.rewards.component import Component
from cohort.rewards.compose import Rewards
from cohort.texts import without_secrets
from cohort.types import Row, UserError

log = logging.getLogger("cohort")

Facts = dict[str, Any]

SAMPLE = 4096
"""Numbers at the beginning of each tensor that count with their places."""

UNSEEN = {
    "output_dir", "logging_dir", "run_name", "project", "trackio_space_id",
    "resume_from_checkpoint", "resume_changes", "ddp_timeout", "disable_tqdm", "log_level",
    "per_device_train_batch_size", "gradient_accumulation_steps",
}  # fmt: skip
"""Settings whose change nobody needs to know. The last two are compared as the sequences of a step."""
FUTURE = {
    "max_steps", "num_train_epochs", "learning_rate", "critic_learning_rate", "lr_scheduler_type",
    "lr_scheduler_kwargs", "warmup_ratio", "warmup_steps", "on_nonfinite", "max_nonfinite_updates", "token_budget",
    "max_rows", "use_cpu", "gradient_checkpointing", "fast_paths", "distributed",
    "fsdp_param_dtype", "fsdp_offload", "trust_remote_code", "allow_pickle", "logging_steps",
    "log_completions", "logged_groups", "report_to", "profile", "save_strategy", "save_steps",
    "save_minutes", "save_only_model", "save_total_limit", "metric_for_best_model", "greater_is_better",
    "load_best_model_at_end", "push_to_hub",
    "hub_model_id", "hub_private_repo", "eval_strategy", "eval_steps", "eval_on_start",
    "num_generations_eval", "eval_temperature", "early_stopping_patience", "overlap_rewards",
    "reward_preflight", "engine", "stop_on_overoptimization",
}  # fmt: skip
"""Settings that change only what comes: a change is told. A change of any other is refused."""


def facts_of_run(
    method: str, config: TrainingConfig, model: Any, tokenizer: Any, rows: Sequence[Row], rewards: Rewards | None
) -> Facts:
    """What a run is made with, before its first step."""
    inner = getattr(model, "get_base_model", lambda: model)()
    return {
        "settings": without_secrets(config.model_dump(mode="json")),
        "run": {
            "method": method,
            "model's configuration": _sha256(inner.config.to_json_string(use_diff=False)),
            "model's weights": weights_digest(inner),
            "chat template": _sha256(str(getattr(tokenizer, "chat_template", None))),
            "number of rows": len(rows),
            "data": data_digest(rows),
            "rewards": {} if rewards is None else _rewards(rewards),
        },
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of Python and the packages whose arithmetic a run depends on."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("cohort-rl", "transformers", "peft"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def data_digest(rows: Sequence[Row]) -> str:
    """SHA-256 of the rows."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.prompt!r}{row.completion!r}{row.columns!r}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


@torch.no_grad()
def weights_digest(model: Any) -> str:
    """Of the weights as they are loaded, but for an adapter's: names, shapes, the sum of all bits read as integers, and
    the first numbers. Empty where weights are divided among ranks."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        if hasattr(weight, "full_tensor") or weight.is_meta:
            return ""
        if "lora_" not in name:
            name = name.replace(".base_layer.", ".")
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype} {_sum(weight)}".encode())
            digest.update(weight.flatten()[:SAMPLE].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _sum(weight: Tensor) -> int:
    """Of the tensor's bits, read as integers of its width."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return int(weight.detach().contiguous().view(integers[weight.element_size()]).sum(dtype=torch.int64))


def _rewards(rewards: Rewards) -> dict[str, Any]:
    """Each reward by name: its weight, how it is used, and a digest of its code or model."""
    return {
        part.name: {"weight": weight, "used": repr(part.settings), "options": _options(part), "code": _code(part)}
        for part, weight in zip(rewards.parts, rewards.weights, strict=True)
    }


def _options(part: Component) -> str:
    spec = part.spec if isinstance(part.spec, dict) else {}
    return repr({key: value for key, value in without_secrets(spec).items() if key not in ("name", "model")})


def _code(part: Component) -> str:
    scorer = getattr(part.function, "scorer", None)
    if scorer is not None:
        return weights_digest(scorer.model)
    function: Callable[..., Any] = inspect.unwrap(getattr(part.function, "func", part.function))
    module = inspect.getmodule(function)
    if module is not None and module.__name__.partition(".")[0] == "cohort":
        return module.__name__
    named = part.spec.get("name", "") if isinstance(part.spec, dict) else part.spec
    try:
        if isinstance(named, str):  # path/to/rewards.py:name, whose helpers are in the file too
            return _sha256(Path(named.rpartition(":")[0]).read_text(encoding="utf-8"))
        return _sha256(inspect.getsource(function))
    except (OSError, TypeError, ValueError, SyntaxError, tokenize.TokenError):  # code that is in no file
        return getattr(function, "__qualname__", type(function).__name__)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def compare(path: Path, saved: Facts, now: Facts, allow: bool) -> None:
    """Log what has changed since the checkpoint was written. Raises UserError where it changes what the run is, unless
    `allow`."""
    if not saved:
        log.warning("%s was written by an earlier version, without a manifest: nothing is compared with it", path)
        return
    told: list[str] = []
    refused: list[str] = []
    run, runs = _flat(saved["run"]), _flat(now["run"])
    for key, value in run.items():
        if value != runs.get(key) and "" not in (value, runs.get(key)):
            refused.append(f"{key}: {_shown(value)} -> {_shown(runs.get(key))}")
    refused += [f"{key}: it is new" for key in runs if key not in run]
    before, after = saved["settings"], now["settings"]
    for key in dict.fromkeys((*before, *after)):
        if key in UNSEEN or before.get(key) == after.get(key) or key not in before:
            continue
        line = f"{key}: {_shown(before.get(key))} -> {_shown(after.get(key))}"
        (told if key in FUTURE else refused).append(line)
    for package, before_version in saved["versions"].items():
        if now["versions"].get(package) != before_version:
            told.append(f"{package} {before_version} -> {now['versions'].get(package)}: rounding may differ")
    for line in told:
        log.warning("changed since %s: %s", path.name, line)
    if refused and not allow:
        lines = "\n  ".join([f"{path} was made by another run:", *refused])
        raise UserError(
            f"{lines}\nResume with what it was made with, start anew without --resume, or set resume_changes: allow to "
            "go on with the change"
        )
    for line in refused:
        log.warning("changed since %s, and allowed by resume_changes: %s", path.name, line)


def _flat(run: dict[str, Any]) -> dict[str, Any]:
    """{"rewards": {"accuracy": {...}}} -> {"reward accuracy, weight": ...}"""
    rewards = {f"reward {name}, {key}": x for name, parts in run["rewards"].items() for key, x in parts.items()}
    return {**{key: value for key, value in run.items() if key != "rewards"}, **rewards}


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
