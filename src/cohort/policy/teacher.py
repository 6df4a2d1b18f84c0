"""The teacher of on-policy distillation: a frozen model that scores the policy's tokens."""

from __future__ import annotations

import logging
from typing import Any

from cohort.config import DistillConfig
from cohort.policy.load import find_device, load_model, load_tokenizer, loading_options, make_policy
from cohort.policy.model import Policy
from cohort.types import UserError

log = logging.getLogger("cohort")

PROBES = ("The sum of 19 and 28 is 47.\n\n", "  def f(x):\n\treturn x ** 2  # naïve, 漢字")
"""Texts that both tokenizers must encode alike: tokenizers of equal vocabularies may still cut texts differently."""

PADDING = 0.01
"""Rows that a teacher's output layer may have beyond the model's, as a share: models of one family pad the same
vocabulary to different sizes (Qwen2.5-0.5B to 151,936 rows, 7B to 152,064)."""


def chosen_teacher(given: Any, config: DistillConfig) -> Any:
    """The teacher, given in Python or named in the configuration. Raises UserError where it is neither or both."""
    if given is not None and config.teacher is not None:
        raise UserError(f"the teacher is given twice, as an argument and as {config.teacher!r} in args: give it once")
    teacher = config.teacher if given is None else given
    if teacher is None:
        raise UserError(
            "distill learns from a teacher and there is none: set teacher to the name or path of a causal language "
            "model with the same vocabulary, or give Trainer(teacher=...) a model"
        )
    return teacher


def frozen_settings(config: DistillConfig) -> DistillConfig:
    """The settings with which a teacher is loaded: no weight is trained."""
    kwargs = config.teacher_model_init_kwargs
    return config.model_copy(
        update={"model_init_kwargs": kwargs, "finetuning_type": "full", "gradient_checkpointing": False}
    )


def load_teacher(teacher: Any, policy: Policy, config: DistillConfig) -> Policy:
    """The teacher as a policy that is never updated. `teacher`: a name, a path or a model. Raises UserError where it is
    the policy's own model, or its tokens are not the policy's."""
    if teacher is policy.model or (policy.peft is not None and teacher is policy.peft):
        raise UserError("the teacher is the model itself, which training changes: give another model")
    settings = frozen_settings(config)
    if isinstance(teacher, str):
        tokenizer = load_tokenizer(teacher, trust_remote_code=config.trust_remote_code)
        options = loading_options(settings, find_device(config.use_cpu), has_adapter=True)
        trust = {"trust_remote_code": config.trust_remote_code, "allow_pickle": config.allow_pickle}
        teacher = load_model(teacher, **trust, **options)
    else:
        tokenizer = _tokenizer_of(teacher, config)
        if config.teacher_model_init_kwargs:
            log.warning("teacher_model_init_kwargs have no effect here: the teacher is loaded already")
    frozen = make_policy(teacher, policy.tokenizer if tokenizer is None else tokenizer, settings, trained=False)
    frozen.model.eval()
    _require_same_tokens(frozen, policy)
    return frozen


def _tokenizer_of(model: Any, config: DistillConfig) -> Any:
    """The tokenizer in the directory or repository that a model object was loaded from; None where there is none."""
    name = getattr(model.config, "name_or_path", "")
    try:
        return load_tokenizer(name, trust_remote_code=config.trust_remote_code) if name else None
    except UserError:
        log.info("the teacher %r has no tokenizer: its tokens are taken to be the model's", name)
        return None


def _require_same_tokens(teacher: Policy, policy: Policy) -> None:
    theirs, ours = (each.head.output.weight.shape[0] for each in (teacher, policy))
    who = f"teacher {teacher.name!r}"
    if ours < theirs <= (1 + PADDING) * ours:
        log.info("%s has %d more rows in its output layer, taken for padding", who, theirs - ours)
    elif theirs != ours:
        raise UserError(
            f"{who} has a vocabulary of {theirs:,} tokens and the model {policy.name!r} one of {ours:,}: both "
            "score every token, so take a teacher of the same vocabulary"
        )
    vocabulary = teacher.tokenizer.get_vocab()
    for token, number in policy.tokenizer.get_vocab().items():
        if vocabulary.get(token) != number:
            raise UserError(
                f"{who} has another vocabulary than the model {policy.name!r}: the token {token!r} is {number} for the "
                f"model and {vocabulary.get(token, 'unknown')} for the teacher. Take a teacher of the same tokenizer"
            )
    for text in PROBES:
        pair = [each.tokenizer(text, add_special_tokens=False)["input_ids"] for each in (policy, teacher)]
        if pair[0] != pair[1]:
            raise UserError(
                f"{who} cuts texts into other tokens than the model {policy.name!r}: {text!r} is {pair[0]} for the "
                f"model and {pair[1]} for the teacher. Take a teacher of the same tokenizer"
            )
