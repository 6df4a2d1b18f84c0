"""Finding adversarial completions that a reward set scores higher than an honest wrong answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cohort.rewards.check.preflight import compares_programs
from cohort.rewards.check.probes import REASONING, STYLES, Case, Encode, attacks, cases, score
from cohort.rewards.compose import Rewards, Scores
from cohort.types import Row

LEAST_GAIN = 1e-6
LONGEST_EXAMPLE = 300
"""Maximum number of characters of the example completion in a finding."""


@dataclass
class Finding:
    """Finding("every answer listed", rows=8, more=8, total=1.0, honest=0.0, paid={"accuracy": 1.0}, example="…")"""

    attack: str
    rows: int
    more: int
    """Rows on which the attack scores higher than the honest wrong answer; above 0, the attack is a hole."""
    total: float
    """Mean reward."""
    honest: float
    """Mean reward of the honest wrong answer to the same rows."""
    paid: dict[str, float]
    """Reward -> its mean weighted gain over the honest wrong answer, for the rewards with a gain above 0."""
    example: str
    """The start of the completion with the highest gain."""


@dataclass
class Audit:
    """The findings, the highest gain first, and the scores of honest answers."""

    style: str
    """The style of the honest answers: the one in which right answers score highest."""
    right: float | None
    """Mean reward of right answers; None where the rows have no reference."""
    wrong: float
    findings: list[Finding]
    warnings: list[str]

    @property
    def holes(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.more]

    def records(self) -> list[dict[str, Any]]:
        """One flat mapping for each finding, for tables, JSON and CSV."""
        return [{**asdict(finding), "hole": bool(finding.more)} for finding in self.findings]


@dataclass
class _Probed:
    """Totals and weighted scores of the completions of one kind, by row."""

    texts: list[str]
    totals: list[float]
    parts: list[dict[str, float]]


def audit(
    rewards: Rewards,
    rows: Sequence[Row],
    encode: Encode | None = None,
    progress: Callable[[Sequence[str]], Iterator[str]] = iter,
) -> Audit:
    """Score honest and adversarial completions for the rows. `progress` wraps the iteration over their kinds."""
    candidates = cases(rows, compares_programs(rewards))
    candidates = [case for case in candidates if case.right is not None] or candidates
    style = _best_style(rewards, candidates, encode)
    make = STYLES[style]
    kinds: dict[str, list[tuple[Case, str]]] = defaultdict(list)
    for case in candidates:
        if case.right is not None:
            kinds["right"].append((case, make(REASONING, case.right)))
        kinds["wrong"].append((case, make(REASONING, case.wrong)))
        for name, text in attacks(case, make).items():
            kinds[name].append((case, text))
    probed = {kind: _probe(rewards, kinds[kind], encode) for kind in progress(list(kinds))}
    wrong = dict(zip(map(id, (case for case, _ in kinds["wrong"])), range(len(candidates)), strict=True))
    findings = [
        _finding(name, probed[name], probed["wrong"], [wrong[id(case)] for case, _ in kinds[name]])
        for name in kinds
        if name not in ("right", "wrong")
    ]
    findings.sort(key=lambda finding: (finding.more == 0, finding.honest - finding.total))
    right = _mean(probed["right"].totals) if "right" in probed else None
    return Audit(style, right, _mean(probed["wrong"].totals), findings, _warnings(rewards, probed))


def _best_style(rewards: Rewards, candidates: Sequence[Case], encode: Encode | None) -> str:
    """The style in which right answers score highest over the rows; wrong answers if no right one is known."""
    probes = [
        (case.row, make(REASONING, case.wrong if case.right is None else case.right))
        for make in STYLES.values()
        for case in candidates
    ]
    totals = score(rewards, probes, encode).totals
    sums = [sum(totals[i : i + len(candidates)]) for i in range(0, len(totals), len(candidates))]
    return list(STYLES)[sums.index(max(sums))]


def _probe(rewards: Rewards, pairs: Sequence[tuple[Case, str]], encode: Encode | None) -> _Probed:
    scores: Scores = score(rewards, [(case.row, text) for case, text in pairs], encode)
    parts = [
        {name: weight * (scores.counted[name][i] or 0.0) for name, weight in _weights(rewards)}
        for i in range(len(pairs))
    ]
    return _Probed([text for _, text in pairs], scores.totals, parts)


def _weights(rewards: Rewards) -> list[tuple[str, float]]:
    return list(zip(rewards.names, rewards.weights, strict=True))


def _finding(attack: str, probed: _Probed, wrong: _Probed, rows: Sequence[int]) -> Finding:
    gains = [total - wrong.totals[row] for total, row in zip(probed.totals, rows, strict=True)]
    paid = {
        name: _mean([part[name] - wrong.parts[row][name] for part, row in zip(probed.parts, rows, strict=True)])
        for name in probed.parts[0]
    }
    return Finding(
        attack,
        rows=len(rows),
        more=sum(gain > LEAST_GAIN for gain in gains),
        total=_mean(probed.totals),
        honest=_mean([wrong.totals[row] for row in rows]),
        paid={name: gain for name, gain in paid.items() if gain > LEAST_GAIN},
        example=probed.texts[gains.index(max(gains))][:LONGEST_EXAMPLE],
    )


def _warnings(rewards: Rewards, probed: dict[str, _Probed]) -> list[str]:
    """Warnings: right answers score no higher, shaping exceeds correctness, or the clip cuts off the best scores."""
    if "right" not in probed:
        return ["the rows have no reference answers, so the score of a right answer is not known"]
    warnings = []
    right, wrong = probed["right"], probed["wrong"]
    correctness = _mean(right.totals) - _mean(wrong.totals)
    if correctness <= LEAST_GAIN:
        warnings.append("a right answer gets no more than an honest wrong one: the policy cannot learn to be right")
    # Rewards that score right answers higher are correctness; the range of the others on other answers is shaping.
    shaping = {}
    highest = 0.0
    for name in rewards.names:
        values = [part[name] for kind, each in probed.items() if kind != "right" for part in each.parts]
        gain = _mean([part[name] for part in right.parts]) - _mean([part[name] for part in wrong.parts])
        if gain <= LEAST_GAIN:
            shaping[name] = max(values) - min(values)
        highest += max(part[name] for each in probed.values() for part in each.parts)
    total = sum(shaping.values())
    if total > correctness > LEAST_GAIN:
        of = ", ".join(f"{name} {value:.3g}" for name, value in shaping.items() if value)
        warnings.append(
            f"shaping adds up to {total:.3g} ({of}), correctness to {correctness:.3g}: the form of an answer is worth "
            "more than its being right. Lower the weights of the form, or gate it by correctness"
        )
    if rewards.clip is not None and highest > rewards.clip[1]:
        warnings.append(
            f"the rewards add up to {highest:.3g}, and the total is clipped at {rewards.clip[1]:g}: "
            "the best answers look alike. Lower the weights, or raise reward_clip"
        )
    return warnings


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
