"""A reward model as a reward function, and loading of reward models and their tokenizers."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from logging import ERROR
from pathlib import Path
from typing import Any, Literal

from cohort.compat.libraries import quiet
from cohort.config.hub import cache_without_hub, not_loaded
from cohort.progress import Task
from cohort.rewards.models.scorer import Encoded, Scorer
from cohort.types import Text, UserError

Log = Callable[[str, float], None]
log = logging.getLogger("cohort")


def make_classifier(
    model: Any,
    processing_class: Any = None,
    batch_size: int = 16,
    max_length: int | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None,
    device: str | None = None,
    probability: bool | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Callable[..., Any]:
    """A reward function that returns a reward model's score of each completion, or of each step for a process model.

    `model`: a directory, a hub name or a transformers model with one label. `processing_class`: its tokenizer; None:
    the one saved with it. A conversation is formatted by the chat template; without a template, prompt and completion
    are a pair if the tokenizer has a classifier token (BERT), else one text. Texts longer than `max_length` tokens
    (default: the model's maximum) lose their beginning; of a pair, the longer text loses its end. The metric
    `NAME/truncated` is the fraction of such texts. `probability`: return the sigmoid of the logit; None: for process
    models only. `dtype`: default float32 on a CPU, else the dtype of the weights. A step that the limit cuts off has
    no reward, None. Raises UserError for a model that cannot be loaded or does not have one label.
    """
    if batch_size < 1:
        raise UserError(f"reward model: batch_size is {batch_size}; it must be at least 1")
    name = model if isinstance(model, str) else model.config.name_or_path or type(model).__name__
    model = _placed(model, dtype, device, trust_remote_code, allow_pickle)
    require_one_label(name, model.config)
    tokenizer = processing_class or load_tokenizer(name, trust_remote_code)
    scorer = Scorer(model.eval(), tokenizer, max_length, chat_template_kwargs)
    squash = scorer.of_steps if probability is None else probability
    log_name = Path(name).resolve().name

    def encoded(texts: list[Encoded], log_metric: Log | None) -> list[list[float]]:
        if log_metric is not None:
            log_metric(f"{log_name}/truncated", sum(each.truncated for each in texts) / max(1, len(texts)))
        scores = scorer.score(texts, batch_size)
        return [[_sigmoid(score) for score in row] for row in scores] if squash else scores

    def score(
        prompts: Sequence[Text], completions: Sequence[Text], log_metric: Log | None = None, **_: Any
    ) -> list[float]:
        texts = [scorer.encode(*each) for each in zip(prompts, completions, strict=True)]
        return [row[0] for row in encoded(texts, log_metric)]

    def score_steps(
        prompts: Sequence[Text],
        completions: Sequence[Text],
        steps: Sequence[Sequence[str]],
        log_metric: Log | None = None,
        **_: Any,
    ) -> list[list[float | None]]:
        texts = [scorer.encode_steps(*each) for each in zip(prompts, completions, steps, strict=True)]
        rows: list[list[float | None]] = [[None] * len(of_text) for of_text in steps]
        for row, text, scores in zip(rows, texts, encoded(texts, log_metric), strict=True):
            for step, score in zip(text.steps, scores, strict=True):
                row[step] = score
        _tell_cut_off(log_name, scorer, texts)
        return rows

    return _marked(score_steps if scorer.of_steps else score, log_name, scorer, squash)


def _placed(model: Any, dtype: Any, device: str | None, trust_remote_code: bool, allow_pickle: bool) -> Any:
    """The model, loaded if it is a name, on `device`: by default the GPU where there is one."""
    import torch

    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if isinstance(model, str):
        precision = dtype or ("float32" if place.type == "cpu" else "auto")
        model = load_classifier(model, precision, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    return model.to(place)


def _marked(function: Callable[..., Any], name: str, scorer: Scorer, probability: bool) -> Callable[..., Any]:
    """Set the function's `scorer` and `probability`, which training the reward model during a run reads."""
    function.__name__ = name
    function.scorer, function.probability = scorer, probability  # type: ignore[attr-defined]
    return function


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))


def require_one_label(name: str, config: Any) -> None:
    """Raise UserError for a classifier with several labels."""
    if config.num_labels != 1:
        raise UserError(
            f"reward model {name!r} has {config.num_labels} labels: a reward model has one, whose logit is the reward "
            "(reward models require `num_labels=1`)"
        )


