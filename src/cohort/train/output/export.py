"""Exports a run's model to a directory of its own: merged or copied, without the training's other files, complete or
not at all."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from cohort.compat.libraries import quiet
from cohort.policy.adapter import CONFIG, WEIGHTS, base_of, merged, of_reward_model
from cohort.policy.load import load_model, load_tokenizer
from cohort.progress import Task
from cohort.rewards.models.classifier import is_classifier, load_classifier, load_config
from cohort.train.output.card import merged_card
from cohort.train.output.checkpoint import PARTS
from cohort.train.output.folders import newest
from cohort.types import UserError

log = logging.getLogger("cohort")

BESIDE = (
    "config.json", "generation_config.json", CONFIG, "README.md", "LICENSE*", "*.py", "tokenizer*.json",
    "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "*.spm", "spiece.model", "sentencepiece*.model", "chat_template*", "preprocessor_config.json",
)  # fmt: skip
"""Files that belong to a model beside its weights; a training's own files have other names."""
INDEX = "model.safetensors.index.json"


def model_folder(source: str) -> Path:
    """The folder with the model of a run: the folder itself, or its newest checkpoint. Raises UserError where there is
    no model."""
    folder = Path(source)
    if not folder.is_dir():
        raise UserError(f"{source!r} is no directory: give a run's output_dir or a model directory")
    if (folder / "config.json").is_file() or (folder / CONFIG).is_file():
        return folder
    checkpoint = newest(folder)
    if checkpoint is None:
        raise UserError(f"{source!r} holds no model: there is no config.json, {CONFIG} or checkpoint in it")
    log.warning("%s has no final model: its newest checkpoint, %s, is taken", source, checkpoint.name)
    return checkpoint


def model_files(folder: Path) -> list[str]:
    """Names of the model's files: weights as listed in its index, configuration, tokenizer, card. Raises UserError
    where weights are missing or are not safetensors."""
    weights = [WEIGHTS] if (folder / CONFIG).is_file() else ["model.safetensors"]
    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        weights = [INDEX, *sorted(set(index["weight_map"].values()))]
    missing = [name for name in weights if not (folder / name).is_file()]
    if missing:
        pickles = sorted(path.name for path in folder.glob("*.bin") if "training_args" not in path.name)
        other = f"; it has {', '.join(pickles)}, which can run code: --allow-pickle loads them" if pickles else ""
        raise UserError(f"{folder}: {', '.join(missing[:3])} is missing{other}")
    beside = [
        path.name
        for path in sorted(folder.iterdir())
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in BESIDE)
    ]
    return [*weights, *beside]


def export(
    source: str,
    target: Path | None = None,
    *,
    merge: bool = False,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Path:
    """Write the model of `source` to `target` (default: beside it) and return where it is.

    `merge`: an adapter's weights go into its base model's, of which an ordinary transformers directory is left, in
    the base model's own precision or `dtype`. Raises UserError for what is no model, or a target that is there.
    """
    quiet()
    folder = model_folder(source)
    adapter = (folder / CONFIG).is_file()
    if merge and not adapter:
        log.warning("%s holds no adapter: there is nothing to merge, it is copied", folder)
    target = target or Path(source).resolve().with_name(f"{Path(source).resolve().name}-export")
    options = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    if (folder / PARTS).is_dir():
        from cohort.train.output.sharded_checkpoint import export_sharded

        if merge and adapter:
            raise UserError(f"{folder} holds parts that ranks wrote: export it without --merge, then merge the result")
        _written(target, lambda partial: export_sharded(folder, partial, trust_remote_code=trust_remote_code))
    elif merge and adapter:
        _written(target, lambda partial: _merge(folder, partial, dtype, options))
    elif allow_pickle and not adapter and not any(folder.glob("model*.safetensors*")):
        _written(target, lambda partial: _rewrite(folder, partial, dtype, options))
    else:
        names = model_files(folder)
        _written(target, lambda partial: _copy(folder, names, partial))
    return target


def _written(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary folder, then rename it to the target."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is there already: give another --output")
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        with Task(f"writing {target}"):
            write(partial)
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy(folder: Path, names: list[str], partial: Path) -> None:
    for name in names:
        shutil.copyfile(folder / name, partial / name)
    templates = folder / "additional_chat_templates"
    if templates.is_dir():
        shutil.copytree(templates, partial / templates.name)


def _merge(folder: Path, partial: Path, dtype: str, options: dict[str, bool]) -> None:
    if of_reward_model(str(folder)):
        model = load_classifier(str(folder), dtype, **options)
    else:
        model = merged(load_model(str(folder), dtype=dtype, **options))
    _save(model, folder, partial, options)
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    (partial / "README.md").write_text(merged_card(text, base_of(str(folder))), encoding="utf-8")


def _rewrite(folder: Path, partial: Path, dtype: str, options: dict[str, bool]) -> None:
    load = load_classifier if is_classifier(load_config(str(folder))) else load_model
    _save(load(str(folder), dtype=dtype, **options), folder, partial, options)
    if (folder / "README.md").is_file():
        shutil.copyfile(folder / "README.md", partial / "README.md")


def _save(model: Any, folder: Path, partial: Path, options: dict[str, bool]) -> None:
    model.save_pretrained(partial)
    tokenizer = load_tokenizer(str(folder), trust_remote_code=options["trust_remote_code"])
    tokenizer.save_pretrained(partial)
