"""The trainer of reward models, over the same loop as the methods': TRL's shape.

Loop, checkpoints, schedule and records are the policies'; the reward model takes the policy's place and its updater the
updater's. What differs is why a reward model is no row of the table of methods: its loss is not a weighted sum of token
log-probabilities, so there is no credit, no coefficient and no head that forms their gradient.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from cohort.compat.trl_trainer import instantiate_callbacks, of_training_arguments, read_trl_arguments
from cohort.config import ProcessRewardConfig, RewardConfig, RewardModelConfig
from cohort.data.chat_templates import take_template
from cohort.data.configured import log_equal, log_fitted, require_held_out
from cohort.data.held_out import divided, held_out_rows, training_rows
from cohort.data.order import picks
from cohort.data.templates import prepared
from cohort.formulas.chance import like_chance
from cohort.policy import ranks
from cohort.policy.process import seed_everything
from cohort.progress import Task
from cohort.report.console import show_in_script
from cohort.report.live import default_display
from cohort.train.callbacks import RunState, speed_of_evaluation
from cohort.train.compute_metrics import ComputeMetrics, tell_predictions
from cohort.train.facts import compare, facts_of_run
from cohort.train.learners import Learners
from cohort.train.loop import Loop
from cohort.train.monitors.health import Health
from cohort.train.output import checkpoint, hub, manifest
from cohort.train.output.card import describe, write_card
from cohort.train.output.group_record import About
from cohort.train.output.record import MODEL, RECORDS, move_aside, noted, require_folder, told_when_full
from cohort.train.output.trackers import trackers
from cohort.train.ranks import checkpoint_to_resume, lock_of_run, require_agreement
from cohort.train.reward_models.early_stopping import EarlyStopping
from cohort.train.reward_models.examples import (
    Example,
    is_dropped,
    loss_type,
    record_of_example,
    require_two_labels,
)
from cohort.train.reward_models.model import make_reward_model
from cohort.train.reward_models.updater import RewardUpdater
from cohort.train.sources.source import Batch
from cohort.train.surface import Surface, TrainOutput, require_called, tag
from cohort.train.tokenised import Tokenised, like
from cohort.types import Row, TrainerState, UserError

log = logging.getLogger("cohort")


class RewardRows:
    """The source of a reward model's run: batches of examples."""

    def __init__(self, examples: list[Example], config: RewardModelConfig):
        self.examples, self.config = examples, config
        self.size, self.per_batch = len(examples), config.batch_size

    def prepare(self, folder: Path, reuse: bool) -> None:
        """Nothing to prepare."""

    def batch(self, index: int, state: TrainerState) -> Batch:
        config = self.config
        chosen = picks(self.size, index * self.per_batch, self.per_batch, config.seed, config.shuffle_dataset)
        return Batch([self.examples[i] for i in chosen], {})


