"""Refits of a reward model on the policy's own samples, labelled by a rule, mixed with earlier samples."""

from __future__ import annotations

import json
import logging
import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cohort.config import RefitConfig, RewardConfig
from cohort.data.labels import label, probability, sides
from cohort.data.order import derive
from cohort.data.rows import load_rows
from cohort.data.templates import as_completion
from cohort.rewards.models.scorer import Scorer
from cohort.train.iterations.replay import Item, Replay, history_count
from cohort.train.monitors.reward_models import RewardModelGuard, validation_of
from cohort.train.output.checkpoint import load_learner, require_finite, save_learner
from cohort.train.reward_models.model import RewardModel
from cohort.train.reward_models.updater import OF_PAIRS, RewardUpdater
from cohort.types import Group, Row, UserError

log = logging.getLogger("cohort")

WEIGHTS, SAMPLES = "reward_model.safetensors", "replay.json"
"""Files in a checkpoint's folder."""
REWARD_MODEL = "reward_model"
"""Folder in output_dir for the final reward model."""
SCORED = 512
"""The most new samples that a refitted model scores, as the validation scores that the monitor compares later batches
with."""
VERDICTS = {
    (True, True): "mixed",
    (True, False): "all right",
    (False, True): "all wrong",
    (False, False): "not judged",
}
"""(some completion of a group is right, some is wrong) -> the group."""


class Refit:
    """Collects labelled samples and trains the reward model on them and on a share of history.

    What a refit draws is a function of the run's seed and of the refit's number. The optimiser's state is kept between
    refits.
    """

    def __init__(self, name: str, scorer: Scorer, rule: str, config: RefitConfig, seed: int, guard: RewardModelGuard):
        """`name` and `rule`: the names of the reward model and of the rule among the rewards. Raises UserError for a
        `history` that cannot be learned from."""
        self.name, self.scorer, self.rule, self.config, self.seed, self.guard = name, scorer, rule, config, seed, guard
        scorer.model.float()  # small steps would be lost in half precision
        settings = RewardConfig(
            loss_type=config.loss_type,
            learning_rate=config.learning_rate,
            max_grad_norm=config.max_grad_norm,
            max_length=scorer.max_length,
            bf16=False,
            every_token=config.every_token,
        )
        model = RewardModel(scorer.model, scorer.tokenizer, settings)
        model.scorer = scorer  # with its own template's options
        self.updater = RewardUpdater(model, settings, config.loss_type)
        self.replay = Replay(config.replay_size, seed)
        if config.history is not None:
            self.replay.add([_item(row, config.loss_type) for row in load_rows(config.history)])
        self.fresh: list[Item] = []
        self.seen: dict[str, int] = {}
        """Groups since the last refit by the rule's verdicts: all right, all wrong, mixed, not judged."""
        self.told = False
        self.of_pairs = config.loss_type == "preference"

    def see(self, groups: list[Group]) -> None:
        """Keep the groups' completions, or the pairs in them, for the next refit."""
        for group in groups:
            self.fresh += ITEMS[self.config.loss_type](group, self.rule)
            right = {score > 0 for score in group.components[self.rule] if score is not None}
            what = VERDICTS[True in right, False in right]
            self.seen[what] = self.seen.get(what, 0) + 1

    def fit(self, number: int) -> dict[str, float]:
        """Train on the samples since the last refit and on history; afterwards the new samples are history too. Returns
        metrics."""
        started, config = time.perf_counter(), self.config
        seed = derive(derive(self.seed, number), 1)
        new = self.fresh
        if config.max_samples is not None and len(new) > config.max_samples:
            new = random.Random(seed).sample(new, config.max_samples)
        history = self.replay.draw(history_count(len(new), config.replay_share), seed)
        self.fresh = []
        metrics = {"reward_model/new": float(len(new)), "reward_model/history": float(len(history))}
        if not new:
            self._tell("no pair of a right and a wrong completion" if self.of_pairs else "no sample with a label")
            self.seen = {}
            return metrics
        self.replay.add(new)
        lessons = self.updater.lessons([_row(item) for item in [*new, *history]])
        if equal := not self.of_pairs and len({target for each in lessons for target in each.targets}) == 1:
            self._tell(f"every label is {lessons[0].targets[0]:g}")
        self.told, self.seen = equal, {}
        fitted = self.updater.fit(
            lessons,
            epochs=config.num_train_epochs,
            batch_size=config.per_device_train_batch_size,
            learning_rate=config.learning_rate,
            seed=seed,
        )
        self.guard.start_anew(self.name, validation_of(self._scores(new[:SCORED])))
        metrics |= {f"reward_model/{name}": value for name, value in fitted.items() if name not in OF_PAIRS}
        metrics["seconds/refit"] = time.perf_counter() - started
        log.info(
            "reward model %s: learned from %d new samples and %d of history, loss %.3g",
            self.name,
            len(new),
            len(history),
            metrics["reward_model/loss"],
        )
        return metrics

    def _tell(self, why: str) -> None:
        """Warn of a refit that has nothing to learn from; again only after one that had something."""
        if not self.told:
            log.warning(
                "reward model %s: this refit has nothing to tell apart: %s. By %s, of the %d groups since the last "
                "refit %s. More prompts between refits (`every`, steps_per_iteration), more completions of each, or "
                "prompts of which some are solved, help",
                self.name,
                why,
                self.rule,
                sum(self.seen.values()),
                ", ".join(f"{count} are {what}" for what, count in self.seen.items()) or "there are none",
            )
        self.told = True

    def _scores(self, items: list[Item]) -> list[float]:
        texts = [
            (item["prompt"], item[key]) for item in items for key in ("completion", "chosen", "rejected") if key in item
        ]
        encoded = [self.scorer.encode(*text) for text in texts]
        return [row[0] for row in self.scorer.score(encoded, self.config.per_device_train_batch_size)]

    def save(self, folder: Path) -> None:
        """Write weights, optimiser state and samples into a checkpoint's folder."""
        save_learner(folder / WEIGHTS, self.updater.model.parameters, self.updater.optimizer)
        record = {"replay": self.replay.state(), "fresh": self.fresh, "seen": self.seen, "told": self.told}
        (folder / SAMPLES).write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")

    def restore(self, folder: Path) -> None:
        """Load what `save` wrote. Raises UserError for the checkpoint of a run without a refit."""
        if not (folder / WEIGHTS).is_file():
            raise UserError(f"{folder} has no {WEIGHTS}: it is of a run without reward_model_refit; resume without it")
        load_learner(folder / WEIGHTS, self.updater.model.parameters, self.updater.optimizer)
        record = json.loads((folder / SAMPLES).read_text(encoding="utf-8"))
        self.replay.restore(record["replay"])
        self.fresh, self.seen, self.told = record["fresh"], record.get("seen", {}), record.get("told", False)

    def save_model(self, folder: Path) -> None:
        """Save the model as a transformers directory, which `cohort reward eval` and reward_funcs load."""
        known = self.guard.validation[self.name]
        require_finite(self.scorer.model.named_parameters(), folder)
        self.scorer.model.config.held_out = None if known is None else asdict(known)
        self.scorer.model.save_pretrained(folder)
        self.scorer.tokenizer.save_pretrained(folder)


