"""Loading a policy whose weights are divided among ranks: rank 0 reads the model, and no other rank holds all of it."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from cohort.compat.libraries import quiet
from cohort.config import TrainingConfig
from cohort.policy.adapter import is_adapter
from cohort.policy.fast.layers import why_unsupported
from cohort.policy.load import adapt, fast_bf16, load_model, load_model_config, load_tokenizer, set_up
from cohort.policy.memory import keep_freed_memory
from cohort.policy.model import Policy
from cohort.policy.parity import check_repeatable, choose_paths
from cohort.policy.paths import possible_paths
from cohort.policy.precision import widen
from cohort.policy.sharded import ShardedPolicy, Sharding, require_torch, shard
from cohort.progress import Task
from cohort.types import UserError

log = logging.getLogger("cohort")


class _Read(NamedTuple):
    """What rank 0 tells the others of the model that it has read."""

    error: str = ""
    config: Any = None
    generation_config: Any = None
    dtypes: dict[str, torch.dtype] | None = None


def make_sharded_policy(
    model: Any, tokenizer: Any, config: TrainingConfig, sharding: Sharding, peft_config: Any = None
) -> ShardedPolicy:
    """As `make_policy`, with the weights divided among the ranks of the mesh; a model that is given by name is read by
    rank 0 alone, into the CPU's memory. Every rank makes the call. Raises UserError, on every rank."""
    require_torch()
    quiet()
    if isinstance(model, str):
        tokenizer = tokenizer or load_tokenizer(model, trust_remote_code=config.trust_remote_code)
        model = _read(model, config, sharding)
    if tokenizer is None:
        tokenizer = load_tokenizer(model.config.name_or_path, trust_remote_code=config.trust_remote_code)
    device = sharding.device
    if device.type == "cpu":
        keep_freed_memory()
    bf16 = fast_bf16(device) if config.bf16 is None else config.bf16
    if bf16 and sharding.param_dtype is None and not config.gradient_checkpointing:
        log.info(
            "bf16 with fsdp_param_dtype: float32: autocast's bfloat16 copies of all weights stay from the forward to "
            "the backward pass. fsdp_param_dtype: bfloat16, or gradient_checkpointing: true, saves that memory"
        )
    peft = adapt(model, config, peft_config)
    model = peft.get_base_model() if peft is not None else model
    for line in widen(model, bf16):
        log.info(line)
    set_up(model, peft, config)
    source = Policy(model, tokenizer, peft=peft, bf16=bf16)
    source.paths = possible_paths(device, why_unsupported(source.backbone))  # the model is elsewhere yet
    policy = shard(source, sharding)
    with policy.gathered() as whole, Task("comparing the fast paths with the model's own code"):
        if config.disable_dropout and policy.whole.parameters:
            check_repeatable(whole)
        choose_paths(whole, config.fast_paths, config.longest_sequence)
    policy.take_paths()
    return policy


def _read(name: str, config: TrainingConfig, sharding: Sharding) -> Any:
    """The model on rank 0; elsewhere one without weights."""
    if is_adapter(name, config.model_init_kwargs.get("revision")):
        raise UserError(
            f"{name!r} is an adapter, which is not loaded for sharded training: merge it first "
            "(cohort export ADAPTER --merge --output DIR) and train DIR"
        )
    options = {key: value for key, value in config.model_init_kwargs.items() if key != "device_map"}
    if options.get("quantization_config") is not None:
        raise UserError(
            "quantization_config: quantised weights cannot be divided among ranks. Use distributed: replicated"
        )
    trust = config.trust_remote_code
    if trust:
        load_model_config(name, trust_remote_code=True)  # the code of rank 0's configuration, for this rank
    model, told = None, [_Read()]
    if sharding.mesh.get_rank() == 0:
        try:
            model = load_model(name, trust_remote_code=trust, allow_pickle=config.allow_pickle, **options)
            dtypes = {parameter_name: p.dtype for parameter_name, p in model.named_parameters()}
            told = [_Read("", model.config, model.generation_config, dtypes)]
        except UserError as error:
            told = [_Read(str(error))]
    dist.broadcast_object_list(told, group=sharding.mesh.get_group(), group_src=0, device=sharding.device)
    read = told[0]
    if read.error:
        raise UserError(read.error)
    if model is None:
        model = without_weights(read.config, trust_remote_code=trust)
        model.generation_config = read.generation_config
        for parameter_name, parameter in model.named_parameters():
            parameter.data = parameter.data.to((read.dtypes or {})[parameter_name])
    return model.eval()


def without_weights(config: Any, *, trust_remote_code: bool = False) -> Any:
    """A causal language model with its buffers and with weights on meta."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    model.tie_weights()  # each name has got a weight of its own on meta
    return model
