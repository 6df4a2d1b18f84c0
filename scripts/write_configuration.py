"""docs/configuration.md, written from the configuration's own fields: `python scripts/write_configuration.py`."""

from __future__ import annotations

import json
import re
import types
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cohort.config import (
    METHOD_CONFIGS,
    REWARD_CONFIGS,
    OnlineConfig,
    RefitConfig,
    RewardModelConfig,
    RunConfig,
    SampledConfig,
    TrainingConfig,
)

HEAD = """# Configuration

A run is one YAML file of `key: value` lines, flat: the keys below, in any order.

    cohort train examples/gsm8k.yaml

Any key can be given on the command line, where it wins over the file; values are read as YAML:

    cohort train examples/gsm8k.yaml max_steps=100 columns='{prompt: question}' eval_dataset=null

In Python the method's keys are arguments of its configuration: `cohort.GRPOConfig`, `cohort.SFTConfig` and so on,
as the headings below name them. An unknown key is refused, with the nearest known one named. Keys are those of TRL
where it has them; defaults are the paper's where it gives one, as the last column says.
"""

SHARED: tuple[tuple[type[BaseModel], str], ...] = (
    (RunConfig, "What is trained, on what: a YAML file's keys beside the method's own."),
    (TrainingConfig, "What every method has: optimiser, schedule, batches, precision, saving, evaluation."),
    (SampledConfig, "What methods that learn from sampled completions have beside TrainingConfig's keys."),
    (OnlineConfig, "What methods that sample the current policy have beside SampledConfig's keys."),
    (RefitConfig, "The mapping `reward_model_refit`: a reward model that learns on from the policy's own samples."),
    (RewardModelConfig, "What reward models have beside TrainingConfig's keys."),
)
KINDS: dict[str, type[TrainingConfig]] = {**METHOD_CONFIGS, **REWARD_CONFIGS}
SOURCE = re.compile(r"DeepSeekMath|(?:^|(?<=\. ))[^.]+, arXiv")
BOUNDS = {Ge: (">=", "ge"), Gt: (">", "gt"), Le: ("<=", "le"), Lt: ("<", "lt")}


def configuration_markdown() -> str:
    """docs/configuration.md: every key with its values, default, meaning and source."""
    methods = [(kind, _of_method(kind)) for kind in dict.fromkeys(KINDS.values())]
    return HEAD + "".join(_section(kind, text) for kind, text in (*SHARED, *methods))


def _of_method(kind: type[TrainingConfig]) -> str:
    names = ", ".join(f"`method: {name}`" for name, other in KINDS.items() if other is kind)
    about = " ".join((kind.__doc__ or "").split())
    return f"{names}. {about} All keys of {kind.__mro__[1].__name__}, and what it adds or has otherwise:"


def _section(kind: type[BaseModel], text: str) -> str:
    own = [_line(name, field) for name, field in kind.model_fields.items() if _is_own(kind, name, field)]
    lines = ["", f"## {kind.__name__}", "", text, ""]
    lines += ["| key | values | default | meaning | source |", "|---|---|---|---|---|", *own] if own else ["Nothing."]
    return "\n".join(lines) + "\n"


def _is_own(kind: type[BaseModel], name: str, field: FieldInfo) -> bool:
    """Whether the kind adds the key to its parent's, or says something else of it."""
    parent: Any = kind.__mro__[1]
    return repr(parent.model_fields.get(name)) != repr(field)


def _line(name: str, field: FieldInfo) -> str:
    text = field.description or ""
    found = SOURCE.search(text)
    meaning, source = (text[: found.start()], text[found.start() :]) if found else (text, "")
    # YAML's word for Python's None
    meaning = meaning.strip().replace("None:", "`null`:")
    cells = (f"`{name}`", _values(field), _default(field), meaning, source.strip())
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _values(field: FieldInfo) -> str:
    """The type and its bounds in words: "number >= 0", "`linear`, `cosine`", "whole number or `null`"."""
    bounds = [
        f"{sign} {getattr(bound, attribute):g}"
        for kind, (sign, attribute) in BOUNDS.items()
        for bound in field.metadata
        if isinstance(bound, kind)
    ]
    first, *others = _words(field.annotation)
    return " or ".join([" ".join([first, " and ".join(bounds)]).strip(), *others])


def _words(annotation: Any) -> list[str]:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return [word for part in get_args(annotation) for word in _words(part)]
    if origin is Literal:
        return [", ".join(f"`{value}`" for value in get_args(annotation))]
    if origin is list:
        kinds = get_args(get_args(annotation)[0]) or get_args(annotation)
        return [f"list of {' and '.join(PLURALS[get_origin(kind) or kind] for kind in kinds)}"]
    if origin is tuple:
        return [f"[{', '.join(NAMES[part] for part in get_args(annotation))}]"]
    return [NAMES[origin or annotation]]


NAMES = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "`true`, `false`",
    dict: "mapping",
    RefitConfig: "mapping",
    type(None): "`null`",
}
PLURALS = {str: "texts", float: "numbers", int: "whole numbers", dict: "mappings"}


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return f"`{value if isinstance(value, str) and value.isprintable() else json.dumps(value)}`"


if __name__ == "__main__":
    print(configuration_markdown(), end="")
