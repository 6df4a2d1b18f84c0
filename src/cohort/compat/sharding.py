"""DeepSpeed's and FSDP's keys of transformers' TrainingArguments and of LLaMA-Factory's YAML, read as ours."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cohort.compat.keys import Key
from cohort.types import UserError

REPLICATED, SHARDED = "replicated", "fsdp2"

_KEYS = "the run's own keys set it"
_TRAFFIC = "FSDP2 sizes and overlaps its transfers itself"
_LAYERS = "each decoder layer is gathered by itself"
_SAVED = "each rank writes its part of a checkpoint, and the final model is an ordinary folder"

DEEPSPEED = {
    "train_batch_size": Key(_KEYS, off=("auto",)),
    "train_micro_batch_size_per_gpu": Key(_KEYS, off=("auto",)),
    "gradient_accumulation_steps": Key(_KEYS, off=("auto",)),
    "zero_allow_untested_optimizer": Key("AdamW trains", off=(True,)),
    "optimizer": Key("AdamW trains, by learning_rate, weight_decay, adam_beta1, adam_beta2 and adam_epsilon"),
    "scheduler": Key("lr_scheduler_type and warmup_steps set it"),
    "fp16": Key("bf16, or float32 where the hardware has no fast bfloat16"),
    "amp": Key("bf16, or float32 where the hardware has no fast bfloat16"),
}
ZERO = {
    **dict.fromkeys(
        ("overlap_comm", "contiguous_gradients", "allgather_partitions", "reduce_scatter"), Key("", off=(True, False))
    ),
    **dict.fromkeys(
        ("allgather_bucket_size", "reduce_bucket_size", "sub_group_size", "round_robin_gradients",
         "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "stage3_max_live_parameters",
         "stage3_max_reuse_distance"),
        Key(_TRAFFIC, off=("auto", True, False, 1e9, 5e8)),
    ),
    "stage3_gather_16bit_weights_on_model_save": Key(_SAVED, off=(True,)),
    "zero_hpz_partition_size": Key("weights are divided among all ranks", off=(1,)),
}  # fmt: skip
FSDP = {
    "version": Key("FSDP2 takes its place", off=(2,)),
    "cpu_ram_efficient_loading": Key("", off=(True, False)),
    "sync_module_states": Key("", off=(True, False)),
    "use_orig_params": Key("", off=(True, False)),
    "state_dict_type": Key(_SAVED, off=("SHARDED_STATE_DICT",)),
    "auto_wrap_policy": Key(_LAYERS, off=("TRANSFORMER_BASED_WRAP",)),
    "transformer_layer_cls_to_wrap": Key(_LAYERS),
    "transformer_cls_names_to_wrap": Key(_LAYERS),
    "min_num_params": Key(_LAYERS, off=(0,)),
    "backward_prefetch": Key(_TRAFFIC, off=("backward_pre", "BACKWARD_PRE", "NO_PREFETCH")),
    "forward_prefetch": Key(_TRAFFIC),
    "limit_all_gathers": Key(_TRAFFIC, off=(True,)),
    "xla": Key("there is no XLA", refused=True),
    "xla_fsdp_settings": Key("there is no XLA"),
    "xla_fsdp_grad_ckpt": Key("there is no XLA"),
}
STRATEGIES = {
    "full_shard": "",
    "shard_grad_op": "weights are gathered again for the backward pass, not kept after the forward pass",
    "hybrid_shard": "weights are divided among all ranks, not only among those of one machine",
    "hybrid_shard_zero2": "weights are divided among all ranks, not only among those of one machine",
}
"""FSDP's strategies that divide weights -> how ours differs."""


class Read(NamedTuple):
    """Read({"distributed": "fsdp2", "fsdp_offload": True}, ["ZeRO-3 is FSDP2 here: ..."])"""

    ours: dict[str, Any]
    told: list[str]
    """What the user should know: what takes a key's place, and what has no effect."""


def sharding_of(values: Mapping[str, Any], where: str = "") -> Read:
    """Our keys for `deepspeed`, `fsdp` and `fsdp_config` among a file's values, which are left as they are. Raises
    UserError for a configuration that cannot be read, or asks for what does not exist here."""
    read = Read({}, [])
    if values.get("deepspeed") and values.get("fsdp"):
        raise UserError(f"{_prefix(where)}`deepspeed` and `fsdp` are two ways to divide a model among ranks: give one")
    if values.get("deepspeed"):
        _deepspeed(values["deepspeed"], values, read, where)
    elif values.get("fsdp"):  # without it transformers reads no fsdp_config
        _fsdp(values["fsdp"], values.get("fsdp_config"), read, where)
    if read.ours.get("distributed") == SHARDED and (values.get("bf16") or read.ours.get("bf16")):
        read.ours["fsdp_param_dtype"] = "bfloat16"
    return read


