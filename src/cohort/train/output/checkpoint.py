"""Checkpoints: complete or absent, without pickle, with all state that a step depends on."""

from __future__ import annotations

import copy
import json
import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cohort.config.hub import cache_without_hub
from cohort.policy.finite import first_not_finite
from cohort.progress import Task
from cohort.train.output import folders
from cohort.train.output import sampled as sampled_batches
from cohort.train.output.groups import groups_of, plain, tensors_of
from cohort.train.output.optimizer_state import nested, state_of
from cohort.train.output.sampled import Sampled
from cohort.types import Group, NotFinite, UserError

log = logging.getLogger("cohort")

OPTIMIZER = "optimizer.safetensors"
PARTS = "weights"
"""Folder of a checkpoint that ranks wrote their parts of (sharded_checkpoint.py)."""


@dataclass
class Progress:
    """The state of a run. Progress(step=40, num_tokens=123456, batch=[...groups in use], batch_metrics={...})"""

    step: int = 0
    num_tokens: int = 0
    token_budget: int = 0
    batch_size: int = 0
    """Sequences of a step, of all ranks together."""
    batch: list[Group] | None = None
    """The sampled batch that later updates will use too; None between batches."""
    batch_metrics: dict[str, float] | None = None
    ahead: dict[int, Sampled] = field(default_factory=dict)
    """Batches that were sampled ahead, by their number."""
    updater: dict[str, float] = field(default_factory=dict)
    """What the updater keeps between steps, such as the weight of a steered entropy bonus."""
    health: dict[str, Any] = field(default_factory=dict)
    """What the monitor of the run's health has seen and told."""
    skipped: int = 0
    """Updates in a row that were left out, the last one included."""
    unfinished: bool = False
    """Whether evaluation and the end of an iteration, where they are due after this step, are still to come."""


class Saved(Protocol):
    """A model in training as checkpoints see it: a policy or a reward model."""

    model: Any
    tokenizer: Any
    peft: Any
    """The PeftModel, or None without an adapter."""
    device: torch.device
    version: int
    keeps_config: bool
    """Whether an adapter is saved with the model's configuration."""


def save_policy(policy: Saved, folder: Path) -> None:
    """Save as a transformers directory, or a peft adapter, with the tokenizer. Raises NotFinite, and writes nothing,
    where a trained weight is NaN or infinite."""
    require_finite([(name, p) for name, p in policy.model.named_parameters() if p.requires_grad], folder)
    model = policy.peft if policy.peft is not None else policy.model
    # peft looks on the hub whether the base model has other embeddings.
    with cache_without_hub(policy.model.config.name_or_path), Task(f"saving {folder}"):
        model.save_pretrained(folder, safe_serialization=True)
    if policy.keeps_config:
        policy.model.config.save_pretrained(folder)
    if hasattr(policy.tokenizer, "save_pretrained"):
        policy.tokenizer.save_pretrained(folder)


