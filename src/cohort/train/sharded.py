"""What a run does otherwise where its model is divided among ranks (`distributed: fsdp2`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from cohort.config import DPOConfig, OnlineConfig, TrainingConfig
from cohort.methods.method import Method
from cohort.policy import load as loading
from cohort.policy import ranks
from cohort.policy.model import Policy
from cohort.rollouts.configured import configured_engine
from cohort.rollouts.engine import Engine, ShardedEngine
from cohort.train.optimizer import BITSANDBYTES
from cohort.train.output import checkpoint, folders
from cohort.train.output.checkpoint import PARTS, Companion, Kept, Progress, Saved
from cohort.types import UserError
from cohort.world import world_size

if TYPE_CHECKING:
    from cohort.policy.sharded import ShardedPolicy

log = logging.getLogger("cohort")

REMEDY = "use distributed: replicated"


def require_possible(method: Method, config: TrainingConfig) -> None:
    """Raise UserError for what a model that is divided among ranks cannot do. Call it before a model is loaded."""
    if config.distributed != "fsdp2" or world_size() == 1:
        return
    refused = {
        f"method {method.name} has a critic": method.critic,
        f"optim is {config.optim}, whose state cannot be divided": config.optim in BITSANDBYTES,
        "router_aux_loss_coef takes further passes": bool(config.router_aux_loss_coef),
        "load_best_model_at_end reads whole weights": config.load_best_model_at_end,
        "the reference moves (iterations, sync_ref_model)": isinstance(config, OnlineConfig | DPOConfig)
        and (config.iterations > 1 or config.sync_ref_model),
    }
    for reason, holds in refused.items():
        if holds:
            raise UserError(f"distributed: fsdp2: {reason}: {REMEDY}")


def make_policy(model: Any, tokenizer: Any, config: TrainingConfig, peft_config: Any) -> Policy:
    """The policy of a run: its model divided among the ranks, or with rank 0's trained weights on every rank."""
    if config.distributed == "fsdp2" and ranks.count() > 1:
        from torch.distributed.device_mesh import init_device_mesh

        from cohort.policy.load_sharded import make_sharded_policy
        from cohort.policy.sharded import Sharding

        mesh = init_device_mesh(loading.find_device(config.use_cpu).type, (ranks.count(),))
        dtype = torch.bfloat16 if config.fsdp_param_dtype == "bfloat16" else None
        sharding = Sharding(mesh, dtype, config.fsdp_offload)
        log.info("distributed: fsdp2: the model's weights are divided among %d ranks", ranks.count())
        return make_sharded_policy(model, tokenizer, config, sharding, peft_config)
    if config.distributed == "fsdp2":
        log.warning(
            "distributed: fsdp2 divides a model among ranks, and this run is one process, which holds all of it%s. "
            "torchrun --nproc-per-node N -m cohort train starts N",
            ": fsdp_offload has no effect" if config.fsdp_offload else "",
        )
    policy = loading.make_policy(model, tokenizer, config, peft_config)
    ranks.make_equal(policy.parameters)
    return policy


def engine_of(engine: Any, policy: Policy, config: TrainingConfig) -> Engine:
    """The engine, or what a class or function makes of the policy; None: the one that the configuration names."""
    if policy.is_sharded:
        sharded = cast("ShardedPolicy", policy)
        return ShardedEngine(sharded, engine_of(engine, sharded.whole, config))
    if engine is None:
        return configured_engine(policy, config)
    makes_engine = isinstance(engine, type) or not hasattr(engine, "generate")
    make = cast("Callable[[Policy], Engine]", engine)
    result: Engine = make(policy) if makes_engine else engine
    return result


def save_model(policy: Policy, folder: Path) -> None:
    """Rank 0 writes an ordinary transformers directory, or a peft adapter. Every rank makes the call."""
    if policy.is_sharded:
        from cohort.train.output.sharded_checkpoint import save_whole

        save_whole(cast("ShardedPolicy", policy), folder)
    elif ranks.is_main():
        checkpoint.save_policy(policy, folder)


def save(
    folder: Path,
    policy: Saved,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    kept: Kept | None,
    facts: dict[str, Any],
    only_model: bool,
) -> None:
    """As `checkpoint.save`, each rank writing its part; with `only_model` as `save_model_only`. Every rank makes the
    call."""
    from cohort.train.output import sharded_checkpoint

    def write(partial: Path) -> None:
        if only_model:
            save_model(cast(Policy, policy), partial)
        else:
            sharded_checkpoint.save(partial, policy, optimizer)

    target = folder / f"checkpoint-{progress.step}"
    if not ranks.is_main():
        ranks.from_main(lambda: None, "saving a checkpoint")  # the folder is there
        write(folders.partial_of(target))
        return
    with folders.whole(target, facts) as partial:
        ranks.from_main(lambda: None, "saving a checkpoint")
        write(partial)
        if not only_model:
            if kept is not None:
                kept.save(partial)
            checkpoint.save_progress(partial, policy, progress, {}, {})


def has_parts(path: Path) -> bool:
    """Whether ranks wrote their parts of the checkpoint."""
    return (path / PARTS).is_dir()


def load(
    path: Path,
    policy: Saved,
    optimizer: torch.optim.Optimizer,
    companions: Sequence[Companion],
    kept: Kept | None,
) -> Progress:
    """As `checkpoint.load`, of a checkpoint that has parts, into a policy that is divided among ranks or not. Every
    rank makes the call."""
    from cohort.train.output import sharded_checkpoint

    folders.require(path)
    if companions:
        raise UserError(f"{path} has no {companions[0].name}: it is another method's checkpoint")
    sharded_checkpoint.load(path, policy, optimizer)
    progress, _ = checkpoint.load_progress(path, policy)
    if kept is not None:
        kept.restore(path)
    return progress
