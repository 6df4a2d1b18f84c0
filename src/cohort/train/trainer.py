"""The trainers people call: TRL's shape, over the one loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cohort.config import GRPOConfig, SFTConfig, TrainingConfig, differences_from_paper
from cohort.data.chat_templates import use_template
from cohort.data.rows import load_rows
from cohort.methods import METHODS
from cohort.policy.load import make_policy
from cohort.policy.model import Policy, reference_of
from cohort.policy.pack import Part, micro_batches
from cohort.rewards.compose import Rewards
from cohort.rewards.preflight import preflight
from cohort.rewards.resolve import listed
from cohort.rollouts.collect import Prompt
from cohort.rollouts.engine import local_engine
from cohort.rollouts.evaluate import Evaluation, evaluate
from cohort.rollouts.sampling import Sampling
from cohort.train import checkpoint
from cohort.train.familiar import made, settle
from cohort.train.loop import Loop
from cohort.train.sources import Demonstrations, Samples, Source, encode_prompts
from cohort.train.step import Updater
from cohort.train.trackers import trackers
from cohort.types import Row, TrainerState, UserError

log = logging.getLogger("cohort")

RewardSpec = str | Callable[..., Any] | Mapping[str, Any]


class _Trainer:
    """Policy, data and loop of one method. The method's name is the only thing subclasses decide beside their
    source of batches."""

    method: str

    def __init__(
        self,
        model: Any,
        config: TrainingConfig,
        train_dataset: Any,
        eval_dataset: Any,
        processing_class: Any,
        callbacks: Sequence[Any],
        peft_config: Any,
        rewards: Rewards | None,
    ):
        self.args, self.rewards = config, rewards
        # Data first: its mistakes are told before a model is loaded.
        rows = _rows(train_dataset)
        eval_rows = [] if eval_dataset is None else _rows(eval_dataset)
        torch.manual_seed(config.seed)
        self.policy: Policy = make_policy(model, processing_class, config, peft_config)
        use_template(self.policy.tokenizer, config.template)
        self.engine = local_engine(self.policy, config.max_rows)
        self.eval_prompts: list[Prompt] = []
        self.eval_demonstrations: Demonstrations | None = None
        if eval_rows and rewards is not None:
            self.eval_prompts = encode_prompts(eval_rows, self.policy, config)
        elif eval_rows:
            self.eval_demonstrations = Demonstrations(eval_rows, self.policy, config, METHODS["sft"])
        self.state = TrainerState()
        source = self._source(rows)
        evaluator = self._evaluate if eval_rows else None
        updater = Updater(self.policy, METHODS[self.method], config)
        callbacks = [*made(callbacks), *trackers(config)]
        self.loop = Loop(self.policy, updater, source, evaluator, config, callbacks, self.state)

    def _source(self, rows: list[Row]) -> Source:
        raise AssertionError("each trainer has a source of its own")

    @property
    def model(self) -> Any:
        """The model being trained: the PeftModel where there is an adapter."""
        return self.policy.peft if self.policy.peft is not None else self.policy.model

    @property
    def processing_class(self) -> Any:
        return self.policy.tokenizer

    def train(self, resume_from_checkpoint: bool | str | None = None) -> TrainerState:
        """Run to the last step and save the final model in output_dir. `resume_from_checkpoint`: True for the
        newest checkpoint in output_dir (from the start where there is none), or a checkpoint's path."""
        self._before_training()
        resume = self.args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint
        if resume:
            path = checkpoint.newest(Path(self.args.output_dir)) if resume is True else Path(resume)
            if path is None:
                log.warning("no checkpoint in %s: starting from the beginning", self.args.output_dir)
            else:
                self.loop.resume(path)
        self.loop.run()
        self.save_model()
        return self.state

    def _before_training(self) -> None:
        """What a method looks at before anything costs time. Raises UserError where training would be in vain."""

    def evaluate(self) -> dict[str, float]:
        """Metrics of the evaluation data under the policy as it is now."""
        return self._evaluate(self.state)

    def add_callback(self, callback: Any) -> None:
        """A callback, or its class, with transformers' on_* methods."""
        self.loop.callbacks += made([callback])

    def save_model(self, output_dir: str | None = None) -> None:
        """An ordinary transformers directory, or peft adapter, with its tokenizer."""
        checkpoint.save_policy(self.policy, Path(output_dir or self.args.output_dir))

    def _evaluate(self, state: TrainerState) -> dict[str, float]:
        if self.eval_demonstrations is not None:
            return {"eval/loss": self._demonstration_loss(self.eval_demonstrations)}
        return self.sample(state).metrics()

    def sample(self, state: TrainerState) -> Evaluation:
        """Completions of the evaluation prompts with their scores, by the configuration's evaluation settings."""
        assert self.rewards is not None
        sampling = Sampling(
            temperature=self.args.eval_temperature,
            max_tokens=self.args.max_completion_length,
            eos_ids=self.policy.eos_ids,
            stop=getattr(self.args, "stop", []),
        )
        n = self.args.num_generations_eval
        return evaluate(self.eval_prompts, self.engine, self.rewards, sampling, n, self.args.seed, state)

    def _demonstration_loss(self, demonstrations: Demonstrations) -> float:
        """Mean over demonstrations of the mean negative log-probability of their tokens."""
        parts = [Part(i, p, range(1), [c]) for i, (_, p, c) in enumerate(demonstrations.examples)]
        self.policy.model.eval()
        found = self.policy.logprobs(micro_batches(parts, self.args.token_budget), 1.0)
        self.policy.model.train()
        return -sum(float(logprobs.mean()) for logprobs in found.values()) / len(found)


