"""What a rank does in the tests of sharded models. A module, since a rank may be a process that is started anew."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from cohort.config import TrainingConfig
from cohort.data.chains import build_tokenizer
from cohort.methods.table import METHODS
from cohort.policy.divided import full
from cohort.policy.load import make_policy
from cohort.policy.load_sharded import make_sharded_policy
from cohort.policy.model import Policy
from cohort.policy.packed.pack import Part, micro_batches
from cohort.policy.reference import reference_of
from cohort.policy.sharded import ShardedPolicy, Sharding
from cohort.rollouts.engine import local_engine
from cohort.rollouts.sampling import Sampling
from cohort.train.optimizer import descend
from cohort.train.output import sharded_checkpoint
from cohort.train.step import Updater, _Pass
from cohort.types import Group, UserError
from helpers import LORA, SIZES, perturbed, prompts_of, random_groups, settings, small_model, tokens_of

BUDGET = 28
"""Tokens of a micro-batch: three of them for the groups, so that one of two ranks has one less."""

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "Llama": ("Llama", {}, {}, {}),
    "Llama, tied": ("Llama", {"tie_word_embeddings": True}, {}, {}),
    "Qwen2, tied": ("Qwen2", {"tie_word_embeddings": True}, {}, {}),
    "Qwen3": ("Qwen3", {}, {}, {}),
    "Gemma2": ("Gemma2", {}, {}, {}),
    "LoRA": ("Llama", {}, LORA, {}),
    "some layers": ("Llama", {}, {"finetuning_type": "freeze", "freeze_trainable_layers": 1}, {}),
    "padded rows": ("Llama", {}, {"fast_paths": "off"}, {}),
    "recomputed and offloaded": ("Llama", {}, {"gradient_checkpointing": True}, {"offload": True}),
    "bfloat16": ("Llama", {}, {}, {"param_dtype": torch.bfloat16}),
}
"""Name -> (architecture, its settings, the run's settings, of the sharding)."""


MEMORY: tuple[tuple[bool, bool, torch.dtype | None], ...] = (
    (False, False, None),
    (True, False, None),
    (True, True, None),
    (True, False, torch.bfloat16),
)
"""bf16, gradient_checkpointing, fsdp_param_dtype."""


def sharding(**options: Any) -> Sharding:
    return Sharding(init_device_mesh("cpu", (dist.get_world_size(),)), **options)


def both(case: str) -> tuple[Policy, ShardedPolicy, TrainingConfig]:
    """The same policy unsharded and sharded; of bfloat16 weights the unsharded one has them rounded."""
    architecture, shape, values, options = CASES[case]
    config = settings(max_grad_norm=0.5, learning_rate=1e-3, weight_decay=0.1, **values)
    model = small_model(architecture, **shape)
    policies = []
    for make in (make_policy, lambda *arguments: make_sharded_policy(*arguments, sharding(**options))):
        torch.manual_seed(1)
        policies.append(make(copy.deepcopy(model), build_tokenizer(), config))
        policies[-1].model.train()
    whole, sharded = policies
    for parameter in whole.model.parameters() if "param_dtype" in options else ():
        parameter.data = parameter.data.to(options["param_dtype"])
    return whole, sharded, config


def batch(policy: Policy) -> list[Group]:
    groups = random_groups(SIZES)
    for group, old in zip(groups, perturbed(policy, groups, 0.3, 1), strict=True):
        group.old_logprobs = old
    return groups


def parts_of(groups: list[Group]) -> list[Part]:
    return [Part(g, x.prompt_ids, range(3), [c.ids for c in x.completions]) for g, x in enumerate(groups)]


def accumulate(policy: ShardedPolicy, updater: Updater, groups: list[Group]) -> tuple[int, int]:
    """This rank's micro-batches of the step, and passes of nothing where another rank has more. Returns both
    numbers."""
    micros = list(micro_batches(parts_of(groups), BUDGET))
    ranks, rank = dist.get_world_size(), dist.get_rank()
    mine = micros[rank::ranks]
    step = _Pass(updater, groups, tokens_of(groups), BUDGET, None)
    with policy.attending():
        for i, micro in enumerate(mine):
            step._backward(micro, i)
    idle = -(-len(micros) // ranks) - len(mine)
    for _ in range(idle):
        policy.idle_pass()
    return len(mine), idle


def difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest norm of a difference, relative to the tensor's norm, or for a small one to the largest entry."""
    assert ours.keys() == theirs.keys()
    scale = max(float(x.abs().max()) for x in theirs.values())
    return max(float((ours[name] - x).norm()) / max(float(x.norm()), 1e-3 * scale) for name, x in theirs.items())


def trained(policy: Policy, grad: bool) -> dict[str, Tensor]:
    return {
        name: full(p.grad if grad and p.grad is not None else p.detach()).float().clone()
        for name, p in policy.model.named_parameters()
        if p.requires_grad
    }


def largest(ours: dict[Any, Tensor], theirs: dict[Any, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max((float((ours[key] - x).abs().max()) for key, x in theirs.items()), default=0.0)


def greedy(policy: Policy, prompts: list[Tensor]) -> list[list[int]]:
    sampling = Sampling(temperature=0, max_tokens=10, eos_ids=[1])
    generation = local_engine(policy, 4).generate(prompts, 2, sampling, [0] * len(prompts))
    return [c.ids.tolist() for row in generation.completions for c in row]


def compared(case: str) -> dict[str, Any]:
    """Numbers of one case; of the second rank those that the ranks may differ in."""
    whole, sharded, config = both(case)
    groups, rank = batch(whole), dist.get_rank()
    parts = parts_of(groups)
    before = whole.logprobs([parts], 1.0)
    scored = sharded.logprobs([parts] if rank == 0 else [], 1.0)
    results: dict[str, Any] = {"logprobs": largest(scored, before if rank == 0 else {})}
    reference = reference_of(sharded)
    results["reference is policy"] = [reference.is_policy()]
    with sharded.gathered() as gathered:
        prompts = prompts_of()[: None if rank == 0 else 1]
        results["same tokens"] = greedy(gathered, prompts) == greedy(whole, prompts)
    updaters = [Updater(policy, METHODS["grpo"], config) for policy in (whole, sharded)]
    updaters[0].gradient(groups, tokens_of(groups))
    results["passes"] = accumulate(sharded, updaters[1], groups)
    results["gradient"] = difference(trained(sharded, grad=True), trained(whole, grad=True))
    start = trained(whole, grad=False)
    norms = [descend(u.optimizer, u.policy.parameters, config.learning_rate, config, u.policy.model) for u in updaters]
    results["clipped"] = norms[0] > config.max_grad_norm
    results["norm"] = abs(norms[1] / norms[0] - 1)
    after = trained(whole, grad=False)
    results["weights"] = difference(trained(sharded, grad=False), after)
    results["moved"] = difference(start, after)
    results["tied"] = sharded.model.get_input_embeddings().weight is sharded.head.output.weight
    with reference() as frozen:
        results["reference"] = largest(frozen.logprobs([parts], 1.0), before)
    results["reference is policy"].append(reference.is_policy())
    return results


def everything(folder: str) -> dict[str, dict[str, Any]]:
    """All comparisons, in one group of ranks."""
    kept = {key: held_and_told(*key) for key in MEMORY}
    return {**{case: compared(case) for case in CASES}, "loaded": loaded(folder), "kept": kept}


def loaded(folder: str) -> dict[str, Any]:
    """What a rank has of a model that is loaded by name, and what it is told where rank 0 cannot load one."""
    policy = make_sharded_policy(folder, None, settings(), sharding())
    whole = make_policy(folder, None, settings())
    told = []
    for options in ({"subfolder": "absent"}, {"quantization_config": {"load_in_4bit": True}}):
        try:
            make_sharded_policy(folder, whole.tokenizer, settings(model_init_kwargs=options), sharding())
        except UserError as error:
            told.append(str(error))
    return {
        "weights": difference(trained(policy, grad=False), trained(whole, grad=False)),
        "numbers": sum(p.to_local().numel() for p in policy.model.parameters()),
        "end tokens": policy.whole.eos_ids == policy.eos_ids == whole.eos_ids == [1, 7],
        "name": policy.name,
        "paths": policy.whole.paths == whole.paths,
        "told": told,
    }


def held_and_told(bf16: bool, gradient_checkpointing: bool, param_dtype: torch.dtype | None) -> tuple[int, int]:
    """Bytes of matrices that are kept between a forward and a backward pass, and lines about them."""
    config = settings(gradient_checkpointing=gradient_checkpointing).model_copy(update={"bf16": bf16})
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("cohort")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    policy = make_sharded_policy(small_model(), build_tokenizer(), config, sharding(param_dtype=param_dtype))
    log.removeHandler(handler)
    policy.model.train()
    shapes = {tuple(p.shape) for layer in policy.layers for p in layer.parameters() if p.dim() == 2}
    kept: dict[int, Tensor] = {}

    def pack(saved: Tensor) -> Tensor:
        saved = saved.detach()
        if saved.dim() == 2 and {tuple(saved.shape), tuple(saved.t().shape)} & shapes:
            kept[saved.untyped_storage()._cdata] = saved
        return saved

    with policy.attending():
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            hidden = policy.hidden(policy.pack(parts_of(random_groups(SIZES))).inputs)
        held = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        hidden.backward(torch.zeros_like(hidden))
    return held, len([line for line in told if "autocast's bfloat16 copies of all weights" in line])


def weights(policy: Policy, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Whole tensors of the model and of the optimiser."""
    names = {id(p): name for name, p in policy.model.named_parameters()}
    tensors = {name: full(p.detach()).clone() for name, p in policy.model.named_parameters()}
    for parameter, state in optimizer.state.items():
        tensors |= {f"{names[id(parameter)]} {part}": full(value).clone() for part, value in state.items()}
    return tensors


def learner(policy: Policy, config: TrainingConfig) -> Updater:
    return Updater(policy, METHODS["grpo"], config)


def step(policy: Policy, updater: Updater, config: TrainingConfig, groups: list[Group]) -> None:
    if isinstance(policy, ShardedPolicy):
        accumulate(policy, updater, groups)
    else:
        updater.gradient(groups, tokens_of(groups))
    descend(updater.optimizer, policy.parameters, config.learning_rate, config)


def fresh_sharded(case: str) -> tuple[ShardedPolicy, TrainingConfig, Updater]:
    """Weights are another seed's: a checkpoint must replace all of them."""
    architecture, shape, values, options = CASES[case]
    config = settings(learning_rate=1e-3, **values)
    model = small_model(architecture, **shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    policy = make_sharded_policy(model, build_tokenizer(), config, sharding(**options))
    return policy, config, learner(policy, config)


def continued(case: str, source: str, target: str, whole: str) -> dict[str, Any]:
    """Load a checkpoint, take a step, save another one and the model by itself; what was loaded and what was saved."""
    policy, config, updater = fresh_sharded(case)
    sharded_checkpoint.load(Path(source), policy, updater.optimizer)
    before = weights(policy, updater.optimizer)
    step(policy, updater, config, random_groups(SIZES))
    sharded_checkpoint.save(Path(target), policy, updater.optimizer)
    sharded_checkpoint.save_whole(policy, Path(whole))
    return {"loaded": before, "saved": weights(policy, updater.optimizer)}


def reloaded(case: str, source: str) -> dict[str, Any]:
    policy, _, updater = fresh_sharded(case)
    sharded_checkpoint.load(Path(source), policy, updater.optimizer)
    return weights(policy, updater.optimizer)
