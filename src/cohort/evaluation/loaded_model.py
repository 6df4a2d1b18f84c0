"""A model loaded by name, ready to encode prompts and to sample completions."""

from __future__ import annotations

from typing import Any

from cohort.config import TrainingConfig
from cohort.data.chat_templates import use_template
from cohort.data.templates import for_template
from cohort.evaluation.evaluate import Evaluation, evaluate
from cohort.policy.load import make_policy
from cohort.rewards.compose import Rewards
from cohort.rollouts.encoding import Prompt, encode_prompts
from cohort.rollouts.engine import local_engine
from cohort.rollouts.sampling import Sampling
from cohort.types import Row, TrainerState


class LoadedModel:
    """A model, or an adapter with its base model, and the local engine that samples it.

    `template` names a chat template for a tokenizer that has none, or with `replace` for any.
    """

    def __init__(self, name: str, config: TrainingConfig, template: str | None = None, replace: bool = False):
        self.config = config
        self.policy = make_policy(name, None, config, trained=False)
        use_template(self.policy.tokenizer, template, replace)
        self.engine = local_engine(self.policy, config.max_rows)

    @property
    def tokenizer(self) -> Any:
        return self.policy.tokenizer

    @property
    def has_chat_template(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    def encode(self, rows: list[Row]) -> list[Prompt]:
        """The rows' prompts as token ids. Raises UserError where none fits the model's positions."""
        rows = for_template(rows, self.tokenizer, self.config.apply_chat_template)
        return encode_prompts(rows, self.policy, self.config)

    def sampling(self, **settings: Any) -> Sampling:
        """Sampling settings with the model's end-of-sequence tokens; `settings` are Sampling's other fields."""
        return Sampling(**settings, eos_ids=self.policy.eos_ids)

    def evaluate(self, prompts: list[Prompt], rewards: Rewards, sampling: Sampling, n: int, seed: int) -> Evaluation:
        """Sample n completions of each prompt and score them."""
        return evaluate(prompts, self.engine, rewards, sampling, n, seed, TrainerState())
