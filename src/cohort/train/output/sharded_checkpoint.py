"""Checkpoints that each rank writes its part of, as safetensors; any number of ranks can load them, one process too.

    weights/*.safetensors      parts of the model's weights (of an adapter: the trained ones), with their places
    optimizer/*.safetensors    parts of the optimiser's tensors, named by parameter: model.norm.weight/exp_avg
    optimizer.json             the optimiser's numbers, such as its steps
    config.json, ...           the model's configuration, or the adapter's, and the tokenizer

Settings of the optimiser, such as its learning rate, come from the run's configuration, as in other checkpoints.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from cohort.compat.libraries import quiet
from cohort.policy.adapter import CONFIG, base_of
from cohort.policy.load import load_model_config, load_tokenizer
from cohort.policy.load_sharded import without_weights
from cohort.policy.sharded import ShardedPolicy
from cohort.train.output.checkpoint import PARTS, Saved, require_finite, save_policy
from cohort.types import UserError

OPTIMIZER, NUMBERS = "optimizer", "optimizer.json"
SEPARATOR = "/"
"""Between a parameter's name and the name of a part of its state."""


def save(folder: Path, policy: Saved, optimizer: torch.optim.Optimizer) -> None:
    """Write a policy, sharded or not, and its optimiser. Every rank makes the call, with the same folder on a file
    system that they share; the folder is complete when it returns. Raises NotFinite, and writes nothing, where a
    trained weight is NaN or infinite."""
    weights = _weights(policy)
    require_finite([(name, p) for name, p in policy.model.named_parameters() if p.requires_grad], folder)
    tensors, numbers = _optimizer_state(policy, optimizer)
    folder.mkdir(parents=True, exist_ok=True)
    if _rank() == 0:
        (folder / NUMBERS).write_text(json.dumps(numbers), encoding="utf-8")
        described = policy.model.config if policy.peft is None else policy.peft.active_peft_config
        described.save_pretrained(folder)
        if policy.model.can_generate() and policy.peft is None:
            policy.model.generation_config.save_pretrained(folder)
        if hasattr(policy.tokenizer, "save_pretrained"):
            policy.tokenizer.save_pretrained(folder)
    _write(folder / PARTS, weights)
    if tensors:
        _write(folder / OPTIMIZER, tensors)


def load(folder: Path, policy: Saved, optimizer: torch.optim.Optimizer) -> None:
    """Load what `save` wrote on any number of ranks. Every rank makes the call. Raises UserError for a folder that is
    incomplete or of another model."""
    _read(folder / PARTS, _weights(policy))
    numbers = json.loads((folder / NUMBERS).read_text(encoding="utf-8"))
    saved = _stored(folder / OPTIMIZER) if (folder / OPTIMIZER).is_dir() else {}
    names = _trained(policy, optimizer)
    of_others = {key.partition(SEPARATOR)[0] for key in (*saved, *numbers)} - set(names)
    if of_others:
        raise UserError(f"{folder}: the optimiser has state of {min(of_others)}, which this run does not train")
    state: dict[str, dict[str, Any]] = {name: {} for name in names}
    tensors: dict[str, Tensor] = {}
    for key, stored in saved.items():
        name, _, part = key.partition(SEPARATOR)
        tensors[key] = state[name][part] = torch.zeros_like(names[name], dtype=stored.dtype, requires_grad=False)
    if tensors:
        _read(folder / OPTIMIZER, tensors)
    for key, value in numbers.items():
        name, _, part = key.partition(SEPARATOR)
        state[name][part] = torch.tensor(value["tensor"]) if isinstance(value, dict) else value
    by_index = {i: values for i, values in enumerate(state.values()) if values}
    optimizer.load_state_dict({"state": by_index, "param_groups": optimizer.state_dict()["param_groups"]})


def save_whole(policy: ShardedPolicy, folder: Path) -> None:
    """Rank 0 writes an ordinary transformers directory, or a peft adapter, as `save_policy` does: all weights pass
    through its CPU's memory. Every rank makes the call."""
    with policy.assembled() as whole:
        if whole is not None:
            save_policy(whole, folder)


