"""The records that pass between the packages of Cohort, users' mistakes, and the legend of shape suffixes.

Shape suffixes, in `formulas` and `train`:

    P  prompts in a batch            T  tokens of the packed stream (prompts once, then completions)
    G  completions of one prompt     N  completion tokens (the tokens that carry loss)
    B  completions, P * G            V  vocabulary        D  hidden size

`rewards_PG` is a [P, G] tensor; `logprobs_N` holds one value for each completion token, groups in order,
completions in order within a group. Log-probabilities are natural logarithms of the policy at the sampling
temperature.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Message = dict[str, Any]
Text = str | list[Message]
"""A plain string, or chat messages: `[{"role": "user", "content": "2+2=?"}]`."""


def joined(prompt: list[Message], completion: list[Message]) -> list[Message]:
    """Prompt and completion as one conversation. A prompt that ends in an assistant turn is continued by it."""
    if not (prompt and completion and prompt[-1].get("role") == completion[0].get("role") == "assistant"):
        return [*prompt, *completion]
    both = f"{prompt[-1].get('content') or ''}{completion[0].get('content') or ''}"
    return [*prompt[:-1], {**prompt[-1], **completion[0], "content": both}, *completion[1:]]


class UserError(ValueError):
    """A user's mistake. The message says what was seen, where, and what to do; the command line exits with 2."""

    def __str__(self) -> str:
        return printable(super().__str__())  # it quotes data, and a script's traceback prints it


class NotFinite(UserError, FloatingPointError):
    """A number that is NaN or infinite, with which training or sampling cannot go on."""


class Terminated(SystemExit):
    """A signal has ended the run. The process's exit code is 128 and the signal's number, as in a shell."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.number = number


def did_you_mean(name: str, candidates: Iterable[str], otherwise: str = "") -> str:
    """The end of a message about an unknown name: ": did you mean 'accuracy'?" where a candidate resembles it, else
    `otherwise`."""
    near = difflib.get_close_matches(name, list(candidates), n=1)
    return f": did you mean {near[0]!r}?" if near else otherwise


def printable(text: str, *, lines: bool = True) -> str:
    """The text with what drives a terminal as visible escapes: an escape character becomes the four characters \\x1b.

    That is control characters, bidirectional overrides and other characters without a shape, and lone surrogates.
    Line breaks and tabs stay, or with `lines=False` (for a name within a line) are escapes too; so do the joiners that
    scripts and emoji need.
    """
    if text.isprintable():
        return text
    kept = "\u200c\u200d\n\t" if lines else "\u200c\u200d"
    return "".join(
        c if c in kept or unicodedata.category(c) not in _UNSEEN else c.encode("unicode_escape").decode() for c in text
    )


_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of control and format characters, surrogates, and separators of lines and paragraphs."""


@dataclass(frozen=True)
class Row:
    """One example of a dataset.

    >>> Row("What is 2+2?", columns={"answer": "4"}, source="train.jsonl row 1").columns["answer"]
    '4'
    """

    prompt: Text
    completion: Text | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    conversation: bool = False
    """Prompt and completion are one conversation of the data: its earlier assistant turns are demonstrations too."""
    number: int | None = None
    """Place in the training data, from 0; None of other rows."""


@dataclass
class Completion:
    """What an engine returns for one sample: token ids in, token ids and log-probabilities out.

    Completion(ids=tensor([11, 4, 2]), logprobs=tensor([-0.1, -1.3, -0.2]), text="4", truncated=False)
    """

    ids: Tensor
    """int64 [n], the end-of-sequence token included where one was sampled."""
    logprobs: Tensor
    """float32 [n], the sampler's own log-probabilities at the sampling temperature, before any truncation."""
    text: str = ""
    truncated: bool = False
    """True where the length limit ended the completion."""
    version: int = 0
    """How many updates the policy had when the completion was sampled; of several weights, the oldest."""
    segments: list[tuple[int, int]] = field(default_factory=list)
    """(version, tokens) of each segment, where it was sampled in segments (`partial_rollouts`)."""


@dataclass
class Steps:
    """The scored steps of one completion.

    Steps(rewards=[1.0, 0.0], text_ends=[6, 11], ends=[5, 11])
    """

    rewards: list[float]
    text_ends: list[int]
    """Where each step ends in the completion's text, in characters, exclusive."""
    ends: list[int] = field(default_factory=list)
    """Index of each step's last token; the last step's is the completion's last token."""


@dataclass
class Measured:
    """What the first update on a group computed of its completions, by their number in the group: float32 [n] each."""

    logprobs: dict[int, Tensor] = field(default_factory=dict)
    """Before the update."""
    entropies: dict[int, Tensor] = field(default_factory=dict)
    """Of the distribution that each token was drawn from, in nats."""
    logprobs_after: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class Group:
    """One prompt and the completions judged against each other.

    Group(prompt_ids=tensor([5, 6, 7]), completions=[c0, c1], row=row, rewards=[1.0, 0.0],
          components={"accuracy": [1.0, 0.0]}, steps=None, advantages=[tensor([.7, .7, .7]), tensor([-.7, -.7])])
    """

    prompt_ids: Tensor
    """int64 [p]."""
    completions: list[Completion]
    row: Row
    rewards: list[float] = field(default_factory=list)
    """[G], the aggregated reward of each completion."""
    components: dict[str, list[float | None]] = field(default_factory=dict)
    """Reward function name -> [G] scores, unweighted, clipped, 0 where a gate is closed; None where the function does
    not apply to the row."""
    steps: list[Steps] | None = None
    """[G] in methods that reward steps, else None."""
    advantages: list[Tensor] = field(default_factory=list)
    """[G] of float32 [n_i], one advantage for each token."""
    old_logprobs: list[Tensor] | None = None
    """[G] of float32 [n_i], under the policy as it was at its first update on the batch; None before that update."""
    reference_logprobs: list[Tensor] | None = None
    """[G] of float32 [n_i], under the reference; None where the method has no KL term. In distillation:
    under the teacher."""
    values: list[Tensor] | None = None
    """[G] of float32 [n_i], the critic's estimates when the batch was sampled, each before its token is sampled."""

    greedy_reward: float | None = None
    """The reward of the prompt's greedy completion, where the method compares with it; read by credit only."""
    extra: dict[str, list[Any]] = field(default_factory=dict)
    """Column -> [G] values that reward functions passed to log_extra; read by the record only."""
    measured: Measured | None = None
    """Of groups that are written to groups.jsonl, until they are; read by the record only."""

    @property
    def tokens(self) -> int:
        """Length of the group in the packed stream: the prompt once, every completion once."""
        return len(self.prompt_ids) + sum(len(c.ids) for c in self.completions)


@dataclass
class TrainerState:
    """What callbacks and reward functions may read about a run: the fields of transformers' TrainerState used here."""

    global_step: int = 0
    max_steps: int = 0
    epoch: float = 0.0
    # Not in the repr: a notebook prints what `trainer.train()` returns.
    log_history: list[dict[str, Any]] = field(default_factory=list, repr=False)
    is_world_process_zero: bool = True
