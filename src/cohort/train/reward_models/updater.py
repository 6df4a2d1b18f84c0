"""The step that fits a reward model. `RewardUpdater` is the importable core; the loop drives it in a run of its own,
and a reinforcement-learning run may call `fit` between its steps.

    model = make_reward_model("owner/encoder", None, config)
    updater = RewardUpdater(model, config, "bce")
    losses = updater.fit(updater.lessons(rows), epochs=2, batch_size=16, learning_rate=2e-5, seed=0)
    held_out = updater.measure(updater.examples(others))["loss"]
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cohort.config import RewardConfig, RewardModelConfig
from cohort.data.order import picks
from cohort.formulas.reward_loss import bradley_terry, cross_entropy, squared_error
from cohort.policy import ranks
from cohort.rewards.models.scorer import Encoded
from cohort.train.compute_metrics import ComputeMetrics, computed
from cohort.train.optimizer import descend, make_optimizer, skipped
from cohort.train.reward_models.examples import Example, examples_of, lessons
from cohort.train.reward_models.model import RewardModel, only_head_learns
from cohort.types import Row

log = logging.getLogger("cohort")


STARTS_AGAIN = "out of memory: this step starts again with token_budget=%d"


class UnitLosses(NamedTuple):
    """A loss's values for U units: pairs, texts or steps."""

    loss_U: Tensor
    right_U: Tensor | None
    """1 where the scores agree with the targets in order or sign; None where that does not apply."""
    scores_P2: Tensor | None = None
    """Of pairs: the scores of chosen and rejected texts."""

    def detached(self) -> UnitLosses:
        """Without the graph, on the CPU."""
        return UnitLosses(*(None if each is None else each.detach().cpu() for each in self))  # type: ignore[arg-type]


def _preference(scores_B: Tensor, targets_P: Tensor, config: RewardModelConfig) -> UnitLosses:
    assert isinstance(config, RewardConfig)
    chosen_P, rejected_P = scores_B.view(-1, 2).unbind(1)
    centring = config.center_rewards_coefficient or 0.0
    losses_P = bradley_terry(chosen_P, rejected_P, targets_P, centring)
    return UnitLosses(losses_P, (chosen_P > rejected_P).float(), scores_B.view(-1, 2))


def _probability(scores_U: Tensor, targets_U: Tensor, config: RewardModelConfig) -> UnitLosses:
    return UnitLosses(cross_entropy(scores_U, targets_U), ((scores_U > 0) == (targets_U > 0.5)).float())


def _score(scores_B: Tensor, targets_B: Tensor, config: RewardModelConfig) -> UnitLosses:
    return UnitLosses(squared_error(scores_B, targets_B), None)


LOSSES: dict[str, Callable[[Tensor, Tensor, RewardModelConfig], UnitLosses]] = {
    "preference": _preference,
    "bce": _probability,
    "mse": _score,
    "process": _probability,
}
"""Loss -> function of scores (of texts or step ends) and targets."""
PROBLEM_TYPES = {"bce": "multi_label_classification", "mse": "regression"}
"""Loss -> transformers' `problem_type` in the model's configuration, from which readers know the meaning of the
logit."""


