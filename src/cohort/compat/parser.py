"""Command lines of scripts in TRL's style: dataclasses and configurations, from flags and a YAML file."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from transformers import HfArgumentParser

from cohort.compat.trl_keys import KEYS, RENAMED
from cohort.types import UserError, did_you_mean

SHARED = {"trust_remote_code"}
"""Flags of configurations that dataclasses get too."""


def _is_config(dtype: Any) -> bool:
    return isinstance(dtype, type) and issubclass(dtype, BaseModel)


class TrlParser(HfArgumentParser):
    """TRL's TrlParser, for dataclasses and the configurations of this package, which get only what is given.

    >>> parser = TrlParser((ScriptArguments, GRPOConfig, ModelConfig))
    >>> script_args, training_args, model_args = parser.parse_args_and_config()
    """

    def __init__(self, dataclass_types: Any = None, **kwargs: Any):
        types = [] if dataclass_types is None else dataclass_types
        types = list(types) if isinstance(types, Iterable) else [types]
        self._in_file: set[str] = set()
        # Configurations come last: they share flags of dataclasses.
        super().__init__([each for each in types if not _is_config(each)], **{"allow_abbrev": False, **kwargs})
        for each in filter(_is_config, types):
            self._add_configuration(each)
        self.dataclass_types = types

    def _add_configuration(self, dtype: type[BaseModel]) -> None:
        group = self.add_argument_group(dtype.__name__)
        fields = dtype.model_fields
        for name in dict.fromkeys([*fields, *KEYS, *RENAMED]):
            if f"--{name}" in self._option_string_actions:
                continue  # of a dataclass
            spellings = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])
            help_ = (fields[name].description or "") if name in fields else argparse.SUPPRESS
            group.add_argument(
                *spellings,
                action=_Collect,
                nargs="*",
                type=_value,
                default=argparse.SUPPRESS,
                help=help_.replace("%", "%%"),
                dest=name,
            )

    def parse_args_into_dataclasses(  # type: ignore[override]  # argument files are not read
        self, args: Sequence[str] | None = None, return_remaining_strings: bool = False, **_: Any
    ) -> tuple[Any, ...]:
        """One instance of each type, in order, and with `return_remaining_strings` what was not understood. Raises
        UserError for unknown flags otherwise."""
        args = list(sys.argv[1:] if args is None else args)
        namespace, remaining = self.parse_known_args(args=args)
        flags = {text[2:].partition("=")[0].replace("-", "_") for text in args if text.startswith("--")}
        made = tuple(self._made(dtype, vars(namespace), flags | self._in_file) for dtype in self.dataclass_types)
        if return_remaining_strings:
            return (*made, remaining)
        if remaining:
            known = [option for option in self._option_string_actions if option.startswith("--")]
            hint = did_you_mean(remaining[0].partition("=")[0], known)
            raise UserError(f"unknown arguments {' '.join(remaining)}{hint}")
        return made

    def parse_args_and_config(
        self,
        args: Iterable[str] | None = None,
        return_remaining_strings: bool = False,
        fail_with_unknown_args: bool = True,
        separate_remaining_strings: bool = False,
    ) -> tuple[Any, ...]:
        """As `parse_args_into_dataclasses`; `--config FILE` names a YAML file whose values are the defaults, and whose
        `env` sets environment variables. `separate_remaining_strings`: what was not understood of the file and of the
        arguments comes apart. Raises UserError for a key of the file that nothing has."""
        args = list(sys.argv[1:] if args is None else args)
        unknown: list[str] = []
        if "--config" in args:
            i = args.index("--config")
            if i + 1 == len(args):
                raise UserError("--config needs the path of a YAML file")
            unknown = self.set_defaults_with_config(**_read(args[i + 1]))
            if unknown and fail_with_unknown_args and not return_remaining_strings:
                hint = did_you_mean(unknown[0], self._option_string_actions)
                raise UserError(f"{args[i + 1]}: unknown keys {' '.join(unknown[::2])}{hint}")
            del args[i : i + 2]
        parsed = self.parse_args_into_dataclasses(args, return_remaining_strings)
        if not return_remaining_strings:
            return parsed
        *made, rest = parsed
        return (*made, unknown, rest) if separate_remaining_strings else (*made, [*unknown, *rest])

    def set_defaults_with_config(self, **values: Any) -> list[str]:
        """Take the values as defaults; returns what no argument has as ["--name", "value", ...]."""
        self._in_file |= values.keys()
        actions = {action.dest: action for action in self._actions}
        for name in values.keys() & actions.keys():
            actions[name].default, actions[name].required = values[name], False
        return [text for name in values if name not in actions for text in (f"--{name}", str(values[name]))]

    def _made(self, dtype: Any, values: dict[str, Any], given: set[str]) -> Any:
        """An instance: a dataclass with every value, a configuration with those that were given and are no
        dataclass's."""
        if not _is_config(dtype):
            fields = dtype.__dataclass_fields__
            made = dtype(**{name: values[name] for name in fields if name in values and fields[name].init})
            for name in SHARED & fields.keys() & given:
                setattr(made, name, values[name])
            return made
        taken = {name for each in self.dataclass_types if not _is_config(each) for name in each.__dataclass_fields__}
        names = ({*dtype.model_fields, *KEYS, *RENAMED} & given) - (taken - SHARED)
        return dtype(**{name: values[name] for name in names if name in values})


class _Collect(argparse.Action):
    """A flag alone is true, one value is itself, several are a list."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, True if not values else values[0] if len(values) == 1 else values)


def _value(text: str) -> Any:
    """The text as YAML reads it; 1e-5 is a number for the configurations, which read text too."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _read(path: str) -> dict[str, Any]:
    """The mapping of a YAML file, its `env` set in the environment."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"--config {path}: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is no mapping of keys to values")
    environment = values.pop("env", None) or {}
    if not isinstance(environment, dict):
        raise UserError(f"{path}: `env` is {str(environment)[:80]!r}: it must be a mapping")
    os.environ.update({str(name): str(value) for name, value in environment.items()})
    return values
