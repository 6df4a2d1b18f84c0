"""Why a batch's rewards teach nothing: no completion of a prompt is better than another."""

from __future__ import annotations

from typing import NamedTuple

from cohort.config import OnlineConfig
from cohort.formulas.spread import all_equal
from cohort.rewards.answers.extract import reference_from
from cohort.rewards.component import Component
from cohort.rewards.functions.table import record_of
from cohort.rollouts.collect import has_equal_rewards
from cohort.types import Group, Text

ALIKE = 0.5
"""Share of groups of identical completions from which sampling is the cause."""


class Cause(NamedTuple):
    """Cause("right", "every completion is right already: ...")"""

    kind: str
    """sampling, below, wrong, right, constant, mixed or equal."""
    text: str


def is_flat(groups: list[Group]) -> bool:
    """Whether a batch with advantages teaches nothing: all of them are 0, or all rewards of the batch are equal."""
    rewards = [reward for group in groups for reward in rewards_of(group)]
    if len(rewards) < 2:
        return False
    return all_equal(rewards) or not any(bool(advantages.any()) for group in groups for advantages in group.advantages)


def rewards_of(group: Group) -> list[float]:
    """The rewards of the group's completions, or of their steps."""
    return group.rewards if group.steps is None else [r for steps in group.steps for r in steps.rewards]


def cause_of(groups: list[Group], judge: Component | None, config: OnlineConfig) -> Cause:
    """Why a flat batch teaches nothing, and what to do. `judge`: the first reward that says what is right."""
    if share_identical(groups) >= ALIKE:
        return Cause("sampling", sampling(groups, config))
    if any(not has_equal_rewards(group) for group in groups):
        best, least = max(max(group.rewards) for group in groups), getattr(config, "reward_threshold", 1.0)
        return Cause(
            "below",
            f"no completion is good enough (the best reward is {best:g}, reward_threshold {least:g}). Lower "
            f"reward_threshold, or take easier prompts; {example(groups, judge)}",
        )
    scores = _judged(groups, judge)
    name = "the reward" if judge is None else judge.name
    if all(score <= 0 for score in scores):
        none = f"no completion is {'rewarded' if judge is None else 'right'}"
        return Cause(
            "wrong",
            f"{none} ({name} is at most {max(scores):g}): the task is too hard for this model, or "
            f"its answers are not read; {example(groups, judge)}. Take easier prompts or a stronger model, fine-tune "
            "on some solutions first (method: sft), or correct prompt and reward: `cohort reward try` on "
            "completions.jsonl shows what a reward reads",
        )
    if judge is not None and all(score >= 1 for score in scores):
        return Cause(
            "right",
            f"every completion is right already ({name} is at least {min(scores):g}): the prompts are too easy. Take "
            "harder ones, or stop here",
        )
    if all_equal(scores):
        return Cause(
            "constant",
            f"every completion has the reward {scores[0]:g}: it does not depend on the completion, or all are at its "
            f"highest; {example(groups, judge)}. Take a reward that tells completions apart, or harder prompts",
        )
    if any(score <= 0 for score in scores):
        right = sum(score > 0 for score in scores) / len(scores)
        return Cause(
            "mixed",
            f"the completions of a prompt are all right or all wrong ({right:.0%} are right). Raise num_generations, "
            f"now {config.num_generations}, or temperature, now {config.temperature:g}, or take prompts that the model "
            "solves sometimes",
        )
    return Cause(
        "equal",
        f"rewards differ between prompts (from {min(scores):.3g} to {max(scores):.3g}) and never between completions "
        f"of one prompt; {example(groups, judge)}. Take a reward that depends on the completion",
    )


def _judged(groups: list[Group], judge: Component | None) -> list[float]:
    """The judge's scores, or where there is none or it applies to no row, the rewards."""
    scores = [] if judge is None else [s for group in groups for s in group.components[judge.name] if s is not None]
    return scores or [reward for group in groups for reward in rewards_of(group)]


def share_identical(groups: list[Group]) -> float:
    """Share of groups of several completions in which all have the same tokens; 0 where there is no such group."""
    several = [[completion.ids.tolist() for completion in g.completions] for g in groups if len(g.completions) > 1]
    return sum(all(ids == each[0] for ids in each) for each in several) / max(1, len(several))


def narrow(config: OnlineConfig) -> list[str]:
    """The settings that leave sampling hardly a choice: ["temperature: 0.01"]."""
    settings = {
        f"temperature: {config.temperature:g}": config.temperature < 0.5,
        "top_k: 1": config.top_k == 1,
        f"top_p: {config.top_p:g}": config.top_p < 0.5,
        f"min_p: {config.min_p:g}": config.min_p > 0.5,
    }
    return [setting for setting, holds in settings.items() if holds]


def sampling(groups: list[Group], config: OnlineConfig) -> str:
    """Why completions of a prompt are identical, and what to do."""
    head = f"sampling gives identical completions in {share_identical(groups):.0%} of the groups"
    if settings := narrow(config):
        return f"{head}, because of {', '.join(settings)}. Set temperature: 1, top_k: 0, top_p: 1, min_p: 0"
    return (
        f"{head}: the model is certain of every token, {example(groups, None)}. Raise temperature, now "
        f"{config.temperature:g}, or start from a model that was fine-tuned for fewer epochs"
    )


def example(groups: list[Group], judge: Component | None) -> str:
    """One completion beside its reference: "for example '2+2=' gets '5' beside the reference '4'"."""
    places = [(group, completion) for group in groups for completion in group.completions]
    group, completion = next((place for place in places if not place[1].truncated), places[0])
    columns = group.row.columns
    reference = reference_from({name: [value] for name, value in columns.items()}, 0)
    record, read = None if judge is None else record_of(judge.function), ""
    if record is not None and record.explain is not None:
        found, reference = record.explain(completion.text, columns)
        read = ", in which no answer is found" if found is None else f", read as {shown(found)}"
    beside = "" if reference is None else f"{',' if read else ''} beside the reference {shown(str(reference))}"
    return f"for example {shown(_text(group.row.prompt))} gets {shown(completion.text)}{read}{beside}"


def _text(prompt: Text) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1].get("content") if prompt else "")


LONGEST = 100
"""Characters of a text in a message."""


def shown(text: str) -> str:
    """A text for a message: escaped, and of a long one the beginning and the end."""
    half = LONGEST // 2
    return repr(text if len(text) <= LONGEST else f"{text[:half]} ... {text[-half:]}")
