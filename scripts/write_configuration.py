"""Prints docs/configuration.md from the fields of the configuration classes:
`python scripts/write_configuration.py > docs/configuration.md`."""

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
    EngineConfig,
    GRPOConfig,
    OnlineConfig,
    RayEngineConfig,
    RefitConfig,
    RewardModelConfig,
    RunConfig,
    SampledConfig,
    ShardingConfig,
    TrainingConfig,
    VLLMEngineConfig,
)

HEAD = """# Configuration

A run is one flat YAML file with the keys below, in any order.

    cohort train examples/gsm8k.yaml

A key on the command line replaces the file's; values are read as YAML:

    cohort train examples/gsm8k.yaml max_steps=100 columns='{prompt: question}' eval_dataset=null

In Python a method's keys are arguments of its configuration class, `cohort.GRPOConfig`, `cohort.SFTConfig` and so on:
the headings below. An unknown key is refused, and the message suggests the nearest known one. Keys have TRL's names
where TRL has them. Defaults are the paper's where it gives a value, as the last column says.

## Start with these ten keys

A whole run, of GRPO on one GPU:

```yaml
model: Qwen/Qwen2.5-0.5B-Instruct
method: grpo
dataset: train.jsonl
reward_funcs: accuracy
learning_rate: 1.0e-6
num_generations: 8
per_device_train_batch_size: 64
max_completion_length: 512
max_steps: 200
output_dir: output/first
```

"Default" is GRPO's. The paper's batch is for many GPUs: begin with less, and scale up what works.

"""
AFTER = """
Next: `eval_dataset` with `eval_strategy: steps` for held-out scores, `save_steps` for checkpoints (there are none by
default), `system_prompt` with `reward_funcs: accuracy,format` for a format of the answers, `finetuning_type: lora` for
less memory. What to change when a run does not learn or runs out of memory, and which systems are supported:
[troubleshooting.md](troubleshooting.md). What a run logs: [metrics.md](metrics.md). What GRPO computes:
[grpo.md](grpo.md).
"""

FIRST = {
    "model": "A hub name or a folder. Begin with an instruction-tuned model: it answers in a format already.",
    "method": "`grpo` samples a group of answers to each prompt and compares them; others: `cohort methods`.",
    "dataset": "Rows with `prompt` and what rewards compare with, such as `answer`; `columns` maps other names. "
    "`cohort data show` prints what the model gets.",
    "reward_funcs": "What is learned: names of rewards, or `file.py:function`. `cohort reward try` shows their scores.",
    "learning_rate": "Decides most. With LoRA ten times as much. Too high: `kl` above 1, or a reward that falls.",
    "num_generations": "G, answers to one prompt. A group teaches only if its rewards differ: more for hard prompts.",
    "per_device_train_batch_size": "Answers of one step: 64 / 8 = 8 prompts. More is less noise at the same memory.",
    "max_completion_length": "In tokens; longer answers are cut off. `completions/clipped_ratio` should be below 0.1.",
    "max_steps": "By default as many as one pass over the data takes. A trend shows after about 100.",
    "output_dir": "Model, metrics, completions and plots. A second run there moves the first aside.",
}
"""The first keys that a user sets, and why."""

SHARED: tuple[tuple[type[BaseModel], str], ...] = (
    (RunConfig, "Method, model, data and rewards: keys of a YAML file in addition to the method's."),
    (ShardingConfig, "Keys of every method, in addition to TrainingConfig's, for a run over several ranks (torchrun)."),
    (TrainingConfig, "Keys of every method: optimiser, schedule, batches, precision, saving, evaluation."),
    (SampledConfig, "Keys of methods that learn from sampled completions, in addition to TrainingConfig's."),
    (OnlineConfig, "Keys of methods that sample the current policy, in addition to SampledConfig's."),
    (
        RefitConfig,
        "Keys of the mapping `reward_model_refit`: a reward model that continues to learn from the policy's samples.",
    ),
    (EngineConfig, "Keys of the mapping `engine`, one of them; `engine: local` is the engine of this process."),
    (RayEngineConfig, "Keys of the mapping `engine: {ray: ...}`: processes of a Ray cluster sample."),
    (VLLMEngineConfig, "Keys of the mapping `engine: {vllm: ...}`: servers of vLLM sample."),
    (RewardModelConfig, "Keys of reward models, in addition to TrainingConfig's."),
)
KINDS: dict[str, type[TrainingConfig]] = {**METHOD_CONFIGS, **REWARD_CONFIGS}
SOURCE = re.compile(r"DeepSeekMath|(?:^|(?<=\. ))[^.]+, arXiv")
BOUNDS = {Ge: (">=", "ge"), Gt: (">", "gt"), Le: ("<=", "le"), Lt: ("<", "lt")}


