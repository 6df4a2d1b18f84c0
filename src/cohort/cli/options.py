"""Arguments and options that several commands share, and their parsing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cohort.types import UserError

Configuration = Annotated[
    Path, typer.Argument(help="YAML configuration, such as examples/gsm8k.yaml. --config FILE is the same; -: no file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Keys that replace the file's; --KEY VALUE is the same."),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Use the first rows only.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Load weights that are not safetensors, which can run code.")
]
SystemPrompt = Annotated[str | None, typer.Option(help="Makes plain prompts conversational.")]
Plain = Annotated[
    bool, typer.Option("--plain", help="Pass plain prompts as they are, also where the tokenizer has a chat template.")
]
ChatTemplate = Annotated[str | None, typer.Option(help="Chat template, for a tokenizer that has none.")]
DatasetKwargs = Annotated[str, typer.Option(help="Arguments of the data set's loader, such as name=main.")]
Columns = Annotated[str, typer.Option(help="ours=theirs, such as prompt=question,answer=solution.")]
Seed = Annotated[int, typer.Option(help="Seed of sampling.")]
MaxCompletionLength = Annotated[int, typer.Option(min=1, help="Most tokens of a completion.")]


def split_names(text: str) -> list[str]:
    """split_names("accuracy, format") -> ["accuracy", "format"]"""
    return [name.strip() for name in text.split(",") if name.strip()]


def parse_names(text: str, option: str, example: str) -> list[str]:
    """The names in an option's value. Raises UserError if there is none."""
    names = split_names(text)
    if not names:
        raise UserError(f"{option} {text!r}: give at least one name, such as {example}")
    return names


def parse_pairs(text: str, option: str, example: str) -> dict[str, str]:
    """parse_pairs("prompt=question,answer=solution", ...) -> {"prompt": "question", "answer": "solution"}. Raises
    UserError for a part without a name or a value."""
    parts = [part.partition("=") for part in text.split(",") if part.strip()]
    if not all(name.strip() and value.strip() for name, _, value in parts):
        raise UserError(f"{option} {text!r}: write name=value, such as {example}, and commas between several")
    return {name.strip(): value.strip() for name, _, value in parts}


def check_plain(plain: bool, system_prompt: str | None) -> None:
    """Raise UserError for --plain with a system prompt, which makes plain prompts conversational."""
    if plain and system_prompt is not None:
        raise UserError("a plain prompt has no system turn: leave --system-prompt or --plain out")


def check_folder_of(path: Path | None, option: str = "--output") -> None:
    """Raise UserError if the file's folder is missing: called before anything takes time."""
    if path is not None and not path.parent.is_dir():
        raise UserError(f"{option} {path}: there is no folder {path.parent}")
