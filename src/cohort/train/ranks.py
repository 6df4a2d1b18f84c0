"""What a run on several ranks settles among them: settings, the checkpoint, who differentiates what."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from cohort.config import TrainingConfig
from cohort.policy import ranks
from cohort.policy.fast.activations import ActivationStore
from cohort.policy.packed.pack import Part
from cohort.train.facts import data_digest
from cohort.train.output import folders
from cohort.train.output.lock import locked
from cohort.types import Completion, Row, UserError

OWN = ("output_dir", "logging_dir", "run_name")
"""Settings that a rank may have for itself: only rank 0 writes."""


def require_agreement(config: TrainingConfig, rows: list[Row]) -> None:
    """Raise UserError where ranks have other settings, versions or data than rank 0."""
    if ranks.count() == 1:
        return
    settings = {f"setting {name}": value for name, value in config.model_dump(mode="json", exclude=set(OWN)).items()}
    ranks.require_agreement({**settings, "number of rows": len(rows), "data (SHA-256)": data_digest(rows)})


def own_parts(
    parts: list[Part],
    completions_of: Callable[[Part], list[Completion]],
    store: ActivationStore | None,
    whole: bool,
) -> list[Part]:
    """The parts of an update that this rank differentiates: those that it sampled where all activations of sampling
    were kept, else a share by tokens. `whole`: groups are not divided."""
    if ranks.count() == 1:
        return parts
    held = [False] * len(parts) if store is None else store.held(map(completions_of, parts))
    if all(map(any, zip(*ranks.gather(held, "the update"), strict=True))):
        return [part for part, is_held in zip(parts, held, strict=True) if is_held]
    return ranks.dealt(parts, whole)


def checkpoint_to_resume(folder: Path, resume: bool | str | None) -> Path | None:
    """The checkpoint that rank 0 resumes from: the newest whole one in the folder, or the one named. Raises UserError
    where it is damaged, or on a rank that does not see it."""

    def find() -> Path | None:
        if resume is True:
            return folders.newest_intact(folder)
        path = Path(resume) if resume else None
        if path is not None:
            folders.require(path)
        return path

    path = ranks.from_main(find, "looking for checkpoints")
    if path is not None and not path.exists() and not ranks.is_main():
        raise UserError(
            f"rank {ranks.number()} does not see {path}: every rank reads the checkpoint, so output_dir must be on a "
            "disk that all machines share"
        )
    return path


def lock_of_run(output_dir: str) -> AbstractContextManager[None]:
    """Within it this run alone writes in the folder: rank 0 holds the lock. Raises UserError where another run does."""
    return locked(Path(output_dir)) if ranks.is_main() else nullcontext()


def require_same_batch(saved: int, config: TrainingConfig) -> None:
    """Raise UserError where a resumed run would go on with steps of another size, as on another number of ranks.
    `saved`: the checkpoint's sequences of a step; 0: it does not say."""
    if saved in (0, config.batch_size):
        return
    per_rank, steps = config.per_device_train_batch_size, config.gradient_accumulation_steps
    whole, rest = divmod(saved, ranks.count() * per_rank)
    remedy = f"gradient_accumulation_steps: {whole}"
    if rest:
        remedy = f"per_device_train_batch_size: {saved // ranks.count()} and gradient_accumulation_steps: 1"
    raise UserError(
        f"the checkpoint's steps had {saved} sequences in all, and these would have {config.batch_size}: "
        f"per_device_train_batch_size {per_rank} x gradient_accumulation_steps {steps} x {ranks.count()} "
        f"{'rank' if ranks.count() == 1 else 'ranks'}. To go on as before, set {remedy}"
    )


def of_ranks() -> str:
    """The end of the line that says what a step is in all."""
    return f", on {ranks.count()} ranks together" if ranks.count() > 1 else ""
