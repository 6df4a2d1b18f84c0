"""Lines of transformers, peft and torch that mean nothing to a user here: the one list of them. All others are
printed."""

from __future__ import annotations

import logging
import os
import re
import warnings

WARNINGS = (
    # peft 0.21 calls the first; the second is the name that every transformers from 5.20 on has.
    (FutureWarning, "`is_gradient_checkpointing` is deprecated"),
    (FutureWarning, "`gradient_checkpointing_enable` is deprecated"),
    # Of tqdm in a notebook without ipywidgets: its bars are switched off.
    (Warning, "IProgress not found"),
)
"""(category, how the message starts)"""
LOG_LINES = {
    # What is too long is cut or refused here, and told: the whole text is tokenised to know its length.
    "transformers.tokenization_utils_base": ("Token indices sequence length is longer than",),
}
"""Logger -> how the message starts."""
ABOVE_KINETO = "6"
"""Kineto's level of errors: below it, it prints two lines for each trace."""


def quiet() -> None:
    """Keep these lines from being printed, and transformers' progress bars, which would break a live display. Called
    before a model is loaded or made."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    ignore_warnings()
    for name in LOG_LINES:
        logging.getLogger(name).addFilter(_means_something)  # a filter is added once
    os.environ.setdefault("KINETO_LOG_LEVEL", ABOVE_KINETO)  # read before the first trace


def ignore_warnings() -> None:
    """The part of `quiet` that holds before the libraries are imported."""
    for category, start in WARNINGS:
        warnings.filterwarnings("ignore", re.escape(start), category)


def _means_something(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(LOG_LINES[record.name])
