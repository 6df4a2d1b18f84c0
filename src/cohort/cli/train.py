"""`cohort train`: trains a model as a YAML configuration says."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cohort.cli.console import Volume, echo, log_console
from cohort.cli.options import Configuration, Overrides
from cohort.types import Terminated
from cohort.world import rank

if TYPE_CHECKING:
    from rich.console import Console

    from cohort.config import TrainingConfig


def train(
    config: Configuration,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint in output_dir.")
    ] = False,
) -> None:
    """Train a model as a configuration says: a YAML file, and keys as KEY=VALUE or --KEY VALUE.

    docs/configuration.md lists the keys of each method, and `cohort methods` the methods. TRL's and LLaMA-Factory's
    files and keys are read too: `cohort train sft --config FILE`, or `cohort train sft --model M --dataset D`.
    """
    from cohort.cli.runs import read_run

    level = "warning" if Volume.quiet else "detail" if Volume.verbose else ""
    louder = [f"log_level={level}"] if level else []
    changes = [*(overrides or []), *louder, *(["resume_from_checkpoint=true"] if resume else [])]
    log_console()
    run, settings = read_run(config, changes)

    from cohort.data.configured import check_names

    check_names(run, settings)
    console = log_console(bars=not settings.disable_tqdm)
    if rank() or not run.do_train:  # rank 0 shows the training
        from cohort.train.run import train_from_config

        train_from_config(run, settings)
        if not rank():
            echo(f"In {settings.output_dir}: {', '.join(_results(Path(settings.output_dir)))}")
        return

    from cohort.report.live import LiveDisplay, silent_display
    from cohort.train.run import train_from_config

    command = ["cohort", "train", str(config), *(overrides or []), "--resume"]
    shown = silent_display() if Volume.quiet else LiveDisplay(f"{run.method}: {run.model}", console)
    with _how_to_resume(settings, command), shown as display:
        train_from_config(run, settings, callbacks=[display])
    _print_files(Path(settings.output_dir), console)
    for line in _verdict(Path(settings.output_dir)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _how_to_resume(settings: TrainingConfig, command: list[str]) -> Iterator[None]:
    """On Ctrl-C or another signal, print the command that continues the training, and exit with 128 and its number."""
    try:
        yield
    except (KeyboardInterrupt, Terminated) as error:
        folder = Path(settings.output_dir)
        echo("\n".join(["", *_verdict(folder)]), err=True)
        if any(folder.glob("checkpoint-*")):
            echo(f"stopped. To continue from the newest checkpoint: {shlex.join(command)}", err=True)
        elif (folder / "samples.jsonl").exists():
            echo(f"stopped. To continue with the samples in {folder}: {shlex.join(command)}", err=True)
        else:
            echo(
                f"stopped. {folder} has no checkpoint to continue from: a second signal ends a run at once; save_steps "
                "saves some on the way",
                err=True,
            )
        raise typer.Exit(error.number + 128 if isinstance(error, Terminated) else 130) from None


def _results(folder: Path) -> list[str]:
    names = ("eval_results.json", "generated_predictions.jsonl", "predict_results.json")
    return [name for name in names if (folder / name).exists()]


def _verdict(folder: Path) -> list[str]:
    """What came of the run, and what to type next; nothing of a run that made no step."""
    from cohort.report.verdict import verdict

    return verdict(folder) if (folder / "metrics.jsonl").is_file() else []


def _print_files(folder: Path, console: Console) -> None:
    """Draw the run's plots and print the names of what is in its folder."""
    from cohort.report.plots import plot_training

    plots = plot_training(folder)
    records = ("metrics.jsonl", "completions.jsonl", "groups.jsonl", "rows.jsonl", "held_out.jsonl", "config.yaml")
    files = [name for name in records if (folder / name).exists()]
    console.print(f"Trained. In {folder}:", markup=False, highlight=False, soft_wrap=True)
    for line in ("the model", ", ".join([*files, *_results(folder)]), ", ".join(path.name for path in plots)):
        if line:
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
