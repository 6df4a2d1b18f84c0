"""`cohort export`: writes a trained model as a directory for transformers, vLLM and the hub, and uploads it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cohort.cli.console import log_console
from cohort.cli.options import AllowPickle, TrustRemoteCode
from cohort.types import UserError


def export(
    run: Annotated[str, typer.Argument(help="A run's output_dir, or a model directory.")],
    merge: Annotated[bool, typer.Option("--merge", help="Merge an adapter into its model's weights.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder to write. Default: RUN-export beside the run.")] = None,
    push: Annotated[str | None, typer.Option(help="Upload the result to the hub as NAME or OWNER/NAME.")] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: make the repository private.")] = False,
    dtype: Annotated[
        str, typer.Option(help="Type of merged weights: auto (the base model's), float32, bfloat16 or float16.")
    ] = "auto",
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Write a trained model as a directory that transformers, vLLM and the hub can load."""
    console = log_console()
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise UserError(f"--dtype {dtype!r}: it is one of auto, float32, bfloat16, float16")
    if private and push is None:
        raise UserError("--private needs --push")

    from cohort.train.output import hub
    from cohort.train.output.export import export as write

    if push is not None:
        hub.require_token()
    options = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    target = write(run, output, merge=merge, dtype=dtype, **options)
    lines = [f"exported to {target}"]
    if push is not None:
        address = hub.push(target, push, private=private or None)
        lines.append(f"pushed to {address}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
