"""The trainer of every method, with the arguments of TRL's trainers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from transformers import TrainingArguments

from cohort.compat.trl_trainer import instantiate_callbacks, of_training_arguments, read_trl_arguments
from cohort.config import DistillConfig, PPOConfig, SampledConfig, TrainingConfig
from cohort.data.configured import require_held_out
from cohort.data.held_out import divided, held_out_rows, training_rows
from cohort.data.templates import prepared
from cohort.evaluation.evaluate import Evaluation
from cohort.methods.method import Method
from cohort.methods.named import find_method
from cohort.policy import ranks
from cohort.policy.model import Policy
from cohort.policy.process import seed_everything
from cohort.policy.teacher import chosen_teacher, load_teacher
from cohort.report.console import show_in_script
from cohort.report.live import default_display
from cohort.rewards.resolve import with_tokenizers
from cohort.rollouts.engine import Engine, in_use
from cohort.rollouts.following import following
from cohort.train import sharded
from cohort.train.announce import announce
from cohort.train.callbacks import RunState, speed_of_evaluation
from cohort.train.critic import CriticUpdater
from cohort.train.facts import compare, facts_of_run
from cohort.train.held_out import measure_of
from cohort.train.iterations.make import iterations_of
from cohort.train.iterations.refit import REWARD_MODEL
from cohort.train.learners import Learners
from cohort.train.loop import Loop
from cohort.train.monitors.health import Health
from cohort.train.monitors.slow_rewards import SlowRewards
from cohort.train.output import hub, manifest
from cohort.train.output.card import describe, write_card
from cohort.train.output.group_record import About
from cohort.train.output.record import MODEL, RECORDS, SAMPLES, move_aside, noted, require_folder, told_when_full
from cohort.train.output.trackers import trackers
from cohort.train.profile import profilers
from cohort.train.ranks import checkpoint_to_resume, lock_of_run, require_agreement
from cohort.train.run_rewards import RewardSpec, check_rewards, make_rewards, with_weights
from cohort.train.sources.pair_reference import kept_reference, reference_model, require_random_access
from cohort.train.sources.parts import Parts
from cohort.train.sources.samples_ahead import SamplesAhead
from cohort.train.sources.source import Source
from cohort.train.sources.table import SOURCES
from cohort.train.step import Updater
from cohort.train.surface import Accelerator, Surface, TrainOutput, require_called, tag
from cohort.train.tokenised import shown
from cohort.train.usable import require_usable
from cohort.types import Row, UserError

log = logging.getLogger("cohort")


class Trainer(Surface):
    """Trains a model by any row of the table of methods.

    `method`: a row's name, path/to/file.py:row, or a row of your own (docs/new-method.md); `args`: an instance of the
    row's `config`, None for its defaults; `engine`: samples completions, an Engine or a function from the
    policy to one (default: the policy in this process);
    `model`: name, path, or a transformers model; `reward_funcs`: one or several functions or names; datasets: a
    datasets.Dataset, a list of dicts, a path or hub name. TRL's other arguments are taken too:
    docs/coming-from-trl.md. Raises UserError for what the method cannot use.
    """

    @noted
    def __init__(
        self,
        model: Any,
        reward_funcs: RewardSpec | Sequence[RewardSpec] | None = None,
        args: TrainingConfig | TrainingArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: Sequence[Any] | None = None,
        peft_config: Any = None,
        *,
        method: str | Method = "grpo",
        engine: Engine | Callable[[Policy], Engine] | None = None,
        **trl_arguments: Any,
    ):
        require_called(type(self), Trainer)
        self.method = method if isinstance(method, Method) else find_method(method)
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        ref_model = trl_arguments.pop("ref_model", None) if self.method.source == "preferences" else None
        teacher = trl_arguments.pop("teacher", None) if issubclass(self.method.config, DistillConfig) else None
        tokenizers = trl_arguments.pop("reward_processing_classes", None)
        self.reward_processing_classes = list(tokenizers) if isinstance(tokenizers, list | tuple) else [tokenizers]
        config, processing_class = read_trl_arguments(
            _configuration(self.method, args), model, processing_class, trl_arguments
        )
        reward_funcs = with_tokenizers(reward_funcs, tokenizers, config.use_cpu)
        ranks.join(config.ddp_timeout, config.use_cpu)
        show_in_script(config)
        self.rewards = make_rewards(reward_funcs, config)
        self.args = config = with_weights(config, self.rewards)
        require_folder(config.output_dir)
        # Data first: its mistakes are told before a model is loaded.
        rows, held_out = self._read_rows()
        if isinstance(config, DistillConfig):
            teacher = chosen_teacher(teacher, config)
        if config.push_to_hub:
            hub.require_token()
        seed_everything(config.seed)
        self.policy: Policy = sharded.make_policy(model, processing_class, config, peft_config)
        self.policy.require_trainable()
        self.reference = self.policy if ref_model is None else reference_model(ref_model, self.policy, config)
        self.teacher = load_teacher(teacher, self.policy, config) if isinstance(config, DistillConfig) else None
        self.rows, held_out = self._formatted(rows, held_out)
        self.engine = sharded.engine_of(engine, self.policy, config)
        self.state = RunState()
        self.prepared = False
        critics = self._critics()
        self.online_reference = kept_reference(self.policy, self.reference, config)
        self.iterations = iterations_of(config, self.policy, self.rewards, self.online_reference)
        self.health = Health(config, self.policy, self.rewards)
        shared = next((critic for critic in critics if not critic.critic.own_backbone), None)
        self.updater = Updater(self.policy, self.method, config, shared)
        self.parts = self._parts(critics, model)
        self.held_out = {prefix: measure_of(rows, self.parts) for prefix, rows in held_out.items()}
        source = SOURCES[self.method.source](self.parts, self.rows)
        self.loop = self._loop(source, critics, callbacks or ())
        self._show_datasets(source, held_out)
        announce(self.policy, config)
        self.loop.callbacks.call("on_init_end")
        tag(self.model, self.method.name)

    def _read_rows(self) -> tuple[list[Row], dict[str, list[Row]]]:
        """The rows of train_dataset and of each held-out set. Raises UserError for what the method cannot use."""
        config = self.args
        require_random_access(config, self.train_dataset, self.eval_dataset)
        rows, held_out = training_rows(self.train_dataset, config), held_out_rows(self.eval_dataset, config)
        eval_rows = [row for each in held_out.values() for row in each]
        require_held_out(eval_rows, config)
        require_usable(self.method, config, self.rewards, rows, eval_rows)
        sharded.require_possible(self.method, config)
        require_agreement(config, [*rows, *eval_rows])
        return rows, held_out

    def _formatted(self, rows: list[Row], held_out: dict[str, list[Row]]) -> tuple[list[Row], dict[str, list[Row]]]:
        """The rows, and those of each held-out set, as the templates of the configuration write them."""
        eval_rows = [row for each in held_out.values() for row in each]
        rows, eval_rows = prepared(rows, eval_rows, self.policy.tokenizer, self.args)
        return rows, divided(eval_rows, held_out)

    def _show_datasets(self, source: Source, held_out: dict[str, list[Row]]) -> None:
        """Set the datasets to the tokenised ones, as TRL's trainers of a loss without rewards do."""
        datasets = shown(source, held_out, self.eval_dataset, self.policy.tokenizer, self.args)
        if datasets is not None and self.rewards is None:
            self.train_dataset, self.eval_dataset = datasets

    def _loop(self, source: Source, critics: list[CriticUpdater], callbacks: Sequence[Any]) -> Loop:
        """The loop, with what it updates and calls."""
        config, policy = self.args, self.policy
        facts = facts_of_run(self.method.name, config, self.model, policy.tokenizer, self.rows, self.rewards)
        ahead = source if isinstance(source, SamplesAhead) else None
        return Loop(
            Learners(policy, self.updater, critics, self.iterations, self.health, facts, ahead),
            source,
            config,
            self.state,
            self._callbacks(callbacks),
            self.evaluate if self.held_out else None,
            About(self.method.name, policy.name, policy.tokenizer, self.rewards),
            self.log,
        )

    def _callbacks(self, given: Sequence[Any]) -> list[Any]:
        gold = self.iterations and self.iterations.gold
        slow = [] if self.rewards is None else [SlowRewards(self.rewards)]
        own = [*trackers(self.args), *profilers(self.args)] if ranks.is_main() else []
        return [*([gold] if gold else []), *slow, *instantiate_callbacks(given), *own]

    def _parts(self, critics: list[CriticUpdater], model: Any) -> Parts:
        return Parts(
            policy=self.policy,
            engine=following(self.engine, self.policy),
            rewards=self.rewards,
            method=self.method,
            config=self.args,
            start=self.reference,
            start_name=model if isinstance(model, str) else None,
            reference=self.online_reference,
            teacher=self.teacher,
            attachments=[critic.attach for critic in critics],
            observer=None if self.iterations is None else self.iterations.see,
            health=self.health,
            compute_metrics=self.compute_metrics,
        )

    def _critics(self) -> list[CriticUpdater]:
        """The critic's updater, where the row has a critic."""
        if not self.method.critic:
            return []
        return [CriticUpdater(self.policy, self.method, cast(PPOConfig, self.args))]

    @property
    def model(self) -> Any:
        """The model being trained: the PeftModel where there is an adapter."""
        return self.policy.peft if self.policy.peft is not None else self.policy.model

    @property
    def processing_class(self) -> Any:
        return self.policy.tokenizer

    def train(self, resume_from_checkpoint: bool | str | None = None) -> TrainOutput:
        """Run to the last step and save the final model in output_dir. `resume_from_checkpoint`: True for the
        newest checkpoint in output_dir (from the start where there is none), or a checkpoint's path. A second call
        without it begins a new run at step 0 with the weights as they are, as transformers' does."""
        title = f"{self.method.name}: {self.policy.name}"
        folder = self.args.output_dir
        shown = default_display(self.loop.callbacks.callbacks, title, folder)
        with shown, told_when_full(folder), lock_of_run(folder), in_use(self.engine):
            self._train(resume_from_checkpoint)
        return self.train_output()

    def _train(self, resume_from_checkpoint: bool | str | None) -> None:
        config = self.args
        self._try_rewards()
        resume = config.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint
        folder = Path(config.output_dir)
        path = checkpoint_to_resume(folder, resume)
        if path is not None:
            compare(path, manifest.facts_of(path), self.loop.learners.facts, config.resume_changes == "allow")
        if not resume and ranks.is_main():
            move_aside(folder, (*RECORDS, SAMPLES, *MODEL))
        if not self.prepared:
            self.loop.source.prepare(folder, reuse=bool(resume))
            self.prepared = True
        if not resume and self.state.global_step:
            self.loop.restart()
        if path is not None:
            self.loop.resume(path)
        elif resume:
            log.warning("no checkpoint in %s: starting from the beginning", config.output_dir)
        self.loop.run()
        self.save_model()
        if not ranks.is_main():
            return
        if self.iterations is not None and self.iterations.refit is not None:
            self.iterations.refit.save_model(folder / REWARD_MODEL)
        if config.push_to_hub:
            self.push_to_hub()

    def _try_rewards(self) -> None:
        """Try the rewards before the first sample, where the method learns from rewards."""
        config = self.args
        if isinstance(config, SampledConfig) and config.reward_preflight and config.learns_from_rewards:
            assert self.rewards is not None
            check_rewards(self.rewards, self.rows, self.policy.tokenizer, self.state)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Metrics of the held-out rows, or of `eval_dataset`, under the policy as it is now: transformers' names. Of a
        dictionary of datasets, those of each: eval_easy_reward. Raises UserError without rows."""
        held_out = self.held_out
        if eval_dataset is not None:
            require_random_access(self.args, eval_dataset)
            rows = held_out_rows(eval_dataset, self.args, metric_key_prefix)
            held_out = {prefix: measure_of(own, self.parts) for prefix, own in self._formatted([], rows)[1].items()}
        if not held_out:
            raise UserError("there is no held-out data: give eval_dataset, to the trainer or to evaluate()")
        metrics: dict[str, float] = {}
        for prefix, measure in held_out.items():
            started = time.perf_counter()
            measured = measure(self.state)
            seconds = time.perf_counter() - started
            sampled = measured if isinstance(measured, Evaluation) else None
            of_set = measured.metrics() if isinstance(measured, Evaluation) else measured
            speed = speed_of_evaluation(prefix, seconds, of_set["eval/samples"], self.args)
            of_set = {prefix + name.removeprefix("eval") if name.startswith("eval/") else name: value
                      for name, value in of_set.items()}  # fmt: skip
            metrics |= self.loop.tell(of_set, prefix, speed, sampled)
        return metrics

    @property
    def ref_model(self) -> Any:
        """The model of the KL term, or DPO's reference; None where the policy without its adapter is it, or none."""
        if self.reference is not self.policy:
            return self.reference.model
        return None if self.online_reference is None else self.online_reference.model

    @property
    def accelerator(self) -> Accelerator:
        return Accelerator(self.policy.device)

    @property
    def reward_funcs(self) -> list[Any]:
        return [] if self.rewards is None else [part.function for part in self.rewards.parts]

    @property
    def reward_func_names(self) -> list[str]:
        return [] if self.rewards is None else self.rewards.names

    def save_model(self, output_dir: str | None = None) -> None:
        """An ordinary transformers directory, or peft adapter, with its tokenizer and model card."""
        folder = Path(output_dir or self.args.output_dir)
        sharded.save_model(self.policy, folder)
        if not ranks.is_main():
            return
        names = [] if self.rewards is None else self.rewards.names
        adapter = self.policy.peft is not None
        method, base_model = self.method, self.policy.name
        write_card(folder, describe(method.name, base_model, self.rows, names, self.args, adapter, method.paper))


def _configuration(method: Method, args: TrainingConfig | TrainingArguments | None) -> TrainingConfig:
    """`args`, or the defaults of the row's configuration class. Raises UserError for another class."""
    kind = method.config
    if args is None:
        return kind()
    if isinstance(args, TrainingArguments):
        return cast(TrainingConfig, of_training_arguments(kind, args))
    if not isinstance(args, kind):
        foreign = f"{type(args).__module__}.{type(args).__qualname__}: import {kind.__name__} from cohort"
        seen = type(args).__name__ if isinstance(args, TrainingConfig) else foreign
        raise UserError(f"method {method.name} takes a {kind.__name__}, and args is a {seen}")
    return args