def _deepspeed(given: Any, values: Mapping[str, Any], read: Read, where: str) -> None:
    config = _mapping(given, "deepspeed", where) if _is_there(given) else _by_name(str(given), read, where)
    zero = config.get("zero_optimization") or {}
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise UserError(
            f"{_prefix(where)}`deepspeed`: zero_optimization has stage {stage!r}, which is not 0, 1, 2 or 3"
        )
    read.ours["distributed"] = SHARDED if stage else REPLICATED
    read.told.append(
        f"deepspeed: ZeRO-{stage} is distributed: fsdp2 here: weights, gradients and optimiser state are divided among "
        "ranks, and a layer's weights are gathered for its forward pass and again for its backward pass"
        if stage
        else "deepspeed: without ZeRO it is distributed: replicated here: every rank has all weights"
    )
    for name in ("offload_param", "offload_optimizer"):
        place = (zero.get(name) or {}).get("device", "none")
        if place not in ("none", None) and not read.ours.get("fsdp_offload"):
            read.ours["fsdp_offload"] = True
            read.told.append(
                f"deepspeed: {name} to {place} is fsdp_offload: true here: weights, gradients and optimiser state are "
                "in the CPU's memory" + ("; nothing goes to a disk" if place == "nvme" else "")
            )
    clipping = config.get("gradient_clipping", "auto")
    if clipping != "auto" and values.get("max_grad_norm") is None:
        read.ours["max_grad_norm"] = clipping
    if (config.get("bf16") or {}).get("enabled") is True and values.get("bf16") is None:
        read.ours["bf16"] = True
    known = ("zero_optimization", "gradient_clipping", "bf16")
    _tell(config, DEEPSPEED, known, "deepspeed", read, where)
    _tell(zero, ZERO, ("stage", "offload_param", "offload_optimizer"), "deepspeed: zero_optimization", read, where)


def _by_name(name: str, read: Read, where: str) -> dict[str, Any]:
    """The configuration that the name of one of LLaMA-Factory's files stands for, where the file is not here."""
    match = re.search(r"z(?:ero)?[-_]?([0-3])", Path(name).stem)
    if match is None:
        raise UserError(f"{_prefix(where)}`deepspeed`: {name}: no such file; give its path, or distributed: {SHARDED}")
    read.told.append(f"deepspeed: {name} is not here: its name says ZeRO-{match[1]}")
    zero: dict[str, Any] = {"stage": int(match[1])}
    if "offload" in Path(name).stem:
        zero["offload_param"] = {"device": "cpu"}
    return {"zero_optimization": zero}


def _fsdp(given: Any, config: Any, read: Read, where: str) -> None:
    words = given.split() if isinstance(given, str) else list(given) if isinstance(given, list | tuple) else []
    words = [str(getattr(word, "value", word)) for word in words]
    options = {
        name.removeprefix("fsdp_"): value for name, value in _mapping(config or {}, "fsdp_config", where).items()
    }
    after = options.get("reshard_after_forward", True)
    if after is False:
        words.append("shard_grad_op")
    elif isinstance(after, str):
        words.append(after.lower())
    unknown = [word for word in words if word not in (*STRATEGIES, "no_shard", "offload", "auto_wrap", "true")]
    if unknown:
        raise UserError(
            f"{_prefix(where)}`fsdp`: {unknown[0]!r} is unknown: {', '.join(STRATEGIES)}, no_shard, offload"
        )
    read.ours["distributed"] = REPLICATED if "no_shard" in words else SHARDED
    read.told.append(
        "fsdp: no_shard is distributed: replicated here: every rank has all weights"
        if "no_shard" in words
        else "fsdp is distributed: fsdp2 here: a layer's weights are gathered for its forward pass and again for its "
        "backward pass"
    )
    read.told.extend(f"fsdp: {word}: {STRATEGIES[word]}" for word in dict.fromkeys(words) if STRATEGIES.get(word))
    if "offload" in words or _is_true(options.get("cpu_offload")) or _is_true(options.get("offload_params")):
        read.ours["fsdp_offload"] = True
    if _is_true(options.get("activation_checkpointing")):
        read.ours["gradient_checkpointing"] = True
    known = ("reshard_after_forward", "cpu_offload", "offload_params", "activation_checkpointing")
    _tell(options, FSDP, known, "fsdp_config", read, where)


def _tell(
    config: Mapping[str, Any], table: Mapping[str, Key], known: tuple[str, ...], key: str, read: Read, where: str
) -> None:
    """Add a line for each entry that has no effect here. Raises UserError for a refused one."""
    for name, value in config.items():
        entry = table.get(name, Key("it is not known"))
        if name in known or value is None or (value is False and True not in entry.off):
            continue
        if any(value == off and isinstance(value, bool) == isinstance(off, bool) for off in entry.off):
            continue
        if isinstance(value, dict) and value.get("enabled", True) in (False, "auto"):
            continue
        if entry.refused:
            raise UserError(f"{_prefix(where)}`{key}`: {name} is {value!r}, and is not supported: {entry.text}")
        read.told.append(f"{key}: {name}={value!r} has no effect here: {entry.text}")


def _mapping(given: Any, key: str, where: str) -> dict[str, Any]:
    """A mapping, or the one in a JSON file."""
    if isinstance(given, dict):
        return given
    try:
        read = json.loads(Path(str(given)).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{_prefix(where)}`{key}`: {given}: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{_prefix(where)}`{key}`: {given} is not readable as JSON: {error}") from None
    if not isinstance(read, dict):
        raise UserError(f"{_prefix(where)}`{key}`: {given} holds no mapping")
    return read


def _is_there(given: Any) -> bool:
    return isinstance(given, dict) or Path(str(given)).is_file()


def _is_true(value: Any) -> bool:
    return value is True or str(value).lower() == "true"


def _prefix(where: str) -> str:
    return f"{where}: " if where else ""
