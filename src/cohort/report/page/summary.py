"""What the page says of a run in its first lines: the held-out result, the trend, the loss, the causes of trouble."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from cohort.report.metrics import Rows, component_keys, series
from cohort.report.page.read import Row, plain
from cohort.report.verdict import end, held_out, interval, trend

LOWER = ("eval/loss", "eval/teacher_kl")
"""Held-out metrics that are to fall."""
LAST = 5
"""Steps over which a sign must hold."""
CANCELS = (
    "says nothing about progress: it weighs completions by their advantages, which cancel out, so that it is about 0 "
    "from the start, also while the policy learns. Look at the reward."
)
LOSSES = {
    "rft": "is that of imitating right completions. Look at the held-out result.",
    "online_rft": "is that of imitating right completions. Look at the reward.",
    "distill": "is about the KL to the teacher.",
}
"""Method -> what its loss is; that of others with rewards cancels out."""
FLAT = "no gradient: in all groups of the last {n} steps the rewards are equal, {how}"
SIGNS: tuple[tuple[str, str, float, str], ...] = (
    ("truncated", "completions/clipped_ratio", 0.5, "{v:.0%} of the completions are cut off at max_completion_length"),
    ("far from the reference", "kl", 1.0, "KL to the reference {v:.3g} nats a token: the policy has left its start"),
    (
        "learning rate",
        "kl/update",
        0.2,
        "one update moves its batch by {v:.3g} nats a token: learning_rate is too high",
    ),
)
"""Name of the run's own warning, metric, bound that its mean passes, text."""


def summary(rows: Rows, warnings: list[Row], ended: Row, method: str = "") -> dict[str, Any]:
    """{"tone": "good", "headline": ..., "lines": [...], "loss": ..., "causes": [{"step", "name", "message"}]}"""
    if not rows:
        return {"tone": "plain", "headline": "No step was made yet", "lines": [], "loss": None, "causes": []}
    text, key, word = held_out(rows, ended.get("by"))
    lines = [_sentence(trend(rows)), _sentence(end(ended, rows) if "by" in ended else _running(rows))]
    if not key:
        text, lines[0] = lines[0], text
    causes = [*_of_run(warnings), *_signs(rows, {str(row.get("name")) for row in warnings})]
    return {
        "tone": _tone(key, word, causes),
        "headline": _sentence(text),
        "lines": [_sentence(line) for line in lines],
        "loss": _loss(rows, method),
        "causes": causes,
    }


def _running(rows: Rows) -> str:
    return f"no end is recorded: the run goes on, or was killed, after step {rows[-1]['step']}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _tone(key: str, word: str, causes: list[Row]) -> str:
    better = "fell" if key in LOWER else "rose"
    if word == better:
        return "good"
    return "bad" if word in ("rose", "fell") or causes else "plain"


def _loss(rows: Rows, method: str) -> str | None:
    _, losses = series(rows, "loss")
    if not losses or not series(rows, "reward")[0]:
        return None
    return f"Loss {losses[0]:.2g} → {losses[-1]:.2g}: it {LOSSES.get(method, CANCELS)}"


def _of_run(warnings: list[Row]) -> list[Row]:
    """The warnings of the run, those of its training first."""
    known: list[Row] = [
        {k: plain(row.get(k)) for k in ("step", "name", "message", "rows") if k in row} for row in warnings
    ]
    return sorted(known, key=lambda row: row["step"] == 0)


def _signs(rows: Rows, told: set[str]) -> list[Row]:
    """What the metrics show and the run has not said itself."""
    found = []
    for name, key, bound, text in SIGNS:
        steps, values = series(rows, key)
        if name not in told and len(values) >= LAST and (mean := fmean(values[-LAST:])) > bound:
            begun = _begun(steps, [value > bound for value in values])
            found.append({"step": begun, "name": name, "message": text.format(v=mean)})
    steps, shares = series(rows, "frac_reward_zero_std")
    if not told & {"no gradient", "solved"} and len(shares) >= LAST and min(shares[-LAST:]) == 1:
        rewards = dict(zip(*series(rows, "reward"), strict=True))
        recent, seen = [rewards[s] for s in steps[-LAST:] if s in rewards], list(rewards.values())
        how = ""
        if recent and fmean(recent) >= max(seen) and max(seen) > min(seen):
            how = "at the run's highest reward: the prompts are solved"
        elif recent:
            how = f"{fmean(recent):.3g}: prompts too hard or too easy, or a constant reward"
        begun = _begun(steps, [share == 1 for share in shares])
        found.append({"step": begun, "name": "no gradient", "message": FLAT.format(n=LAST, how=how)})
    return [*found, *_gamed(rows, told)]


def _begun(steps: list[float], held: list[bool]) -> int:
    """The step from which a condition held until the last; the last where it does not hold there."""
    before = next((i for i in reversed(range(len(held))) if not held[i]), -1)
    return int(steps[min(before + 1, len(steps) - 1)])


def _gamed(rows: Rows, told: set[str]) -> list[Row]:
    """The reward rises while the held-out score falls."""
    evaluated = [row for row in rows if "eval/accuracy" in row]
    _, rewards = series(rows, "reward")
    if "gamed" in told or len(evaluated) < 2 or len(rewards) < 2 * LAST:
        return []
    (_, _, word), rose = held_out(rows, None), fmean(rewards[-LAST:]) > fmean(rewards[:LAST])
    if word != "fell" or not rose:
        return []
    text = (
        f"the reward rose from {fmean(rewards[:LAST]):.3g} to {fmean(rewards[-LAST:]):.3g} while held-out accuracy "
        "fell: the policy finds what the reward pays, not what is right. See the view Reward; cohort reward audit"
    )
    return [{"step": int(evaluated[-1]["step"]), "name": "gamed reward", "message": text}]


def bands(rows: Rows) -> dict[str, dict[str, list[Any]]]:
    """The 95% intervals of held-out metrics: {"eval/accuracy": {"step": [0], "low": [.2], "high": [.4]}}."""
    keys = component_keys(dict.fromkeys(key for row in rows for key in row if not key.endswith("/std")))
    result: dict[str, dict[str, list[Any]]] = {}
    for key in [*keys, "eval/reward", "eval/loss"]:
        evaluated = [row for row in rows if isinstance(row.get(key), int | float)]
        limits = [interval(row, key) for row in evaluated]
        if evaluated and all(limits):
            known = [limit for limit in limits if limit is not None]
            result[key] = {
                "step": [row["step"] for row in evaluated],
                "low": [plain(low) for low, _ in known],
                "high": [plain(high) for _, high in known],
            }
    return result