def _tell_cut_off(name: str, scorer: Scorer, texts: Sequence[Encoded]) -> None:
    """Warn once where steps of completions are beyond the model's limit."""
    count = sum(text.lost > 0 for text in texts)
    if count and not scorer.cut_off:
        scorer.cut_off = True
        log.warning(
            "reward model %s: steps of %d of %d completions are cut off by its limit of %d tokens: they get no reward "
            "from it, here and in later batches. A larger max_length, or a shorter max_completion_length, keeps them",
            name,
            count,
            len(texts),
            scorer.max_length,
        )


def is_classifier(config: Any) -> bool:
    """Whether the saved model of a configuration has a classification head."""
    architecture = (config.architectures or [""])[0]
    return str(architecture).endswith(("ForSequenceClassification", "ForTokenClassification", "MLPHeadModel"))


def load_config(name: str, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a model by name or path. Raises UserError where there is none."""
    from transformers import AutoConfig

    import cohort.rewards.models.mlp_head  # noqa: F401  # registers its type

    quiet()
    try:
        with cache_without_hub(name):
            return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"reward model {name!r} could not be loaded: {not_loaded(name, error)}") from error


def load_classifier(name: str, dtype: Any, *, trust_remote_code: bool = False, allow_pickle: bool = False) -> Any:
    """A trained reward model by name or path. A peft adapter at the path is merged into its base model.

    Raises UserError for a model that cannot be loaded or has no trained head.
    """
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    config = load_config(name, trust_remote_code=trust_remote_code)
    of_tokens = (config.architectures or [""])[0].endswith("ForTokenClassification")
    kind = AutoModelForTokenClassification if of_tokens else AutoModelForSequenceClassification
    adapter = (Path(name) / "adapter_config.json").is_file()
    if adapter:
        return _with_adapter(name, kind, config, dtype, trust_remote_code)
    try:
        with cache_without_hub(name), Task(f"loading the reward model {name}"):
            model, loading = kind.from_pretrained(
                name,
                config=config,
                dtype=dtype,
                use_safetensors=None if allow_pickle else True,
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
            )
    except (OSError, ValueError) as error:
        reason = _first_words(error)
        hint = ". Other files than safetensors are read with allow_pickle: true" if "safetensors" in reason else ""
        raise UserError(f"reward model {name!r} could not be loaded: {reason}{hint}") from error
    if loading["missing_keys"]:
        raise UserError(
            f"reward model {name!r} is no trained sequence classifier: its weights lack "
            f"{', '.join(sorted(loading['missing_keys'])[:4])}"
        )
    return model


def _with_adapter(name: str, kind: Any, config: Any, dtype: Any, trust_remote_code: bool) -> Any:
    """The base model of a peft adapter with a head for `config`, and the adapter merged into it."""
    from peft import PeftConfig, PeftModel

    base = PeftConfig.from_pretrained(name).base_model_name_or_path or ""
    model = new_head(base, kind, config, dtype=dtype, trust_remote_code=trust_remote_code)
    # Loading an adapter freezes the weights, but the merged model may be trained further.
    return PeftModel.from_pretrained(model, name).merge_and_unload().requires_grad_(True)


def new_head(name: str, kind: Any, config: Any, **options: Any) -> Any:
    """A model by name or path with the head that `config` describes, newly initialised if the weights have none.

    Raises UserError if weights other than the head's are missing.
    """
    from transformers import AutoModel

    from cohort.rewards.models.mlp_head import MLPHeadConfig, MLPHeadModel

    try:
        if isinstance(config, MLPHeadConfig):
            with cache_without_hub(name):
                return MLPHeadModel(config, AutoModel.from_pretrained(name, **options))
        with cache_without_hub(name), _no_report(), Task(f"loading the model {name}"):
            model, loading = kind.from_pretrained(name, config=config, output_loading_info=True, **options)
    except (OSError, ValueError) as error:
        raise UserError(f"model {name!r} could not be loaded: {_first_words(error)}") from error
    missing = [key for key in loading["missing_keys"] if not re.search(r"(^|\.)(score|classifier|pooler)\b", key)]
    if missing:
        raise UserError(f"model {name!r}: its weights lack {', '.join(sorted(missing)[:4])}")
    return model


@contextmanager
def _no_report() -> Iterator[None]:
    """Silences transformers' report of missing weights, because a new head is expected here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def load_tokenizer(name: str, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        with cache_without_hub(name):
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(
            f"the tokenizer of the reward model {name!r} could not be loaded: {_first_words(error)}"
        ) from error
    # If files are missing, some tokenizer classes load with an empty vocabulary instead of an error.
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
        raise UserError(f"the tokenizer of the reward model {name!r} has no vocabulary: do its files exist?")
    return tokenizer


def _first_words(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
