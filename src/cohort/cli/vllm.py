"""`cohort vllm`: the command that starts a server of vLLM as a run needs it, printed or started."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from cohort.cli.console import echo
from cohort.cli.options import Overrides
from cohort.types import UserError

ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
"""Without these, weights cannot be sent to the server."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that --max-lora-rank takes."""
INSTALL = "python -m venv vllm-env && vllm-env/bin/pip install vllm"


def vllm(
    run: Annotated[str, typer.Argument(help="YAML configuration of the run, or a model's name or path.")],
    overrides: Overrides = None,
    lora_rank: Annotated[
        int | None,
        typer.Option(min=1, help="With a model: the run trains an adapter of this rank. Default: all weights."),
    ] = None,
    url: Annotated[str, typer.Option(help="Address of the server. Default: the configuration's.")] = "",
    start: Annotated[bool, typer.Option("--start", help="Start the server instead of printing the command.")] = False,
    executable: Annotated[str, typer.Option(help="The program vllm of its own environment.")] = "vllm",
    options: Annotated[str, typer.Option(help='More of its options, such as "--tensor-parallel-size 2".')] = "",
) -> None:
    """Print the command of a vLLM server for a run, or start it (docs/scaling.md)."""
    model, rank, sleep, urls = run, lora_rank, False, [url or "http://localhost:8000"]
    if run.endswith((".yaml", ".yml", ".json")) or Path(run).is_file():
        from cohort.cli.runs import read_run
        from cohort.config import SampledConfig, VLLMEngineConfig

        if lora_rank is not None:
            raise UserError(f"{run} says how the model is trained: leave --lora-rank out, or change the file")
        described, settings = read_run(Path(run), overrides or [])
        engine = settings.engine.vllm if isinstance(settings, SampledConfig) else None
        engine = engine or VLLMEngineConfig()
        model = described.model
        rank = settings.lora_rank if settings.finetuning_type == "lora" else None
        sleep, urls = engine.sleep, [url] if url else engine.url
    elif overrides:
        raise UserError(f"{run!r} is read as a model, which has no keys: {overrides[0]}. Give a YAML configuration")
    more = [*(["--enable-sleep-mode"] if sleep else []), *shlex.split(options)]
    commands = [[executable, *serve_arguments(model, *_place(each), rank), *more] for each in urls]
    if not start:
        for command in commands:
            echo(" ".join([*(f"{name}={value}" for name, value in ENVIRONMENT.items()), shlex.join(command)]))
        return
    if len(commands) > 1:
        raise UserError(f"the run has {len(commands)} servers: start each with --url, the first with --url {urls[0]}")
    if shutil.which(executable) is None:
        raise UserError(f"there is no program {executable!r}: vLLM needs an environment of its own. {INSTALL}, then "
                        "--executable vllm-env/bin/vllm")  # fmt: skip
    os.execvpe(executable, commands[0], {**os.environ, **ENVIRONMENT})


def _place(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    if not parts.hostname:
        raise UserError(f"{url!r} is no address of a server: write http://localhost:8000")
    return parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def serve_arguments(model: str, host: str, port: int, lora_rank: int | None) -> list[str]:
    """The arguments of the program vllm, for a run that trains an adapter of this rank, or all weights."""
    arguments = ["serve", model, "--host", host, "--port", str(port), "--logprobs-mode", "processed_logprobs",
                 "--generation-config", "vllm"]  # fmt: skip
    if lora_rank is None:
        # Where one matrix is both embedding and output layer, a reload changes the embedding alone.
        return [*arguments, "--hf-overrides", '{"tie_word_embeddings": false}']
    fitting = next((rank for rank in RANKS if rank >= lora_rank), None)
    if fitting is None:
        raise UserError(f"lora_rank is {lora_rank}, and vLLM takes at most {RANKS[-1]}")
    # Two at once: batches that are sampled ahead, and an evaluation.
    return [*arguments, "--enable-lora", "--max-lora-rank", str(fitting), "--max-loras", "2", "--max-cpu-loras", "8"]
