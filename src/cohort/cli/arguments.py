"""Arguments as people type them: `--max_steps=3`, `--learning_rate 1e-5` and `--bf16` beside `max_steps=3`, `--config
FILE`, options written with underscores, `--quiet` and `--verbose` anywhere."""

from __future__ import annotations

import difflib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from cohort.cli.console import echo, set_volume
from cohort.types import UserError

EARLIER_NAMES = {"--rows": "--limit", "--samples": "--num-generations"}
"""Other names of two options, which are read and told: one word for one idea."""
FILES = (".yaml", ".yml")
PAIR = re.compile(r"[A-Za-z_][\w.-]*=")
PLAIN = re.compile(r"[\w./+-][\w./+:-]*(?<!:)$")
"""Values that YAML reads as the same text or as a number, also in a list."""


class Command(TyperCommand):
    """A command that brings its arguments into the form that typer reads."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        set_volume(quiet="--quiet" in args[:end], verbose="--verbose" in args[:end])
        words = [word for i, word in enumerate(args) if i >= end or word not in ("--quiet", "--verbose")]
        options = {name: each for each in self.params for name in each.opts if name.startswith("--")}
        own, rest = _split(words, options)
        if any(parameter.name == "overrides" for parameter in self.params):
            return super().parse_args(ctx, [*own, *_configuration(rest, options)])
        return super().parse_args(ctx, [*own, *rest])


def _split(words: list[str], options: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The command's own options with their values, under its own names; and all other words."""
    own: list[str] = []
    rest: list[str] = []
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if word == "--":
            return own, [*rest, *words[at - 1 :]]
        name, equals, value = word.partition("=")
        dashed = name.replace("_", "-")
        names = (name, dashed, EARLIER_NAMES.get(dashed))
        ours = next((each for each in names if each in options), None) if word.startswith("--") else None
        if ours is None:
            (own if word == "--help" else rest).append(word)
            continue
        if ours == EARLIER_NAMES.get(dashed):
            echo(f"{name} is called {ours}", err=True)
        own.append(f"{ours}{equals}{value}")
        if not equals and not getattr(options[ours], "is_flag", False):
            own += words[at : at + 1]
            at += 1
    return own, rest


def _configuration(words: list[str], options: dict[str, Any]) -> list[str]:
    """The configuration, then the keys as key=value: what is left is not one."""
    config: str | None = None
    plain: list[str] = []
    pairs: list[str] = []
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            if name == "config":
                if not equals and at == len(words):
                    raise UserError("--config needs the path of a YAML file")
                if config is not None:
                    raise UserError(f"--config is given twice, {config} and {value or words[at]}: a run reads one file")
                config = value if equals else words[at]
                at += not equals
                continue
            values = [value] if equals else []
            needs_file = config is None and not any(each.endswith(FILES) for each in plain)
            while not equals and at < len(words) and _is_value(words[at], needs_file, not values):
                values.append(words[at])
                at += 1
            pairs.append(_pair(name, values, bool(equals), options))
        elif PAIR.match(word) and not (word.endswith(FILES) and not plain and Path(word).is_file()):
            pairs.append(word)
        elif word != "--":
            plain.append(word)
    if plain and _names_method(plain, config):
        pairs.append(f"method={plain.pop(0)}")
    if config is None and plain:
        config = plain.pop(0)
    if config is None and pairs:
        config = "-"  # config.run.NO_FILE
    return ["--", *([config] if config is not None else []), *plain, *pairs]


def _is_value(word: str, needs_file: bool, first: bool) -> bool:
    """Whether a word after --key belongs to the key. The first one may look like a pair: --run_name lr=1e-5."""
    if word.startswith("--") or (needs_file and word.endswith(FILES)):
        return False
    return not PAIR.match(word) or (first and word.partition("=")[0] not in _keys())


def _names_method(plain: list[str], config: str | None) -> bool:
    """Whether the first word is a method, as in `train sft --config FILE`, and no configuration."""
    if config is not None or (len(plain) > 1 and plain[1].endswith(FILES) and not plain[0].endswith(FILES)):
        return True
    from cohort.compat.trl_yaml import METHODS
    from cohort.config import METHOD_CONFIGS, REWARD_CONFIGS

    return plain[0] in {*METHOD_CONFIGS, *REWARD_CONFIGS, *METHODS} and not Path(plain[0]).exists()


def _pair(name: str, values: list[str], equals: bool, options: dict[str, Any]) -> str:
    """--learning-rate 1e-5 -> "learning_rate=1e-5"; a key alone is true, and false where `no_` is before it."""
    key = name.replace("-", "_")
    near = difflib.get_close_matches(f"--{name.replace('_', '-')}", [*options, "--quiet", "--verbose"], 1, 0.8)
    if near and key.partition(".")[0] not in _keys():
        raise UserError(f"--{name}: no such option: did you mean {near[0]}?")
    if not values:
        switched_off = key.startswith("no_") and key not in _keys()
        return f"{key.removeprefix('no_')}=false" if switched_off else f"{key}=true"
    if len(values) > 1:
        return f"{key}=[{', '.join(value if PLAIN.match(value) else json.dumps(value) for value in values)}]"
    is_yaml = equals or values[0][:1] in ("{", "[", '"', "'") or PLAIN.match(values[0])
    return f"{key}={values[0] if is_yaml else json.dumps(values[0], ensure_ascii=False)}"


@cache
def _keys() -> set[str]:
    """Every key that a configuration can have."""
    from pydantic import BaseModel

    from cohort.compare.config import CompareConfig
    from cohort.compat import llama_factory_keys, trl_keys, trl_yaml
    from cohort.config import METHOD_CONFIGS, REWARD_CONFIGS, RunConfig

    kinds: tuple[type[BaseModel], ...] = (RunConfig, CompareConfig, *METHOD_CONFIGS.values(), *REWARD_CONFIGS.values())
    fields = {key for kind in kinds for key in kind.model_fields}
    return fields | {*trl_keys.KEYS, *llama_factory_keys.KEYS, *trl_yaml.KEYS}