class RewardUpdater:
    """Fits a reward model by one of LOSSES. Losses are divided by the units of the whole step, so micro-batches do not
    change the gradient."""

    name = "reward_model"

    def __init__(self, model: RewardModel, config: RewardModelConfig, kind: str):
        self.model, self.config, self.kind, self.loss = model, config, kind, LOSSES[kind]
        self.optimizer = make_optimizer(model.parameters, config)
        self.token_budget = config.token_budget
        self.state: dict[str, float] = {}
        model.model.config.problem_type = PROBLEM_TYPES.get(kind)
        self.read: dict[tuple[tuple[int, ...], ...], Tensor] | None = {} if only_head_learns(model.model) else None
        """Text -> the frozen backbone's hidden state, computed once; None where the backbone is trained."""

    def lessons(self, rows: Sequence[Row]) -> list[Example]:
        """Training examples of the rows. Raises UserError, naming the row, for rows that the loss cannot use."""
        return lessons(rows, self.model.scorer, self.config, self.kind)

    def examples(self, rows: Sequence[Row]) -> list[Example]:
        """Evaluation examples of the rows. Raises UserError, naming the row, for rows that the loss cannot use."""
        return examples_of(rows, self.model.scorer, self.config, self.kind)

    def step(
        self, examples: list[Example], generation_tokens: float, learning_rate: float, activations: Any = None
    ) -> dict[str, float]:
        """Update the model once. `generation_tokens` and `activations` are for policies and not used."""
        metrics = self.gradient(examples)
        model, config = self.model, self.config
        norm = descend(self.optimizer, model.parameters, learning_rate, config, model.model)
        model.version += math.isfinite(norm)
        return metrics | {"grad_norm": norm} | skipped(norm, config)

    def fit(
        self, examples: list[Example], *, epochs: float, batch_size: int, learning_rate: float, seed: int
    ) -> dict[str, float]:
        """Train for `epochs` passes at a constant rate, each pass in an order that `seed` gives. Returns the means of
        the last pass's metrics. Dropout, where there is any, uses torch's global generator."""
        size = min(batch_size, len(examples))
        steps = max(1, round(epochs * len(examples) / size))
        training = self.model.model.training
        self.model.model.train()
        rows: list[dict[str, float]] = []
        for index in range(steps):
            chosen = picks(len(examples), index * size, size, seed, True)
            rows.append(self.step([examples[i] for i in chosen], 0.0, learning_rate))
        self.model.model.train(training)
        last = rows[-max(1, len(examples) // size) :]
        return {name: sum(row[name] for row in last) / len(last) for name in last[0]}

    def gradient(self, examples: list[Example]) -> dict[str, float]:
        """Leave the mean loss's gradient in the parameters' `.grad`; halve the token budget when memory runs out."""
        units, own = sum(len(example.targets) for example in examples), ranks.share(examples)

        def accumulate(token_budget: int) -> list[UnitLosses]:
            self.optimizer.zero_grad(set_to_none=True)
            every: list[UnitLosses] = []
            for micro in micro_batches(own, token_budget):
                terms = self._terms(micro)
                (terms.loss_U.sum() / units).backward()
                every.append(terms.detached())
            return every

        def longest() -> int:
            return max(len(each.texts) * max(text.length for text in each.texts) for each in examples)

        budget, step = self.token_budget, "the reward model's step"
        every, self.token_budget = ranks.retry_together(accumulate, budget, longest, STARTS_AGAIN, step)
        ranks.sum_gradients(self.model.parameters)
        return _means(every)

    def measure(self, examples: Sequence[Example], compute: ComputeMetrics | None = None) -> dict[str, float]:
        """Loss, accuracy, and mean and standard deviation of the scores, without training; of pairs also what
        `compute` makes of them."""
        metrics, scores_T, _ = self._measured(examples)
        more = computed(compute, scores_T.view(-1, 2)) if compute is not None else {}
        return metrics | {name.removeprefix("eval/"): value for name, value in more.items()}

    def validate(self, examples: Sequence[Example], prompts: int) -> dict[str, float]:
        """`measure` with what `formulas.chance.like_chance` reads beside it: of how many prompts the examples are, and
        the share of the more frequent label, or how scores and values correlate."""
        metrics, scores_T, targets_T = self._measured(examples)
        validation = {**metrics, "samples": float(min(prompts, len(examples)))}
        if self.kind == "mse":
            both = torch.stack([scores_T, targets_T]).double()
            validation["correlation"] = float(both.corrcoef()[0, 1].nan_to_num()) if len(scores_T) > 1 else 0.0
        elif self.kind != "preference":
            right = float((targets_T > 0.5).float().mean())
            validation["majority"] = max(right, 1 - right)
        return validation

    @torch.no_grad()
    def _measured(self, examples: Sequence[Example]) -> tuple[dict[str, float], Tensor, Tensor]:
        """(metrics, scores, targets); scores and targets are in the same order, for pairs they are of two lengths."""
        training = self.model.model.training
        self.model.model.eval()
        every, scores, targets = [], [], list[float]()
        for micro in micro_batches(ranks.share(examples), self.token_budget):
            terms, scores_B = self._scored(micro)
            every.append(terms)
            scores.append(scores_B.cpu())
            targets += [target for example in micro for target in example.targets]
        self.model.model.train(training)
        scores, targets = ranks.concatenated(scores, "evaluating"), ranks.concatenated(targets, "evaluating")
        scores_T = torch.cat(scores)
        spread = float(scores_T.std(correction=0))
        metrics = {**_means(every), "score/mean": float(scores_T.mean()), "score/std": spread}
        return metrics, scores_T, torch.tensor(targets)

    def _terms(self, examples: list[Example]) -> UnitLosses:
        return self._scored(examples)[0]

    def _scored(self, examples: list[Example]) -> tuple[UnitLosses, Tensor]:
        with self.model.autocast():
            scores = self._forward([text for example in examples for text in example.texts])
        targets = torch.tensor([target for example in examples for target in example.targets], device=scores.device)
        return self.loss(scores, targets, self.config), scores

    def _forward(self, texts: list[Encoded]) -> Tensor:
        if self.read is None:
            return self.model.scorer.forward(texts)
        keys = [tuple(map(tuple, text.inputs.values())) for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self.read}
        if new:
            with torch.no_grad():
                self.read |= zip(new, self.model.scorer.read(list(new.values())), strict=True)
        scores: Tensor = self.model.model.score(torch.stack([self.read[key] for key in keys]))[:, 0].float()
        return scores


def _means(own: list[UnitLosses]) -> dict[str, float]:
    """Over the units of all ranks."""
    losses = ranks.concatenated([terms.detached() for terms in own], "the losses")
    loss_U = torch.cat([terms.loss_U for terms in losses])
    right = [terms.right_U for terms in losses if terms.right_U is not None]
    scores = [terms.scores_P2 for terms in losses if terms.scores_P2 is not None]
    return {
        "loss": float(loss_U.mean()),
        **({"accuracy": float(torch.cat(right).mean())} if right else {}),
        **({name: float(measure(torch.cat(scores))) for name, measure in OF_PAIRS.items()} if scores else {}),
    }


OF_PAIRS: dict[str, Callable[[Tensor], Tensor]] = {
    "margin": lambda scores_P2: (scores_P2[:, 0] - scores_P2[:, 1]).mean(),
    "min_reward": torch.amin,
    "mean_reward": torch.mean,
    "max_reward": torch.amax,
}
"""TRL's metrics of the scores of pairs, chosen and rejected."""


def micro_batches(examples: list[Example], budget: int) -> Iterator[list[Example]]:
    """Batches of examples of similar length with at most `budget` tokens, padding included; a single example may have
    more."""
    batch: list[Example] = []
    texts = width = 0
    for example in sorted(examples, key=lambda each: -max(text.length for text in each.texts)):
        width = max(width, *(text.length for text in example.texts))
        if batch and (texts + len(example.texts)) * width > budget:
            yield batch
            batch, texts, width = [], 0, max(text.length for text in example.texts)
        batch.append(example)
        texts += len(example.texts)
    if batch:
        yield batch