def export_sharded(folder: Path, target: Path, *, trust_remote_code: bool = False) -> None:
    """Write the model of a checkpoint to an ordinary transformers directory, or a peft adapter, in one process.
    Raises UserError for a folder that is incomplete."""
    quiet()
    adapter = (folder / CONFIG).is_file()
    source = base_of(str(folder)) if adapter else str(folder)
    config = load_model_config(source, trust_remote_code=trust_remote_code)
    model = without_weights(config, trust_remote_code=trust_remote_code)
    whole = model
    if adapter:
        from peft import PeftConfig, get_peft_model

        whole = get_peft_model(model, PeftConfig.from_pretrained(str(folder)))
    weights = {name: torch.empty(stored.shape, dtype=stored.dtype) for name, stored in _stored(folder / PARTS).items()}
    _read(folder / PARTS, weights)
    _, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    missing = [name for name, p in model.named_parameters() if p.is_meta and not (adapter and "lora_" not in name)]
    if wrong := [*unexpected, *missing]:
        raise UserError(f"{folder}: its weights are not those of its configuration, first {wrong[0]}")
    whole.save_pretrained(target)
    load_tokenizer(str(folder), trust_remote_code=trust_remote_code).save_pretrained(target)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _weights(policy: Saved) -> dict[str, Tensor]:
    """Weights and saved buffers, a tied weight once, under its first name; of a model with an adapter the trained
    weights."""
    named: dict[int, tuple[str, Tensor]] = {}
    for name, value in policy.model.state_dict(keep_vars=True).items():
        if policy.peft is None or value.requires_grad:
            named.setdefault(id(value), (name, value.detach()))
    return dict(named.values())


def _trained(policy: Saved, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's parameters by name, in its order."""
    names = {id(p): name for name, p in policy.model.state_dict(keep_vars=True).items()}
    return {names[id(p)]: p for group in optimizer.param_groups for p in group["params"]}


def _optimizer_state(policy: Saved, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state's tensors, and its numbers, each by `parameter/part`."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for name, parameter in _trained(policy, optimizer).items():
        for part, value in optimizer.state.get(parameter, {}).items():
            key = f"{name}{SEPARATOR}{part}"
            if not isinstance(value, Tensor):
                numbers[key] = value
            elif value.dim() == 0:
                numbers[key] = {"tensor": value.item()}
            else:
                tensors[key] = value
    return tensors, numbers


class _Stored(NamedTuple):
    shape: torch.Size
    dtype: torch.dtype
    complete: bool
    """Whether all of its parts are in the folder."""


def _stored(folder: Path) -> dict[str, _Stored]:
    """The tensors of a folder by name."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    metadata: dict[str, Any] = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    stored = {}
    for name, tensor in metadata.items():
        there = sum(chunk.sizes.numel() for chunk in tensor.chunks)
        stored[name] = _Stored(tensor.size, tensor.properties.dtype, tensor.size.numel() == there)
    return stored


def _write(folder: Path, tensors: dict[str, Tensor]) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save as save_parts

    with _one_process_is_meant():
        save_parts(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def _read(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill the tensors, in place. Raises UserError where the folder does not have these tensors, whole."""
    stored = _stored(folder)
    for name in sorted({*stored, *tensors}):
        if name not in stored or name not in tensors:
            where = "is not in it" if name not in stored else "is not in the model"
            raise UserError(f"{folder} is of another model, or files are missing: {name} {where}")
        shape, _, complete = stored[name]
        if not complete or shape != tensors[name].shape:
            raise UserError(
                f"{folder} is of another model, or files are missing: {name} is {list(tensors[name].shape)} in the "
                f"model, and the files have {'' if complete else 'a part of '}{list(shape)}"
            )
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load as load_parts

    with _one_process_is_meant():
        load_parts(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))


@contextmanager
def _one_process_is_meant() -> Iterator[None]:
    """Without PyTorch's warning that there is no process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield
