"""peft adapters: in directories, the base model they belong to, and merging."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cohort.types import UserError

log = logging.getLogger("cohort")

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MERGED, MERGED_HALF = 1e-4, 0.1
"""Largest relative difference of logits that is a merge's rounding, in float32 and in half precision. Measured on small
models: 3e-7 and 1e-2; 1.5 where an adapter of the embeddings is merged into the output layer too."""


def is_adapter(name: str, revision: str | None = None) -> bool:
    """Whether the directory, or the hub repository of that name, holds a peft adapter."""
    if Path(name).is_dir():
        return (Path(name) / CONFIG).is_file()
    return _file(name, CONFIG, revision) is not None


def base_of(name: str, revision: str | None = None) -> str:
    """The base model of the adapter. Raises UserError where the adapter does not name one."""
    from peft import PeftConfig

    try:
        base = PeftConfig.from_pretrained(name, revision=revision).base_model_name_or_path
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"adapter {name!r}: its {CONFIG} cannot be read: {_line(error)}") from error
    if not base:
        raise UserError(f"adapter {name!r}: its {CONFIG} names no base model: write base_model_name_or_path into it")
    return str(base)


def of_reward_model(name: str) -> bool:
    """Whether the adapter in a directory is a reward model's: of a classifier of texts or of tokens."""
    path = Path(name) / CONFIG
    try:
        task = json.loads(path.read_text(encoding="utf-8")).get("task_type") if path.is_file() else None
    except (OSError, ValueError, AttributeError):
        return False  # base_of tells what is wrong with the file
    return task in ("SEQ_CLS", "TOKEN_CLS")


def put_on(base: Any, name: str, *, allow_pickle: bool = False, revision: str | None = None) -> Any:
    """Put the adapter on a loaded base model, for inference. Raises UserError for weights that are a pickle or do not
    fit."""
    from peft import PeftModel

    if not allow_pickle and _file(name, WEIGHTS, revision) is None:
        raise UserError(
            f"adapter {name!r} has no {WEIGHTS}. Weights of another form are pickles, which can run code: allow_pickle "
            "loads them"
        )
    try:
        with about_tied_weights():
            return PeftModel.from_pretrained(base, name, revision=revision)
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(f"adapter {name!r} cannot be put on its base model: {_line(error)}") from error


def merged(model: Any) -> Any:
    """Merge the adapter into the weights of its base model. Raises UserError where that is not possible, or where the
    merged model's logits are not the adapted model's."""
    if getattr(model.get_base_model(), "is_quantized", False):
        raise UserError(
            "the adapter's base model is stored quantised: merging would round its weights again. Name the model it "
            "was quantised from in base_model_name_or_path of adapter_config.json"
        )
    expected = _few_logits(model)
    untie(model.get_base_model())
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied")
            result = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise UserError(f"the adapter cannot be merged: {_line(error)}") from error
    difference = float((_few_logits(result) - expected).norm() / expected.norm())
    if not difference <= (MERGED if result.dtype.itemsize >= 4 else MERGED_HALF):
        raise UserError(
            f"the merged model's logits differ from the adapted model's by {difference:.1g} of their size, so the "
            "adapter cannot be merged: use it as an adapter (cohort export without --merge)"
        )
    return result


@torch.no_grad()
def _few_logits(model: Any) -> Tensor:
    """float32 logits of a few tokens."""
    model.eval()
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(vocabulary, (1, 8), generator=torch.Generator().manual_seed(0))
    logits: Tensor = model(input_ids=ids.to(model.device), use_cache=False).logits
    return logits.float()


def is_tied(model: Any) -> bool:
    """Whether the output layer has the embeddings' weights."""
    output = getattr(model.get_output_embeddings(), "weight", None)
    return output is not None and output is model.get_input_embeddings().weight


def untie(model: Any) -> None:
    """Give the output layer weights of its own where it shares those of the embeddings and one of the two has LoRA: an
    adapter merged into shared weights would change both."""
    layers = model.get_input_embeddings(), model.get_output_embeddings()
    embeddings, output = (getattr(layer, "base_layer", layer) for layer in layers)
    adapted = any(hasattr(layer, "base_layer") for layer in layers)
    if adapted and getattr(output, "weight", None) is embeddings.weight:
        output.weight = nn.Parameter(output.weight.detach().clone(), output.weight.requires_grad)
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
        log.info("the output layer no longer shares the embeddings' weights: tie_word_embeddings is false")


@contextmanager
def about_tied_weights() -> Iterator[None]:
    """Silence peft's warning of an adapter on shared embeddings: `merged` unties them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
        yield


def _file(name: str, file: str, revision: str | None) -> str | None:
    from transformers.utils.hub import cached_file

    path: str | None = cached_file(
        name,
        file,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return path


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
