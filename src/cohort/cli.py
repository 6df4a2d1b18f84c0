"""The command line: parses, calls, prints, exits. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from cohort.config import read_run
from cohort.types import UserError

app = typer.Typer(
    name="cohort",
    help="Teach a language model by comparing its own answers with each other (GRPO).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML configuration, such as examples/gsm8k.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, over the file's.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint in output_dir.")] = False,
) -> None:
    """Train a model as a configuration says."""
    run, settings = read_run(config, overrides)
    if resume:
        settings = settings.model_copy(update={"resume_from_checkpoint": True})
    from cohort.report.live import LiveDisplay
    from cohort.report.plots import plot_training
    from cohort.train.run import train_from_config

    with LiveDisplay(f"{run.method}: {run.model}", console) as display:
        state = train_from_config(run, settings, callbacks=[display])
    plots = plot_training(settings.output_dir)
    console.print(f"{state.global_step} steps done. In {settings.output_dir}:")
    console.print("  the model, metrics.jsonl, " + ", ".join(path.name for path in plots))


@app.command(name="eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="Model name or path.")],
    data: Annotated[str, typer.Option(help="Data set: a file, a directory, a hub name or reasoning_gym:TASK.")],
    split: Annotated[str, typer.Option(help="Split of a hub data set.")] = "test",
    reward: Annotated[str, typer.Option(help="Reward functions; the first decides what is correct.")] = "accuracy",
    samples: Annotated[int, typer.Option(min=1, help="Completions of each problem.")] = 1,
    k: Annotated[str, typer.Option(help="Values of k for pass@k and maj@k: 1,4,8.")] = "1",
    temperature: Annotated[float | None, typer.Option(min=0, help="Default: 0 for one sample, else 1.")] = None,
    max_completion_length: Annotated[int, typer.Option(min=1)] = 1024,
    limit: Annotated[int | None, typer.Option(min=1, help="Problems to take.")] = None,
    columns: Annotated[str | None, typer.Option(help="prompt=question,answer=solution")] = None,
    system_prompt: Annotated[str | None, typer.Option(help="Makes plain prompts conversational.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write everything, completions too, as JSON.")] = None,
    seed: int = 42,
) -> None:
    """Accuracy with an interval, pass@k and maj@k of a model on a data set."""
    from cohort.report.intervals import wilson
    from cohort.report.tables import evaluation_table
    from cohort.train.run import evaluate_model

    result = evaluate_model(
        model,
        data,
        split=split,
        rewards=[name.strip() for name in reward.split(",") if name.strip()],
        samples=samples,
        ks=_numbers(k),
        temperature=temperature,
        max_completion_length=max_completion_length,
        limit=limit,
        columns=_mapping(columns),
        system_prompt=system_prompt,
        seed=seed,
    )
    # Samples of one problem are not independent: the interval counts problems.
    result["interval"] = wilson(result["accuracy"] * result["problems"], result["problems"])
    console.print(evaluation_table(model, result))
    if output is not None:
        output.write_text(json.dumps(result, ensure_ascii=False, indent=1), encoding="utf-8")
        console.print(f"written to {output}")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--k {text!r}: give whole numbers such as 1,4,8") from None


def _mapping(text: str | None) -> dict[str, str]:
    pairs = [part.partition("=") for part in (text or "").split(",") if part]
    if any(not equals for _, equals, _ in pairs):
        raise UserError(f"--columns {text!r}: write ours=theirs, such as prompt=question")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Another task, teacher and model.")] = 0,
    output: Annotated[Path, typer.Option(help="Where to write.")] = Path("output/grpo_metrics"),
) -> None:
    """Teach a small model arithmetic before your eyes: SFT on a flawed teacher, then GRPO."""
    from cohort.demo import run_demo

    run_demo(seed, output, console)


@app.command()
def plot(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Draw the plots of a run folder again."""
    from cohort.report.plots import plot_training

    for path in plot_training(run):
        console.print(str(path))


@app.command()
def doctor() -> None:
    """What this machine has: versions, device, precision."""
    import platform
    from importlib.metadata import version

    import torch

    from cohort.policy.load import fast_bf16, find_device

    device = find_device()
    lines: dict[str, Any] = {
        "python": platform.python_version(),
        **{name: version(name) for name in ("cohort", "torch", "transformers", "peft", "datasets")},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "fast bfloat16": "yes" if fast_bf16(device) else "no: float32 is used",
    }
    for name, value in lines.items():
        console.print(f"{name:14} {value}")


def main() -> None:
    """The entry point: a user's mistake is one message and exit code 2, a bug of ours a traceback."""
    handler = RichHandler(console=console, show_path=False, show_time=False, show_level=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("cohort").setLevel(logging.INFO)
    try:
        app()
    except UserError as error:
        Console(stderr=True).print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        Console(stderr=True).print("\nstopped. `cohort train CONFIG --resume` goes on from the newest checkpoint.")
        sys.exit(130)


if __name__ == "__main__":
    main()