def require_finite(weights: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Raise NotFinite where a weight that would be saved in the folder is NaN or infinite."""
    broken = first_not_finite(weights)
    if broken is not None:
        run = folder.parent if folder.name.startswith(("checkpoint-", "partial-")) else folder
        raise NotFinite(
            f"weights are NaN or infinite and are not saved, first {broken}. {folders.where_to_resume(run)}"
        )


class Companion(Protocol):
    """A model that is trained beside the policy with weights and an optimiser of its own, such as a critic."""

    name: str
    """Name of its file in a checkpoint: critic -> critic.safetensors."""
    optimizer: torch.optim.Optimizer

    @property
    def parameters(self) -> Sequence[Tensor]:
        """The trained weights."""
        ...

    def step(self, groups: list[Group], generation_tokens: float, share: float) -> dict[str, float]:
        """Take a step on the policy's groups at `share` of the highest learning rate; returns metrics."""
        ...


class Kept(Protocol):
    """State beside the policy and its companions that writes its own files into a checkpoint."""

    def save(self, folder: Path) -> None: ...

    def restore(self, folder: Path) -> None: ...


def save(
    folder: Path,
    policy: Saved,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    facts: dict[str, Any],
    companions: Sequence[Companion] = (),
    kept: Kept | None = None,
) -> Path:
    """Write a folder under a temporary name and rename it to `checkpoint-{step}`. `facts`: what the run was made
    with."""
    target = folder / f"checkpoint-{progress.step}"
    with folders.whole(target, facts) as partial:
        _write(partial, policy, optimizer, progress, companions, kept)
    return target


def save_model_only(folder: Path, policy: Saved, step: int, facts: dict[str, Any]) -> None:
    """Write a checkpoint of the model alone, as `save` does."""
    with folders.whole(folder / f"checkpoint-{step}", facts) as partial:
        save_policy(policy, partial)


def _write(
    partial: Path,
    policy: Saved,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    companions: Sequence[Companion],
    kept: Kept | None,
) -> None:
    save_policy(policy, partial)
    for companion in companions:
        save_learner(partial / f"{companion.name}.safetensors", companion.parameters, companion.optimizer)
    if kept is not None:
        kept.save(partial)
    save_progress(partial, policy, progress, *state_of(optimizer))


def save_progress(
    partial: Path, policy: Saved, progress: Progress, tensors: dict[str, Tensor], metadata: dict[str, str]
) -> None:
    """Write the state of the run, the random states, and the optimiser's `tensors` with what belongs to them."""
    tensors["rng.torch"] = torch.get_rng_state()
    if policy.device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(policy.device)
    save_file(tensors, partial / OPTIMIZER, metadata)
    if progress.batch is not None:
        save_file(tensors_of(progress.batch), partial / "batch.safetensors")
    sampled_batches.save(partial, progress.ahead)
    record = {
        "step": progress.step,
        "num_tokens": progress.num_tokens,
        "token_budget": progress.token_budget,
        "batch_size": progress.batch_size,
        "version": policy.version,
        "batch": None if progress.batch is None else [plain(group) for group in progress.batch],
        "batch_metrics": progress.batch_metrics,
        "updater": progress.updater,
        "health": progress.health,
        "unfinished": progress.unfinished,
        "skipped": progress.skipped,
        "has_manifest": True,
        "rng_python": random.getstate(),
        "rng_numpy": [x.tolist() if isinstance(x, np.ndarray) else x for x in np.random.get_state()],
    }
    (partial / "state.json").write_text(json.dumps(record), encoding="utf-8")


def load(
    path: Path,
    policy: Saved,
    optimizer: torch.optim.Optimizer,
    companions: Sequence[Companion] = (),
    kept: Kept | None = None,
) -> Progress:
    """Load the policy, the optimiser and the random states. Raises UserError for a folder that is not a checkpoint of
    this run."""
    folders.require(path)
    load_weights(path, policy)
    progress, tensors = load_progress(path, policy)
    _load_optimizer(tensors, optimizer, path / OPTIMIZER)
    for companion in companions:
        _load_companion(path, companion)
    if kept is not None:
        kept.restore(path)
    return progress


def load_progress(path: Path, policy: Saved) -> tuple[Progress, dict[str, Tensor]]:
    """Load the state of the run and the random states. Returns the tensors of the optimiser too."""
    record = json.loads((path / "state.json").read_text(encoding="utf-8"))
    policy.version = record["version"]
    tensors = load_file(path / OPTIMIZER)
    torch.set_rng_state(tensors.pop("rng.torch"))
    if "rng.cuda" in tensors:
        state = tensors.pop("rng.cuda")
        if policy.device.type == "cuda":
            torch.cuda.set_rng_state(state, policy.device)
    version, internal, gauss = record["rng_python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = record["rng_numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    batch = record["batch"]
    if batch is not None:
        batch = groups_of(batch, load_file(path / "batch.safetensors"))
    names = ("step", "num_tokens", "token_budget", "batch_metrics", "updater")
    # Checkpoints of earlier versions do not have all.
    since: dict[str, Any] = {"health": {}, "batch_size": 0, "unfinished": False, "skipped": 0}
    since = {name: record.get(name, default) for name, default in since.items()}
    ahead = sampled_batches.load(path)
    return Progress(batch=batch, ahead=ahead, **since, **{name: record[name] for name in names}), tensors


def _load_companion(path: Path, companion: Companion) -> None:
    file = path / f"{companion.name}.safetensors"
    if not file.is_file():
        raise UserError(f"{path} has no {companion.name}: it is another method's checkpoint; resume with that method")
    load_learner(file, companion.parameters, companion.optimizer)


def save_learner(file: Path, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Save weights, named by their index, and the state of their optimiser in one file. Raises NotFinite where a weight
    is NaN or infinite."""
    named = {f"weights.{i}": parameter.detach().contiguous() for i, parameter in enumerate(parameters)}
    require_finite([(f"{file.stem}: {name}", weight) for name, weight in named.items()], file.parent)
    tensors, metadata = state_of(optimizer)
    save_file({**named, **tensors}, file, metadata)


@torch.no_grad()
def load_learner(file: Path, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Load what `save_learner` wrote into the parameters and the optimiser."""
    tensors = load_file(file)
    weights = {name: tensors.pop(name) for name in list(tensors) if name.startswith("weights.")}
    _load_optimizer(tensors, optimizer, file)
    for i, parameter in enumerate(parameters):
        parameter.copy_(weights[f"weights.{i}"])


def load_weights(path: Path, policy: Saved) -> None:
    """Load the trained weights of a saved model into the policy. Raises UserError for an adapter where the policy has
    none, or the other way round."""
    if policy.peft is not None:
        from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

        if not (path / "adapter_config.json").is_file():
            raise UserError(f"{path} holds a full model, but this run trains an adapter: resume with the same settings")
        weights = load_peft_weights(str(path), device=str(policy.device))
        wrong = sorted(set(get_peft_model_state_dict(policy.peft)) ^ set(weights))
        if wrong:
            raise UserError(f"{path} has the weights of another adapter, first {wrong[0]}")
        try:
            set_peft_model_state_dict(policy.peft, weights)
        except RuntimeError as error:  # another rank or other shapes
            raise UserError(f"{path} has the weights of another adapter: {error}") from error
        return
    if (path / "adapter_config.json").is_file():
        raise UserError(f"{path} holds an adapter, but this run trains all weights: resume with the same settings")
    widest = max(
        (p.dtype for p in policy.model.parameters()), key=lambda dtype: dtype.itemsize
    )  # frozen ones may differ
    config = copy.deepcopy(policy.model.config)
    try:
        saved, loading = type(policy.model).from_pretrained(
            path, config=config, dtype=widest, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path}: its weights cannot be read: {error}") from error
    wrong = [*loading["missing_keys"], *loading["unexpected_keys"], *(key for key, *_ in loading["mismatched_keys"])]
    if wrong:
        raise UserError(
            f"{path} has the weights of another model: {len(wrong)} are missing, unknown or of another shape, first "
            f"{wrong[0]}"
        )
    policy.model.load_state_dict(saved.state_dict())


def _load_optimizer(tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer, file: Path) -> None:
    """`tensors`: those of the file that belong to the optimiser."""
    state = nested(tensors, file)
    trained = sum(len(group["params"]) for group in optimizer.param_groups)
    if state and len(state) != trained:
        raise UserError(
            f"{file}: the optimiser has {len(state)} tensors, this run trains {trained}: not the same model"
        )
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
