"""Whole groups and the history of rows, as the lines of groups.jsonl and rows.jsonl."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from cohort.policy.text import text_of
from cohort.rewards.component import Component
from cohort.rewards.compose import Rewards
from cohort.rewards.functions.table import record_of
from cohort.rewards.spans import spans
from cohort.types import Group, Text

DIGITS = 4
"""Significant digits of a number in groups.jsonl and rows.jsonl."""
LONGEST_PROMPT = 200
"""Characters of a prompt in rows.jsonl."""
CUT = "\ufffd"
"""What a tokenizer gives for bytes that are not a whole character."""


@dataclass
class About:
    """What the records say of a run beside its batches. About("grpo", "Qwen/Qwen3-0.6B", tokenizer, rewards)"""

    method: str
    model: str
    tokenizer: Any
    rewards: Rewards | None = None
    pieces: dict[int, str] = field(default_factory=dict)
    """Token id -> its text, of the tokens seen so far."""

    @property
    def parts(self) -> list[Component]:
        return [] if self.rewards is None else self.rewards.parts

    def settings(self) -> dict[str, Any]:
        """The run's facts that its configuration class does not hold."""
        names = [part.name for part in self.parts]
        weights = [] if self.rewards is None else self.rewards.weights
        return {"method": self.method, "model": self.model, "rewards": dict(zip(names, weights, strict=True))}

    def rules(self) -> list[str]:
        """The rewards that say what is right, in order: rules and no models; those of the form alone where there are
        no others."""
        rules = [part for part in self.parts if _is_rule(part)]
        records = {part.name: record_of(part.function) for part in rules}
        of_answers = [name for name, record in records.items() if record is None or record.form is None]
        return of_answers or list(records)


def _is_rule(part: Component) -> bool:
    """Whether the reward is a function, of the user's or built in, and neither a reward model nor a judge."""
    ours = (getattr(part.function, "__module__", None) or "").startswith("cohort.rewards")
    return not hasattr(part.function, "scorer") and (not ours or record_of(part.function) is not None)


def row_line(step: int, g: int | None, group: Group, rules: list[str]) -> dict[str, Any]:
    """The group's line of rows.jsonl, without the prompt. `g` is None for a group that is not in the batch."""
    line: dict[str, Any] = {"step": step, "row": group.row.number, "group": g, "n": len(group.completions)}
    if not group.rewards:
        return line
    scores = [group.components[name] for name in rules if name in group.components]
    applied = [values for values in scores if any(value is not None for value in values)]
    judged = applied[0] if applied and len(group.components) > 1 else group.rewards
    line["right"] = sum(value is not None and value > 0 for value in judged)
    line["mean"] = significant(sum(group.rewards) / len(group.rewards))
    line["rewards"] = [significant(reward) for reward in group.rewards]
    return line


def last_turn(prompt: Text) -> str:
    """The last user turn of a prompt, cut at LONGEST_PROMPT characters."""
    if not isinstance(prompt, str):
        turns = [turn for turn in prompt if turn.get("role") == "user"] or prompt
        prompt = str(turns[-1].get("content") or "") if turns else ""
    return prompt[:LONGEST_PROMPT]


def group_line(step: int, g: int, group: Group, about: About, sampled: bool) -> dict[str, Any]:
    """The group's line of groups.jsonl. `sampled`: its completions have a sampler's log-probabilities."""
    return {
        "step": step,
        "group": g,
        "row": group.row.number,
        "prompt": group.row.prompt,
        "columns": group.row.columns,
        "completions": [_completion(group, i, about, sampled) for i in range(len(group.completions))],
    }


def _completion(group: Group, i: int, about: About, sampled: bool) -> dict[str, Any]:
    completion, measured = group.completions[i], group.measured
    assert measured is not None
    ids = completion.ids.tolist()
    text = completion.text or text_of(about.tokenizer, ids)
    logprobs = measured.logprobs.get(i, completion.logprobs if sampled else None)
    before = logprobs if group.old_logprobs is None else group.old_logprobs[i]
    after = measured.logprobs_after.get(i)
    reference = None if group.reference_logprobs is None else group.reference_logprobs[i]
    values = {
        "logprobs": logprobs,
        "entropies": measured.entropies.get(i),
        "changes": None if after is None or before is None else after - before,
        "reference_logprobs": reference,
    }
    line: dict[str, Any] = {"index": i, "text": text, "tokens": token_texts(ids, text, about)}
    line |= {name: _listed(tensor) for name, tensor in values.items() if tensor is not None}
    line["advantages"] = _advantages(group.advantages[i])
    if group.rewards:
        line["reward"] = significant(group.rewards[i])
    line["components"] = {name: significant(scores[i]) for name, scores in group.components.items()}
    line["spans"] = spans(about.parts, text, {name: logged[i] for name, logged in group.extra.items()})
    line["truncated"] = completion.truncated
    if group.steps is not None:
        pairs = zip(group.steps[i].text_ends, group.steps[i].rewards, strict=True)
        line["steps"] = [{"end": end, "reward": significant(reward)} for end, reward in pairs]
    return line


def _advantages(advantages: Tensor) -> float | list[float | None] | None:
    """One number where all tokens have the same."""
    if len(advantages) and bool((advantages == advantages[0]).all()):
        return significant(float(advantages[0]))
    return _listed(advantages)


def significant(value: float | None) -> float | None:
    """The value with DIGITS significant digits; None for one that JSON cannot hold."""
    return float(f"{value:.{DIGITS}g}") if value is not None and math.isfinite(value) else None


def _listed(values: Tensor) -> list[float | None]:
    """`significant` of each value, in a tenth of the time."""
    exact = values.detach().double().cpu().numpy()
    finite = np.isfinite(exact)
    sizes = np.log10(np.abs(exact), where=finite & (exact != 0), out=np.zeros_like(exact))
    places = DIGITS - 1 - np.floor(sizes)
    # To divide by a power of ten gives the number that its decimal digits mean; to multiply by its inverse does not.
    up, down = 10.0 ** np.clip(places, 0, 300), 10.0 ** np.clip(-places, 0, None)
    rounded = np.rint(np.where(finite, exact, 0.0) * up / down) * down / up
    return [value if ok else None for value, ok in zip(rounded.tolist(), finite.tolist(), strict=True)]


def token_texts(ids: list[int], text: str, about: About) -> list[str]:
    """The text of each token, which together are the text: "" for a token without any, such as the one that ends the
    completion, and for all tokens of a character but the last. Where they cannot be found in the text, what the
    tokenizer gives for each alone."""
    new = [token for token in dict.fromkeys(ids) if token not in about.pieces]
    about.pieces.update({token: about.tokenizer.decode([token]) for token in new})
    alone = [about.pieces[token] for token in ids]
    texts, at, cut = [""] * len(ids), 0, -1
    for i, piece in enumerate(alone):
        if CUT in piece:
            cut = i
        elif cut >= 0 and piece and (start := text.find(piece, at)) >= 0:
            texts[cut], texts[i] = text[at:start], piece
            at, cut = start + len(piece), -1
        elif cut < 0 and text.startswith(piece, at):
            texts[i] = piece
            at += len(piece)
        elif cut < 0 and text.startswith(f" {piece}", at):  # some tokenizers leave out a first space
            texts[i] = f" {piece}"
            at += len(piece) + 1
    if cut >= 0:
        texts[cut] = text[at:]
    return texts if "".join(texts) == text else alone
