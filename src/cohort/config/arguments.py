"""What scripts and callbacks expect of transformers' TrainingArguments, on every configuration."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import SimpleNamespace, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from pydantic import BaseModel, PrivateAttr

from cohort.compat.script_arguments import ModelConfig
from cohort.compat.trl_keys import KEYS, RENAMED
from cohort.config.loading import plain
from cohort.config.problems import unknown_key
from cohort.texts import without_secrets
from cohort.types import UserError
from cohort.world import rank, world_size


class NotGiven:
    """What a command-line parser for dataclasses passes for a flag that is not given; it prints as the default."""

    def __init__(self, default: Any):
        self.default = default

    def __repr__(self) -> str:
        return repr(self.default)


@cache
def _fields_of(kind: type[BaseModel]) -> dict[str, Any]:
    fields = []
    for name, info in kind.model_fields.items():
        unset = NotGiven(info.get_default(call_default_factory=True))
        # transformers' parser does not take the default of a list from `default`, but what is here is argparse's.
        flag = {"help": (info.description or "").replace("%", "%%"), "default": unset}
        fields.append((name, Any, dataclasses.field(default=unset, metadata=flag)))
    made = dataclasses.make_dataclass(kind.__name__, fields)
    return {field.name: field for field in dataclasses.fields(made)}


class _Fields:
    """The fields as a dataclass has them: of an instance all, for dataclasses.asdict and replace; of the class, from
    which HfArgumentParser makes flags, those that ModelConfig has no flag for."""

    def __get__(self, instance: Any, owner: type[BaseModel]) -> dict[str, Any]:
        fields = _fields_of(owner)
        if instance is not None:
            return fields
        others = {field.name for field in dataclasses.fields(ModelConfig) if field.init}
        kinds = {name: info.annotation for name, info in owner.model_fields.items()}
        return {name: each for name, each in fields.items() if name not in others and _of_one_type(kinds[name])}


def _of_one_type(annotation: Any) -> bool:
    """Whether transformers' parser takes the type: of unions, those with None or a text."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    return str in parts or not parts or (len(parts) == 2 and type(None) in parts)


class Arguments(BaseModel):
    """Attributes can be set, with the checks of construction; keys without effect here can be read and set too."""

    __dataclass_fields__ = _Fields()

    _accepted: dict[str, Any] = PrivateAttr(
        default_factory=lambda: {"accelerator_config": default_of("accelerator_config")}  # scripts set its attributes
    )
    """Values of keys of TRL and transformers that have no effect here."""

    if TYPE_CHECKING:
        use_cpu: bool
        per_device_train_batch_size: int
        warmup_steps: int
        warmup_ratio: float

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
            return
        keys = [*type(self).model_fields, *KEYS, *RENAMED]
        if name not in keys:
            raise UserError(f"{type(self).__name__}: {unknown_key(name, keys)}")
        if RENAMED.get(name) in type(self).model_fields:
            name = RENAMED[name]
        given = {field: getattr(self, field) for field in self.model_fields_set}
        fresh = type(self)(**{key: each for key, each in given.items() if key != name}, **{name: value})
        accepted = self._accepted | fresh._accepted
        self.__dict__.update(fresh.__dict__)
        object.__setattr__(self, "__pydantic_fields_set__", fresh.model_fields_set)
        self._accepted.update(accepted)

    def __getattr__(self, name: str) -> Any:
        if name in KEYS:
            return self._accepted.get(name, default_of(name))
        if RENAMED.get(name) in type(self).model_fields:
            return getattr(self, RENAMED[name])
        return super().__getattr__(name)  # type: ignore[misc]  # pydantic has it, and hides it from type checkers

    def _accept(self, values: dict[str, Any]) -> None:
        """Keep the given values of keys without effect, so that they can be read."""
        self._accepted.update({key: value for key, value in values.items() if key in KEYS})
        if isinstance(config := self._accepted.get("accelerator_config"), dict):
            self._accepted["accelerator_config"] = SimpleNamespace(**vars(default_of("accelerator_config")) | config)

    def to_dict(self) -> dict[str, Any]:
        """All settings and the accepted keys as plain values, without secrets, as TrainingArguments.to_dict."""
        return {**self._accepted_plain(), **without_secrets(self.model_dump(mode="json"))}

    def _accepted_plain(self) -> dict[str, Any]:
        values = {name: plain(value) for name, value in self._accepted.items()}
        return dict(without_secrets(values))

    def to_sanitized_dict(self) -> dict[str, Any]:
        """`to_dict` with numbers, flags and texts only, as trackers take them."""
        values = self.to_dict() | {"train_batch_size": self.train_batch_size, "eval_batch_size": self.eval_batch_size}
        return {
            key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in values.items()
        }

    def to_json_string(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    @property
    def train_batch_size(self) -> int:
        return int(self.per_device_train_batch_size)

    @property
    def eval_batch_size(self) -> int:
        return int(self.per_device_eval_batch_size)

    @property
    def world_size(self) -> int:
        return world_size()

    @property
    def process_index(self) -> int:
        return rank()

    @property
    def local_process_index(self) -> int:
        return rank()

    @property
    def parallel_mode(self) -> Any:
        """transformers' ParallelMode: whether there are several ranks."""
        modes = import_module("transformers.training_args").ParallelMode
        return modes.DISTRIBUTED if world_size() > 1 else modes.NOT_PARALLEL

    @property
    def should_log(self) -> bool:
        return rank() == 0

    @property
    def should_save(self) -> bool:
        return rank() == 0

    @property
    def device(self) -> Any:
        """The torch.device that the run takes."""
        torch = import_module("torch")  # when asked for: configurations start without it
        return torch.device("cuda" if torch.cuda.is_available() and not self.use_cpu else "cpu")

    @property
    def n_gpu(self) -> int:
        """GPUs of this process: 1 or 0."""
        return int(self.device.type == "cuda")

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Warm-up steps of a run of so many steps."""
        return int(self.warmup_steps or -(-num_training_steps * self.warmup_ratio // 1))

    def get_process_log_level(self) -> int:
        return logging.getLogger("cohort").getEffectiveLevel()

    @contextmanager
    def main_process_first(self, local: bool = True, desc: str = "work") -> Iterator[None]:
        """Does nothing: each rank prepares its rows by itself."""
        yield


_FALSE = (
    "fp16 bf16_full_eval fp16_full_eval torch_compile use_liger_kernel use_cache auto_find_batch_size "
    "logging_first_step prediction_loss_only eval_use_gather_object batch_eval_metrics save_on_each_node "
    "enable_jit_checkpoint hub_always_push ignore_data_skip restore_callback_states_from_checkpoint full_determinism "
    "dataloader_drop_last dataloader_persistent_workers remove_unused_columns do_train do_eval do_predict use_vllm "
    "vllm_enable_sleep_mode cast_lm_head_to_fp32 log_unique_prompts use_transformers_continuous_batching "
    "use_transformers_paged"
)
FLAGS = frozenset(_FALSE.split())
"""Keys without effect here that are false where they are not given."""


def default_of(name: str) -> Any:
    """The value that a key without effect here has where it is not given: TRL's and transformers' default."""
    if name == "accelerator_config":
        return SimpleNamespace(split_batches=False, dispatch_batches=False, even_batches=True)
    if name in FLAGS:
        return False
    return KEYS[name].off[0] if KEYS[name].off and not name.endswith("checkpointing_kwargs") else None