def labelled(group: Group, rule: str, value: Any) -> list[Item]:
    """Every completion that the rule applies to, with its label."""
    prompt = group.row.prompt
    return [
        {"prompt": prompt, "completion": as_completion(prompt, completion.text), "label": value(score)}
        for completion, score in zip(group.completions, group.components[rule], strict=True)
        if score is not None
    ]


def pairs(group: Group, rule: str) -> list[Item]:
    """Pairs of a right completion (the rule is above 0) and a wrong one, in order, each used once, never of equal
    texts."""
    prompt = group.row.prompt
    scored = [
        (completion.text, score)
        for completion, score in zip(group.completions, group.components[rule], strict=True)
        if score is not None
    ]
    right, wrong = ([text for text, score in scored if (score > 0) is good] for good in (True, False))
    return [
        {"prompt": prompt, "chosen": as_completion(prompt, a), "rejected": as_completion(prompt, b)}
        for a, b in zip(right, wrong, strict=False)
        if a != b
    ]


ITEMS = {
    "bce": lambda group, rule: labelled(group, rule, lambda score: float(score > 0)),
    "mse": lambda group, rule: labelled(group, rule, float),
    "preference": pairs,
}
"""`loss_type` -> the training items of a group."""


def _item(row: Row, loss_type: str) -> Item:
    if loss_type == "preference":
        chosen, rejected, _ = sides(row)
        return {"prompt": row.prompt, "chosen": chosen, "rejected": rejected}
    value = label(row)
    if loss_type == "bce":
        probability(value, row, "label")
    return {"prompt": row.prompt, "completion": row.completion, "label": value}


def _row(item: Item) -> Row:
    columns = {key: value for key, value in item.items() if key not in ("prompt", "completion")}
    return Row(item["prompt"], item.get("completion"), columns, "a sample of the policy")
