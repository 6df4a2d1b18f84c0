"""The settings of supervised fine-tuning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cohort.config.training import TrainingConfig


class SFTConfig(TrainingConfig):
    """Supervised fine-tuning on demonstrations: the row `sft` of the table of methods."""

    learning_rate: float = Field(2e-5, ge=0, description="Peak of the schedule.")
    max_length: int | None = Field(
        None,
        ge=2,
        description="Most tokens of prompt and completion; see truncation. None: the model's positions.",
    )

    truncation: Literal["drop", "cut"] = Field(
        "cut",
        description="cut: of a demonstration over max_length, the completion's end is cut off; drop: it is left out. "
        "Both are counted.",
    )
    loss_type: Literal["nll", "chunked_nll", "dft"] = Field(
        "nll",
        description="nll: the negative log-likelihood (chunked_nll too: the head is always chunked). dft: each token's "
        "weighted by its own probability. Dynamic fine-tuning, arXiv 2508.05629",
    )
    completion_only_loss: bool | None = Field(
        None,
        description="false: train on prompts too. true: on completions only, and each row needs a prompt. None: on "
        "completions, and on the whole of rows with a text alone.",
    )
    assistant_only_loss: bool = Field(
        True, description="Of conversations (messages), train on the assistant's turns only; false: on every token."
    )
    chat_template_path: str | None = Field(
        None,
        description="A .jinja file, or a model's folder or name: its chat template replaces the tokenizer's.",
    )
    eos_token: str | None = Field(None, description="The token that ends answers. None: the tokenizer's.")
    dataset_text_field: str = Field("text", description="The column of rows with a text alone.")

    mask_history: bool = Field(
        False, description="Train on the last answer of a conversation only; false: on every assistant turn."
    )

    @model_validator(mode="after")
    def _one_choice_of_tokens(self) -> SFTConfig:
        if self.mask_history and (self.completion_only_loss is False or not self.assistant_only_loss):
            key = "completion_only_loss" if self.completion_only_loss is False else "assistant_only_loss"
            raise ValueError(f"mask_history trains on the last answer only, and {key}: false on every token: give one")
        return self

    @property
    def max_sequence_length(self) -> int | None:
        return self.max_length