def _rows(dataset: Any) -> list[Row]:
    return dataset if isinstance(dataset, list) and dataset and isinstance(dataset[0], Row) else load_rows(dataset)


def check_rewards(rewards: Rewards, rows: list[Row], tokenizer: Any, state: TrainerState) -> None:
    """Try the rewards on a few made-up answers and say what they gave. Raises UserError where they cannot tell right
    from wrong."""
    log.info("trying the rewards on made-up answers (reward_preflight: false leaves this out)")
    found = preflight(rewards, rows, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"], state)
    for line in found.lines():
        log.info("  %s", line)
    for warning in found.warnings:
        log.warning("rewards: %s", warning)
    if found.problem is not None:
        raise UserError(found.problem)


class GRPOTrainer(_Trainer):
    """Group relative policy optimisation (DeepSeekMath, arXiv 2402.03300), with TRL's arguments.

    `model`: name, path, or a transformers model; `reward_funcs`: one or several functions or names; datasets: a
    datasets.Dataset, a list of dicts, a path or hub name, with a `prompt` column. TRL's other arguments are taken too:
    docs/coming-from-trl.md. Raises UserError for what it cannot use.
    """

    method = "grpo"

    def __init__(
        self,
        model: Any,
        reward_funcs: RewardSpec | Sequence[RewardSpec],
        args: GRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: Sequence[Any] = (),
        peft_config: Any = None,
        **familiar: Any,
    ):
        config, processing_class = settle(args, GRPOConfig, model, processing_class, familiar)
        rewards = Rewards(listed(reward_funcs, config.max_completion_length), config.reward_weights, config.reward_clip)
        self.config = config
        super().__init__(
            model,
            config,
            train_dataset,
            eval_dataset,
            processing_class,
            callbacks or (),
            peft_config,
            rewards,
        )
        G, P = config.num_generations, config.prompts_per_step
        # A batch that is no whole number of groups is told even where nobody listens to more than warnings.
        level = logging.INFO if config.batch_size == P * G else logging.WARNING
        log.log(level, "each step: %d prompts x %d completions = %d completions", P, G, P * G)
        for difference in differences_from_paper(config):
            log.info("differs from the paper: %s", difference)

    def _before_training(self) -> None:
        if self.config.reward_preflight:
            assert self.rewards is not None
            check_rewards(self.rewards, self.prompt_rows, self.policy.tokenizer, self.state)

    def _source(self, rows: list[Row]) -> Source:
        assert self.rewards is not None
        self.prompt_rows = rows
        reference = reference_of(self.policy) if self.config.beta > 0 else None
        prompts = encode_prompts(rows, self.policy, self.config)
        return Samples(prompts, self.policy, self.engine, reference, self.rewards, self.config, METHODS[self.method])


class SFTTrainer(_Trainer):
    """Supervised fine-tuning on demonstrations, loss on the completion only. `reward_funcs`, where given, score
    sampled completions of `eval_dataset`; else evaluation is the held-out loss."""

    method = "sft"

    def __init__(
        self,
        model: Any,
        args: SFTConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: Sequence[Any] = (),
        peft_config: Any = None,
        reward_funcs: RewardSpec | Sequence[RewardSpec] | None = None,
        **familiar: Any,
    ):
        config, processing_class = settle(args, SFTConfig, model, processing_class, familiar)
        rewards = Rewards(listed(reward_funcs, config.max_completion_length)) if reward_funcs else None
        super().__init__(
            model,
            config,
            train_dataset,
            eval_dataset,
            processing_class,
            callbacks or (),
            peft_config,
            rewards,
        )

    def _source(self, rows: list[Row]) -> Source:
        return Demonstrations(rows, self.policy, self.args, METHODS[self.method])
