"""`cohort watch`: the page of a run, live."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Annotated

import typer

from cohort.cli.console import echo
from cohort.types import UserError


def watch(
    run: Annotated[Path, typer.Argument(help="A run's output_dir, while it goes on or after it.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0: a free one.")] = 0,
) -> None:
    """Serve the page of a run to this machine's browser, and send it what the run writes. Ctrl-C ends it."""
    from cohort.report.page.read import run_folders
    from cohort.report.page.watch import Watch

    folders = run_folders(run)
    if folders != [run]:
        raise UserError(f"{run} holds a comparison's runs: name one of them, such as {folders[0]}")
    try:
        server = Watch(run, port)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise UserError(f"--port {port}: {error.strerror}; without --port a free one is taken") from None
    echo(f"{server.address}  (Ctrl-C ends this page, not the run)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        echo("")
    finally:
        server.server_close()
