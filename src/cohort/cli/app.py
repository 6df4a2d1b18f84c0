"""The command line: parses, calls, prints, exits. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import gc
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from cohort.cli import compare as cli_compare
from cohort.cli import data as cli_data
from cohort.cli import evaluate as cli_eval
from cohort.cli import model as cli_model
from cohort.cli import plan as cli_plan
from cohort.cli import reward as cli_reward
from cohort.cli import reward_models as cli_reward_models
from cohort.cli.console import log_console
from cohort.types import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from cohort.config import TrainingConfig


class _Group(TyperGroup):
    """Tells a user's mistake in one message, without a traceback; anything else stays loud."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("\nstopped", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    name="cohort",
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's help would cost a third of the start
    add_completion=False,
)
cli_reward.app.command()(cli_reward_models.label)
cli_reward.app.command(name="eval")(cli_reward_models.evaluate)
app.add_typer(cli_reward.app, name="reward")
app.command()(cli_compare.compare)
app.command(name="eval")(cli_eval.evaluate)
app.command()(cli_model.generate)
app.command()(cli_model.export)
app.command()(cli_plan.plan)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML configuration, such as examples/gsm8k.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Over the file's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in output_dir.")] = False,
) -> None:
    """Train a model as a configuration says."""
    from cohort.cli.runs import read_run

    changes = [*(overrides or []), *(["resume_from_checkpoint=true"] if resume else [])]
    run, settings = read_run(config, changes)

    from cohort.data.configured import check_names

    check_names(run, settings)
    console = log_console()

    from cohort.report.live import LiveDisplay
    from cohort.train.run import train_from_config

    command = ["cohort", "train", str(config), *(overrides or []), "--resume"]
    with _resumable(settings, command), LiveDisplay(f"{run.method}: {run.model}", console) as display:
        train_from_config(run, settings, callbacks=[display])
    _say_where(Path(settings.output_dir), console)


@contextmanager
def _resumable(settings: TrainingConfig, command: list[str]) -> Iterator[None]:
    """On Ctrl-C, say how the training can go on."""
    try:
        yield
    except KeyboardInterrupt:
        folder = Path(settings.output_dir)
        if any(folder.glob("checkpoint-*")):
            typer.echo(f"\nstopped. To go on from the newest checkpoint: {shlex.join(command)}", err=True)
        elif (folder / "samples.jsonl").exists():
            typer.echo(f"\nstopped. To go on with the samples there are: {shlex.join(command)}", err=True)
        else:
            typer.echo(
                f"\nstopped. {folder} has no checkpoint to go on from: save_steps=50 would save some",
                err=True,
            )
        raise typer.Exit(130) from None


def _say_where(folder: Path, console: Console) -> None:
    from cohort.report.plots import plot_training

    plots = plot_training(folder)
    files = [name for name in ("metrics.jsonl", "completions.jsonl", "config.yaml") if (folder / name).exists()]
    console.print(f"Trained. In {folder}:", markup=False, highlight=False, soft_wrap=True)
    for line in ("the model", ", ".join(files), ", ".join(path.name for path in plots)):
        if line:
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Another task, teacher and model.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("output/grpo_metrics"),
) -> None:
    """Watch a small model learn arithmetic: SFT on a flawed teacher, then GRPO on its own answers."""
    console = log_console()

    from cohort.demo import run_demo

    run_demo(seed=seed, output=output, console=console)


@app.command()
def plot(run: Annotated[Path, typer.Argument(help="A run's output_dir.")]) -> None:
    """Draw the plots of a run again, during it or after it."""
    from cohort.report.plots import plot_training

    written = plot_training(run)
    if not written:
        raise UserError(f"{run}: its metrics.jsonl has nothing to plot yet")
    for path in written:
        typer.echo(str(path))


@app.command()
def methods(
    rows: Annotated[list[str] | None, typer.Argument(help="Rows of your own: path/to/file.py:row.")] = None,
) -> None:
    """Print the table of methods: where completions come from, and how rewards become gradients."""
    from cohort.methods.named import find_method
    from cohort.methods.table import METHODS
    from cohort.report.methods import methods_tables

    console = log_console()
    for table in methods_tables([*METHODS.values(), *map(find_method, rows or [])]):
        console.print(table)


@app.command()
def doctor() -> None:
    """Say what this machine has: versions, device, threads, precision, layers of the sandbox."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from cohort.policy.load import fast_bf16, find_device

    typer.echo(f"{'python':<16}{platform.python_version()}")
    for name in ("cohort-rl", "torch", "transformers", "peft", "datasets", "math-verify", "reasoning-gym"):
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "not installed"
        typer.echo(f"{name:<16}{found}")
    device = find_device()
    typer.echo(f"{'device':<16}{torch.cuda.get_device_name() if device.type == 'cuda' else device.type}")
    typer.echo(f"{'threads':<16}{torch.get_num_threads()}")
    typer.echo(f"{'fast bfloat16':<16}{'yes' if fast_bf16(device) else 'no: float32 is used'}")

    from cohort.rewards.sandbox.layers import INSTALL, find_layers

    layers = find_layers()
    for layer, found in layers.described():
        typer.echo(f"{layer:<16}{found}")
    typer.echo(f"{'unit_tests':<16}{'sandboxed' if layers.safe else f'no sandbox. {INSTALL}'}")


app.add_typer(cli_data.app, name="data")


@app.callback()
def _commands() -> None:
    """Teach a language model by comparing its own answers with each other (GRPO)."""


def _keep_only(name: str) -> None:
    """Where a command is named, leave out the others: making them all ready takes longer than to tell a mistake."""
    commands = [info for info in app.registered_commands if (info.name or info.callback.__name__) == name]
    if commands:
        app.registered_commands, app.registered_groups = commands, []


def main() -> None:
    """The entry point: exits with 0, with 2 for a user's mistake, with 130 when interrupted."""
    for stream in (sys.stdout, sys.stderr):
        # A completion may hold characters that this terminal's encoding lacks.
        stream.reconfigure(errors="replace")
    # What other packages will change some day is nothing that who runs a command can act on.
    warnings.simplefilter("ignore", FutureWarning)
    _keep_only(sys.argv[1] if len(sys.argv) > 1 else "")
    try:
        app()
    finally:
        # Else the interpreter looks through all that was imported once more: a fifth of the time to tell a mistake.
        gc.freeze()


if __name__ == "__main__":
    main()
