"""Whether the Hugging Face hub can be reached, asked once, before its libraries wait for it in many attempts."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

log = logging.getLogger("cohort")

SECONDS = 3.0
"""Time limit of the question."""


@contextmanager
def cache_without_hub(name: str) -> Iterator[None]:
    """Around the loading of what is named: where it is no path and the hub cannot be reached, only the cache is read.
    Afterwards the hub is asked as before: a push at the end of a run may find it back."""
    if Path(name).exists() or not why_no_hub():
        yield
        return
    # transformers reads the constant of huggingface_hub, datasets a copy of its own, peft the variable.
    modules = [_constants(), *filter(None, [sys.modules.get("datasets.config")])]
    constants, variable = [module.HF_HUB_OFFLINE for module in modules], os.environ.get("HF_HUB_OFFLINE")
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"
        yield
    finally:
        for module, value in zip(modules, constants, strict=True):
            module.HF_HUB_OFFLINE = value
        os.environ.pop("HF_HUB_OFFLINE")
        if variable is not None:
            os.environ["HF_HUB_OFFLINE"] = variable


@cache
def why_no_hub() -> str:
    """Why nothing is downloaded, for a message: the setting, or an endpoint that does not answer. Empty if it does."""
    constants = _constants()
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    endpoint = urlsplit(constants.ENDPOINT)
    if endpoint.scheme in getproxies():
        return ""
    try:
        port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
        socket.create_connection((endpoint.hostname or "", port), SECONDS).close()
    except OSError as error:
        log.warning(
            "the hub %s cannot be reached (%s): only what is in the cache can be loaded", endpoint.geturl(), error
        )
        return f"the hub {endpoint.geturl()} cannot be reached"
    return ""


def not_loaded(name: str, error: Exception) -> str:
    """Why what is named could not be loaded: one line of the error, or that there is no hub to load it from."""
    if not Path(name).exists() and (why := why_no_hub()):
        return f"it is no folder or file here, it is not in the cache, and {why}. Check the connection, or give a path"
    return " ".join(str(error).split())[:300]


def _constants() -> Any:
    from huggingface_hub import constants

    return constants