def configuration_markdown() -> str:
    """docs/configuration.md: every key with its values, default, meaning and source."""
    methods = [(kind, _of_method(kind)) for kind in dict.fromkeys(KINDS.values())]
    return HEAD + _first_keys() + AFTER + "".join(_section(kind, text) for kind, text in (*SHARED, *methods))


def _first_keys() -> str:
    fields = {**RunConfig.model_fields, **GRPOConfig.model_fields}
    rows = [f"| `{name}` | {_default(fields[name])} | {why} |" for name, why in FIRST.items()]
    return "\n".join(["| key | default | why |", "|---|---|---|", *rows]) + "\n"


def _of_method(kind: type[TrainingConfig]) -> str:
    names = ", ".join(f"`method: {name}`" for name, other in KINDS.items() if other is kind)
    about = " ".join((kind.__doc__ or "").split())
    return f"{names}. {about} All keys of {kind.__mro__[1].__name__}, and these, which are new or differ:"


def _section(kind: type[BaseModel], text: str) -> str:
    rows = [_row(name, field) for name, field in kind.model_fields.items() if _differs_from_parent(kind, name, field)]
    lines = ["", f"## {kind.__name__}", "", text, ""]
    lines += ["| key | values | default | meaning | source |", "|---|---|---|---|---|", *rows] if rows else ["None."]
    return "\n".join(lines) + "\n"


def _differs_from_parent(kind: type[BaseModel], name: str, field: FieldInfo) -> bool:
    """Whether the parent class lacks the field, or has it with another type, default or description."""
    parent: Any = kind.__mro__[1]
    return repr(parent.model_fields.get(name)) != repr(field)


def _row(name: str, field: FieldInfo) -> str:
    text = field.description or ""
    match = SOURCE.search(text)
    meaning, source = (text[: match.start()], text[match.start() :]) if match else (text, "")
    # YAML writes Python's None as null.
    meaning = meaning.strip().replace("None:", "`null`:")
    cells = (f"`{name}`", _values(field), _default(field), meaning, source.strip())
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _values(field: FieldInfo) -> str:
    """The type and its bounds: "number >= 0", "`linear`, `cosine`", "whole number or `null`"."""
    bounds = [
        f"{sign} {_number(getattr(bound, attribute))}"
        for kind, (sign, attribute) in BOUNDS.items()
        for bound in field.metadata
        if isinstance(bound, kind)
    ]
    first, *others = _words(field.annotation)
    return " or ".join([" ".join([first, " and ".join(bounds)]).strip(), *others])


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _words(annotation: Any) -> list[str]:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return [word for part in get_args(annotation) for word in _words(part)]
    if origin is Literal:
        return [", ".join(f"`{value}`" for value in get_args(annotation))]
    if origin is list:
        if get_origin(get_args(annotation)[0]) is Literal:
            return ["list of such names"]
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
    EngineConfig: "`local`, mapping",
    RayEngineConfig: "mapping",
    VLLMEngineConfig: "mapping",
    type(None): "`null`",
}
PLURALS = {str: "texts", float: "numbers", int: "whole numbers", dict: "mappings"}


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    value = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return f"`{value if isinstance(value, str) and value.isprintable() else json.dumps(value)}`"


if __name__ == "__main__":
    print(configuration_markdown(), end="")
