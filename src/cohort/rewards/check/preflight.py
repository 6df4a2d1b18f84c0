"""A check before training: the run stops if the reward set does not score right answers above wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cohort.rewards.check.probes import REASONING, STYLES, Case, Encode, cases, score
from cohort.rewards.component import Component
from cohort.rewards.compose import Rewards
from cohort.rewards.functions.table import Judged, record_of
from cohort.types import Row, TrainerState

ROWS = 4
KINDS = ("right", "wrong", "empty", "truncated")


@dataclass
class Preflight:
    """Preflight("boxed", {"right": {"accuracy": [1.0, 1.0]}, …}, totals, milliseconds)"""

    style: str
    scores: dict[str, dict[str, list[float | None]]]
    """Kind of answer -> reward -> the score of each row; without "right" and "wrong" if the rows have no reference."""
    totals: dict[str, list[float]]
    """Kind of answer -> the total of each row."""
    milliseconds: dict[str, float]
    """Reward -> time for one completion."""
    problem: str | None = None
    """The reason why the run must not start; None if it may."""
    warnings: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One line for each reward: mean score of each kind of answer, lowest and highest score, time."""
        return [self._line(name) for name in self.milliseconds]

    def _line(self, name: str) -> str:
        every = [value for by_name in self.scores.values() for value in by_name[name] if value is not None]
        if not every:
            return f"{name}: applies to none of the rows tried"
        parts = [f"{kind} {_mean(by_name[name])}" for kind, by_name in self.scores.items()]
        spread = f"from {min(every):g} to {max(every):g}"
        return f"{name}: {', '.join(parts)}; {spread}; {self.milliseconds[name]:.2g} ms a completion"


def compares_programs(rewards: Rewards) -> bool:
    """Whether a reward of the set runs programs against tests."""
    return any(_judges(part, "program") for part in rewards.parts)


def preflight(
    rewards: Rewards, rows: Sequence[Row], encode: Encode | None = None, state: TrainerState | None = None
) -> Preflight:
    """Score right, wrong, empty and truncated answers to ROWS rows, evenly spaced in the data.

    `problem` is set only if a built-in reward judges answers and the rows have reference answers. What other functions
    should score is not known, so they cause at most a warning.
    """
    chosen = [rows[i * len(rows) // min(ROWS, len(rows))] for i in range(min(ROWS, len(rows)))]
    candidates = cases(chosen, compares_programs(rewards))
    with_reference = [case for case in candidates if case.right is not None]
    candidates = with_reference or candidates
    style = _style(rewards, with_reference[:1], encode, state)
    probes = [(kind, case, text) for case in candidates for kind, text in _texts(case, style).items()]
    scores = score(rewards, [(case.row, text) for _, case, text in probes], encode, state)
    kinds = [kind for kind in KINDS if any(kind == other for other, _, _ in probes)]
    where = {kind: [i for i, (other, _, _) in enumerate(probes) if other == kind] for kind in kinds}
    result = Preflight(
        style,
        {kind: {name: [v[i] for i in where[kind]] for name, v in scores.components.items()} for kind in kinds},
        {kind: [scores.totals[i] for i in where[kind]] for kind in kinds},
        {name: 1000 * scores.seconds[name] / len(probes) for name in rewards.names},
    )
    _judge(result, rewards, with_reference)
    return result


def _style(rewards: Rewards, examples: list[Case], encode: Encode | None, state: TrainerState | None) -> str:
    """The style in which the first case's right answer scores highest; the first of several equal ones."""
    if not examples:
        return next(iter(STYLES))
    right = examples[0].right or ""
    totals = score(
        rewards, [(examples[0].row, make(REASONING, right)) for make in STYLES.values()], encode, state
    ).totals
    return list(STYLES)[totals.index(max(totals))]


def _texts(case: Case, style: str) -> dict[str, str]:
    make = STYLES[style]
    if case.right is None:
        return {"empty": "", "truncated": REASONING[: len(REASONING) // 2]}
    right = make(REASONING, case.right)
    answered = right.rfind(case.right)
    return {
        "right": right,
        "wrong": make(REASONING, case.wrong),
        "empty": "",
        "truncated": right[: min(answered, len(right) // 2)] if answered > 0 else right[: len(case.right) // 2],
    }


def _judge(result: Preflight, rewards: Rewards, with_reference: list[Case]) -> None:
    """Set the problem and the warnings of the result."""
    kind_judged: Judged = "program" if compares_programs(rewards) else "answer"
    # A reward of weight 0 is only logged, unless all weights are 0.
    weighed = zip(rewards.parts, rewards.weights, strict=True)
    counting = [part for part, weight in weighed if weight or not any(rewards.weights)]
    judges = [part.name for part in counting if _judges(part, kind_judged)]
    if not with_reference or not judges:
        if len({total for totals in result.totals.values() for total in totals}) == 1:
            result.warnings.append("the rewards gave the same total to every completion tried")
        return
    right = result.totals["right"]
    asked = " and ".join(judges)
    for kind, what in (("wrong", "a wrong answer"), ("empty", "nothing"), ("truncated", "a truncated answer")):
        other = result.totals[kind]
        better = sum(a > b for a, b in zip(right, other, strict=True))
        if better == 0:
            example = with_reference[0]
            result.problem = (
                f"the rewards give {what} as much as the right answer on each of {len(right)} rows tried "
                f"({right[0]:g} and {other[0]:g} on the first), though {asked} should tell them apart. The first is "
                f"{example.row.source or 'row 1'}, its reference {(example.right or '')[:100]!r}. Try single "
                "completions with `cohort reward try`, check weights, gates, clip and reference columns, or set "
                "reward_preflight: false to train with them as they are"
            )
            return
        if better < len(right):
            result.warnings.append(
                f"on {len(right) - better} of {len(right)} rows tried {what} gets as much as the right answer"
            )


def _judges(part: Component, kind: Judged) -> bool:
    """Whether the function is a built-in reward, under any name and with any options, that judges this kind."""
    record = record_of(part.function)
    return record is not None and record.judges == kind


def _mean(values: Sequence[float | None]) -> str:
    applied = [value for value in values if value is not None]
    return f"{sum(applied) / len(applied):.3g}" if applied else "none"
