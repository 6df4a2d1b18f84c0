"""Reading YAML: what a file says, without a value that changes its meaning."""

from __future__ import annotations

import re
from typing import Any

import yaml

MOST_ALIASES = 20
"""Aliases of one file: nested ones multiply what they stand for."""


class YamlError(ValueError):
    """A text that is no YAML, or whose keys or values are not plain. The message names the line."""


def parsed(text: str) -> Any:
    """The value of a YAML text. Dates and times are text. Raises YamlError for a key that is there twice."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise YamlError("lists or mappings are nested too deeply") from None
    except yaml.YAMLError as error:
        raise YamlError(" ".join(str(error).split())[:500]) from None
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # `!!int abc`
        raise YamlError(f"{type(error).__name__}: {error}"[:500]) from None


class _Loader(yaml.SafeLoader):
    """SafeLoader without dates and numbers to the base 60, with unique keys and few aliases."""

    aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MOST_ALIASES:
                line = self.line + 1
                raise YamlError(f"line {line}: more than {MOST_ALIASES} aliases (*name)")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise YamlError(f"line {key_node.start_mark.line + 1}: a key is a list or a mapping")
            if key in seen:
                raise YamlError(f"line {key_node.start_mark.line + 1}: the key {str(key)[:60]!r} is there twice")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?$")
"""What YAML 1.1 reads as a number to the base 60: 12:30."""
_Loader.yaml_implicit_resolvers = {
    first: [
        ("tag:yaml.org,2002:str", _BASE_60),
        *((tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"),
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