class RewardTrainer(Surface):
    """Trains a reward model. `args`: a RewardConfig (completions: labelled rows or preference pairs) or a
    ProcessRewardConfig (steps); `model`: a name, a path or a model of transformers, with a head of one label or
    without; datasets as `Trainer` takes them. Raises UserError for what cannot be learnt from."""

    args: RewardModelConfig

    @noted
    def __init__(
        self,
        model: Any,
        args: RewardModelConfig | TrainingArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: Sequence[Any] | None = None,
        peft_config: Any = None,
        **trl_arguments: Any,
    ):
        require_called(type(self), RewardTrainer)
        self.compute_metrics: ComputeMetrics | None = trl_arguments.pop("compute_metrics", None)
        tell_predictions(self.compute_metrics, "the scores")
        config, tokenizer = read_trl_arguments(_configuration(args), model, processing_class, trl_arguments)
        self.args = config
        ranks.join(config.ddp_timeout, config.use_cpu)
        show_in_script(config)
        require_folder(config.output_dir)
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.rows = training_rows(train_dataset, config)
        given = held_out_rows(eval_dataset, config)
        held_out = [row for own in given.values() for row in own]
        require_held_out(held_out, config)
        kind = loss_type(self.rows, config)
        if self.compute_metrics is not None and kind != "preference":
            raise UserError(f"compute_metrics is for pairs, and the loss is {kind}: leave it out")
        if config.push_to_hub:
            hub.require_token()
        seed_everything(config.seed)
        self.base_model: str = model if isinstance(model, str) else model.config.name_or_path
        require_agreement(config, [*self.rows, *held_out])
        self.reward_model = make_reward_model(model, tokenizer, config, peft_config)
        ranks.make_equal(self.reward_model.parameters)
        take_template(self.reward_model.tokenizer, config.chat_template_path, config.trust_remote_code)
        self.rows, held_out = prepared(self.rows, held_out, self.reward_model.tokenizer, config)
        self.updater = RewardUpdater(self.reward_model, config, kind)
        with Task(f"tokenising {len(self.rows):,} rows"):
            self.examples = self._fitting(self.updater.lessons(self.rows), self.rows, "rows")
        self.held_out_prompts = len({str(row.prompt) for row in held_out})
        self.held_out = self._examples(divided(held_out, given))
        if kind == "preference":
            self.train_dataset = Tokenised(self.examples, record_of_example)
            shown = {name: Tokenised(own, record_of_example) for name, own in self.held_out.items()}
            self.eval_dataset = like(eval_dataset, shown)
        self._tell(kind)
        self.state = RunState()
        facts = facts_of_run("reward_model", config, self.model, self.reward_model.tokenizer, self.rows, None)
        self.loop = Loop(
            Learners(self.reward_model, self.updater, health=Health(config), facts=facts),
            RewardRows(self.examples, config),
            config,
            self.state,
            self._callbacks(callbacks or ()),
            self.evaluate if held_out else None,
            About(self._method(), self.base_model, self.reward_model.tokenizer),
            self.log,
        )
        self.loop.callbacks.call("on_init_end")
        tag(self.model, "reward-trainer")

    def _callbacks(self, given: Sequence[Any]) -> list[Any]:
        folder, patience = Path(self.args.output_dir), self.args.early_stopping_patience
        stopping = [EarlyStopping(self.reward_model, folder, patience)] if patience else []
        return [*stopping, *instantiate_callbacks(given), *(trackers(self.args) if ranks.is_main() else [])]

    def _fitting(self, examples: list[Example], rows: list[Row], what: str) -> list[Example]:
        """The examples that fit. Those with a text over the limit are counted and, unless `truncation` is cut, left
        out; so are pairs of equal texts, and texts of whose steps none is left."""
        fitted = [None if is_dropped(example, self.args) else example for example in examples]
        limit = self.reward_model.scorer.max_length or 2**31
        lengths = [limit + 1 if example.truncated else limit for example in examples]
        log_fitted(lengths, fitted, limit, "max_length", what, rows)
        kept = [(example, row) for example, row in zip(fitted, rows, strict=True) if example is not None]
        lost = [example.lost for example in examples]
        if self.args.truncation == "cut" and any(lost):
            log.warning(
                "%d step labels in %d of %d %s stand at steps that max_length cuts off: they are left out",
                sum(lost),
                sum(n > 0 for n in lost),
                len(rows),
                what,
            )
        if len(kept[0][0].texts) == 1:
            return [example for example, _ in kept]
        sides = [(example.texts[0].inputs, example.texts[1].inputs) for example, _ in kept]
        alike = log_equal(sides, [row.source for _, row in kept])
        return [example for (example, _), same in zip(kept, alike, strict=True) if not same]

    def _tell(self, kind: str) -> None:
        """Raise UserError where the data cannot teach anything; warn where overfitting would not be noticed."""
        if not self.held_out:
            if self.args.early_stopping_patience:
                raise UserError("early_stopping_patience needs held-out data: val_size: 0.1, or eval_dataset")
            log.warning("no held-out data, so that nothing shows when the model overfits: val_size: 0.1 keeps some")
        require_two_labels(self.examples, kind)

    @property
    def model(self) -> Any:
        """The model being trained: the PeftModel where there is an adapter."""
        return self.reward_model.peft if self.reward_model.peft is not None else self.reward_model.model

    @property
    def processing_class(self) -> Any:
        return self.reward_model.tokenizer

    def train(self, resume_from_checkpoint: bool | str | None = None) -> TrainOutput:
        """Run to the last step and save the model in output_dir. `resume_from_checkpoint`: True for the newest
        checkpoint in output_dir (from the start where there is none), or a checkpoint's path."""
        resume = self.args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint
        folder = Path(self.args.output_dir)
        title = f"reward model: {self.base_model}"
        shown = default_display(self.loop.callbacks.callbacks, title, self.args.output_dir)
        with shown, told_when_full(self.args.output_dir), lock_of_run(self.args.output_dir):
            self._train(folder, resume)
        if self.held_out:
            examples = [example for own in self.held_out.values() for example in own]
            metrics = self.updater.validate(examples, self.held_out_prompts)
            self.reward_model.model.config.held_out = {name.removeprefix("score/"): x for name, x in metrics.items()}
            if complaint := like_chance(metrics):
                log.warning(
                    "the reward model is no better than chance on its %d held-out examples: %s. Rewards from it would "
                    "be noise: more data, more passes, or another model; `cohort reward eval` shows more",
                    len(examples),
                    complaint,
                )
        if ranks.is_main():
            self.save_model()
        if ranks.is_main() and self.args.push_to_hub:
            self.push_to_hub()
        return self.train_output()

    def _train(self, folder: Path, resume: bool | str) -> None:
        path = checkpoint_to_resume(folder, resume)
        if path is not None:
            compare(path, manifest.facts_of(path), self.loop.learners.facts, self.args.resume_changes == "allow")
        if not resume and ranks.is_main():
            move_aside(folder, (*RECORDS, *MODEL))
        if not resume and self.state.global_step:
            self.loop.restart()
        if path is not None:
            self.loop.resume(path)
        elif resume:
            log.warning("no checkpoint in %s: starting from the beginning", folder)
        self.loop.run()

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss, accuracy and statistics of the scores on the held-out rows or `eval_dataset`, by transformers' names.
        Of a dictionary of datasets, those of each: eval_easy_loss. Raises UserError without rows."""
        held_out = self.held_out
        if eval_dataset is not None:
            rows = held_out_rows(eval_dataset, self.args, metric_key_prefix)
            every = [row for own in rows.values() for row in own]
            every = prepared([], every, self.reward_model.tokenizer, self.args)[1]
            held_out = self._examples(divided(every, rows))
        if not held_out:
            raise UserError("there is no held-out data: give eval_dataset, to the trainer or to evaluate()")
        metrics: dict[str, float] = {}
        for prefix, examples in held_out.items():
            started = time.perf_counter()
            with Task(f"evaluating {len(examples):,} rows"):
                measured = self.updater.measure(examples, self.compute_metrics)
            measured["samples"] = float(len(examples))
            of_set = {f"{prefix}/{name}": value for name, value in measured.items()}
            speed = speed_of_evaluation(prefix, time.perf_counter() - started, len(examples), self.args)
            metrics |= self.loop.tell(of_set, prefix, speed)
        return metrics

    def _examples(self, rows: dict[str, list[Row]]) -> dict[str, list[Example]]:
        """The examples of held-out rows that fit, by how their metrics' names begin."""
        return {prefix: self._fitting(self.updater.examples(own), own, "held-out rows") for prefix, own in rows.items()}

    def _method(self) -> str:
        return "process_reward_model" if isinstance(self.args, ProcessRewardConfig) else "reward_model"

    def save_model(self, output_dir: str | None = None) -> None:
        """Save a transformers directory, or a peft adapter, with tokenizer and model card. Its path can be named as a
        reward."""
        folder = Path(output_dir or self.args.output_dir)
        checkpoint.save_policy(self.reward_model, folder)
        write_card(
            folder,
            describe(self._method(), self.base_model, self.rows, [], self.args, self.reward_model.peft is not None),
        )


def _configuration(args: RewardModelConfig | TrainingArguments | None) -> RewardModelConfig:
    """`args`, or a RewardConfig's defaults. Raises UserError for another class."""
    if isinstance(args, TrainingArguments):
        args = of_training_arguments(RewardConfig, args)
    if args is not None and not isinstance(args, RewardConfig | ProcessRewardConfig):
        raise UserError(
            f"a reward model takes a RewardConfig or a ProcessRewardConfig; args is a {type(args).__name__}"
        )
    return RewardConfig() if args is None else args
