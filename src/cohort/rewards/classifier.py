"""A reward model: any sequence classifier of transformers with one label, with its own tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from cohort.rewards.text import content
from cohort.types import Text, UserError


def make_classifier(
    model: Any,
    processing_class: Any = None,
    batch_size: int = 16,
    max_length: int | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None,
    device: str | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Callable[..., Any]:
    """The logit of a sequence classifier as a reward.

    `model`: a directory, a hub name or a transformers model with one label; `processing_class`: its tokenizer, else
    the one saved with it. A conversation is written by its chat template; without one, prompt and completion are a
    pair where the tokenizer has a classifier token (BERT), else one text. Texts beyond `max_length` tokens (default:
    the model's positions) lose their beginning, of a pair the longer text its end; `NAME/truncated` is their share.
    `dtype`: float32 on a CPU, else the weights' own. Raises UserError for what is not such a classifier.
    """
    import torch

    if batch_size < 1:
        raise UserError(f"reward model: batch_size is {batch_size}; it must be at least 1")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    name = model if isinstance(model, str) else model.config.name_or_path or type(model).__name__
    if isinstance(model, str):
        precision = dtype or ("float32" if place.type == "cpu" else "auto")
        model = _load(model, precision, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    if model.config.num_labels != 1:
        raise UserError(
            f"reward model {name!r} has {model.config.num_labels} labels: a reward model has one, "
            "whose logit is the reward"
        )
    tokenizer = processing_class or _tokenizer(name, trust_remote_code)
    scorer = _Scorer(model.to(place).eval(), tokenizer, batch_size, max_length, chat_template_kwargs or {})

    def score(
        prompts: Sequence[Text],
        completions: Sequence[Text],
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float]:
        scores, truncated = scorer.scores(prompts, completions)
        if log_metric is not None:
            log_metric(f"{score.__name__}/truncated", truncated)
        return scores

    score.__name__ = Path(name).resolve().name
    return score


class _Scorer:
    """A classifier with its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, max_length: int | None, template: dict[str, Any]):
        self.model, self.tokenizer, self.batch_size, self.template = model, tokenizer, batch_size, template
        self.max_length = max_length or _positions(model)
        self.pairs = tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None

    def scores(self, prompts: Sequence[Text], completions: Sequence[Text]) -> tuple[list[float], float]:
        """(one score for each completion, the share of texts that were cut)."""
        encoded = [self._encode(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
        # Of like lengths together, so that little is padding.
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i][0]["input_ids"]))
        found = [0.0] * len(encoded)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            for i, score in zip(batch, self._forward([encoded[i][0] for i in batch]), strict=True):
                found[i] = score
        return found, sum(cut for _, cut in encoded) / max(1, len(encoded))

    def _encode(self, prompt: Text, completion: Text) -> tuple[dict[str, list[int]], bool]:
        """(the tokenizer's inputs for one text, whether it was cut)."""
        tokenizer = self.tokenizer
        if not isinstance(prompt, str) and tokenizer.chat_template:
            reply = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
            written = tokenizer.apply_chat_template([*prompt, *reply], tokenize=False, **self.template)
            ids = tokenizer(written, add_special_tokens=False)
        elif self.pairs:
            ids = tokenizer(_plain(prompt), content(completion))
        else:
            ids = tokenizer(_plain(prompt) + content(completion))
        if not ids["input_ids"]:
            return {"input_ids": [self.tokenizer.eos_token_id or 0], "attention_mask": [1]}, False
        limit = self.max_length
        if limit is None or len(ids["input_ids"]) <= limit:
            return dict(ids), False
        if self.pairs and (isinstance(prompt, str) or not tokenizer.chat_template):
            return dict(tokenizer(_plain(prompt), content(completion), truncation=True, max_length=limit)), True
        return {key: value[-limit:] for key, value in ids.items()}, True

    def _forward(self, batch: list[dict[str, list[int]]]) -> list[float]:
        import torch

        width = max(len(row["input_ids"]) for row in batch)
        pad = self._pad(batch)
        fill = {"input_ids": pad, "token_type_ids": self.tokenizer.pad_token_type_id}
        inputs = {
            key: torch.tensor([row[key] + [fill.get(key, 0)] * (width - len(row[key])) for row in batch])
            for key in batch[0]
        }
        config = self.model.config.get_text_config()
        kept, config.pad_token_id = config.pad_token_id, pad
        try:
            with torch.no_grad():
                logits = self.model(**{key: value.to(self.model.device) for key, value in inputs.items()}).logits
        finally:
            config.pad_token_id = kept
        return logits[:, 0].float().tolist()

    def _pad(self, batch: list[dict[str, list[int]]]) -> int:
        """The padding token.

        transformers takes the score of a causal model at the last token that is not padding. Where the model names
        a padding token, that is how its scores were learnt, even where the text's own end is the same token. Where
        it names none, the text's last token is meant: the padding is a token with which no text of the batch ends.
        """
        named = self.model.config.get_text_config().pad_token_id
        if named is not None:
            return named
        last = {row["input_ids"][-1] for row in batch}
        return next(token for token in range(len(last) + 1) if token not in last)


def _plain(prompt: Text) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(content([message]) for message in prompt)


def _positions(model: Any) -> int | None:
    """Tokens that the model has positions for; RoBERTa's first ones stand behind its padding token's."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None or positions < 1:
        return None
    embeddings = [module for name, module in model.named_modules() if name.endswith("position_embeddings")]
    offset = getattr(embeddings[0], "padding_idx", None) if embeddings else None
    return positions if offset is None else positions - offset - 1


def _load(name: str, dtype: str, *, trust_remote_code: bool, allow_pickle: bool) -> Any:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    options = {"trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(name, **options)
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            name,
            config=config,
            dtype=dtype,
            use_safetensors=None if allow_pickle else True,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        hint = ". Other files than safetensors are read with allow_pickle: true" if "safetensors" in reason else ""
        raise UserError(f"reward model {name!r} could not be loaded: {reason}{hint}") from error
    if loading["missing_keys"]:
        raise UserError(
            f"reward model {name!r} is no trained sequence classifier: its weights lack "
            f"{', '.join(sorted(loading['missing_keys'])[:4])}"
        )
    return model


def _tokenizer(name: str, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"the tokenizer of the reward model {name!r} could not be loaded: {reason}") from error
    # Where the files are missing, some classes of transformers come without a vocabulary.
    if tokenizer("yes")["input_ids"] == tokenizer("no")["input_ids"]:
        raise UserError(f"the tokenizer of the reward model {name!r} has no vocabulary: do its files exist?")
    return tokenizer
