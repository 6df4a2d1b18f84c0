"""What reward functions log beside their scores: numbers for metrics.jsonl, and columns for completions.jsonl."""

from __future__ import annotations

import json
import math
import numbers
import re
from collections.abc import Callable, Sequence
from typing import Any

from cohort.types import UserError, printable

OWN_METRICS = frozenset(
    {
        *("step", "epoch", "loss", "aux_loss", "accuracy", "learning_rate", "grad_norm", "update_skipped", "kl"),
        *("kl/max", "kl/update", "ratio/min", "ratio/max", "entropy", "entropy/trained", "entropy_coef", "num_tokens"),
        *("tokens_per_second", "num_completions", "iteration", "reward", "reward_std", "frac_reward_zero_std"),
        *("reward/greedy", "rewards_clipped_ratio", "rewards/chosen", "rewards/rejected", "rewards/margins"),
        *("rewards/accuracies", "logps/chosen", "logps/rejected", "completions/mean_length", "completions/min_length"),
        *("completions/max_length", "completions/clipped_ratio", "completions/mean_terminated_length", "policy_loss"),
        *("completions/min_terminated_length", "completions/max_terminated_length"),
        *("clip_ratio/low_mean", "clip_ratio/high_mean"),
        *("clip_ratio/region_mean", "steps/reward", "steps/count", "score/mean", "score/std", "objective/kl"),
        *("sampling/rounds", "sampling/frac_kept_groups", "sampling/off_policy_masked", "teacher/kl"),
        *("margin", "min_reward", "mean_reward", "max_reward"),
        *(
            "sampling/staleness",
            "sampling/continued",
            "sampling/mismatch_kl",
            "sampling/logp_difference",
            "seconds/wait",
        ),
        *("sampling/importance_sampling_ratio/mean", "reward_model/loss", "reward_model/new", "reward_model/history"),
    }
)
"""Metrics that runs write themselves. A reward function that logged one would replace its values."""
_OWN_FAMILIES = re.compile(r"(critic|eval|guard|seconds)/.*|rewards/.+/(mean|std|clipped_ratio|gated_ratio)", re.DOTALL)


SPAN = "span"
"""The column in which a reward function logs which characters of each completion it read."""


class Logs:
    """Collects what reward functions pass to log_metric and log_extra while one batch is scored."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._owners: dict[str, str] = {}
        self.values: dict[str, list[float]] = {}
        self.extra: dict[str, list[Any]] = {}

    def for_function(self, reward: str) -> dict[str, Callable[[str, Any], None]]:
        """The two arguments for one reward function. Both raise UserError for what cannot be logged."""

        def log_extra(column: str, values: Sequence[Any]) -> None:
            _check_name(reward, "log_extra", column)
            plain = _column(reward, column, values, self._rows)
            # Several functions may name a column alike: the later ones' have the function's name before it.
            key = column if self._owners.setdefault(column, reward) == reward else f"{reward}/{column}"
            if column == SPAN:
                _check_spans(reward, plain)
                key = f"{reward}/{SPAN}"  # the first one's too: the record must know whose it is
            self.extra[key] = plain

        def log_metric(metric: str, value: float) -> None:
            _check_name(reward, "log_metric", metric)
            if metric in OWN_METRICS or _OWN_FAMILIES.fullmatch(metric):
                raise UserError(
                    f"reward function {reward!r} logs the metric {metric!r}, which the run writes itself: give it "
                    f"another name, such as {f'{reward}/{metric}'!r}"
                )
            self.values.setdefault(metric, []).append(_number(reward, metric, value))

        return {"log_extra": log_extra, "log_metric": log_metric}

    def metrics(self) -> dict[str, float]:
        """The mean of each metric's values."""
        return {name: math.fsum(values) / len(values) for name, values in self.values.items()}


def _check_name(reward: str, call: str, name: Any) -> None:
    if not isinstance(name, str) or not name.strip() or printable(name, lines=False) != name:
        raise UserError(
            f"reward function {reward!r} calls {call} with the name {_start(name)}: a name is a text in one line, "
            "without control characters, such as 'words'"
        )


def _number(reward: str, metric: str, value: Any) -> float:
    """A number, or a tensor or array of one number, as a float."""
    plain = value.tolist() if hasattr(value, "tolist") else value
    while isinstance(plain, list) and len(plain) == 1:
        plain = plain[0]
    try:
        number = float(plain) if isinstance(plain, numbers.Real) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise UserError(
            f"reward function {reward!r} gave log_metric {_start(value)} ({type(value).__name__}) for {metric!r}: give "
            "one finite number, and leave the call out where there is none"
        )
    return number


def _column(reward: str, column: str, values: Any, rows: int) -> list[Any]:
    """The values of a column as plain JSON values."""
    listed = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(listed, Sequence) or isinstance(listed, str | bytes | bytearray):
        raise UserError(
            f"reward function {reward!r} gave log_extra {_start(values)} ({type(values).__name__}) for {column!r}: "
            "give a list with one value for each completion"
        )
    if len(listed) != rows:
        raise UserError(
            f"reward function {reward!r} gave log_extra {len(listed)} values of {column!r} for {rows} completions: "
            "give one for each"
        )
    try:
        plain: list[Any] = json.loads(json.dumps(list(listed), default=_plain))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"reward function {reward!r} gave log_extra values of {column!r} that cannot be written as JSON: {error}"
        ) from None
    return plain


def _check_spans(reward: str, values: list[Any]) -> None:
    for value in values:
        pair = isinstance(value, list) and len(value) == 2 and all(type(place) is int for place in value)
        if value is not None and not (pair and 0 <= value[0] <= value[1]):
            raise UserError(
                f"reward function {reward!r} gave log_extra the {SPAN} {_start(value)}: give [start, end], the "
                "characters of the completion that it read, or None"
            )


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _start(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 1000:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to write the longest ones
    return repr(value)[:200]
