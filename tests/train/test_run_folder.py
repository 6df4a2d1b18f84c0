"""docs/run-folder.md names the keys that runs write, and its lines of pandas run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cohort import GRPOConfig, GRPOProcessConfig, Trainer
from cohort.data.chains import build_tokenizer, make_chains
from helpers import ROOT, digits, small_model

_, TRAIN, HELD_OUT = make_chains(2, 40, 8, seed=0)
PAGE = (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")
SECTIONS = {part.split("\n", 1)[0]: part for part in PAGE.split("\n## ")[1:]}
OBJECTS = ("columns", "components", "spans", "extra", "rewards")
"""Keys whose own keys are names of the user's."""


def noted(completions: list[Any], log_extra: Any, **_: Any) -> list[float]:
    log_extra("span", [[0, 1] for _ in completions])
    return digits(completions)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs, in which between them every key occurs."""
    outcome, process = (tmp_path_factory.mktemp(name) for name in ("outcome", "process"))
    small = {
        "num_generations": 2, "per_device_train_batch_size": 8, "max_completion_length": 6, "max_steps": 2,
        "use_cpu": True, "bf16": False, "reward_preflight": False, "learning_rate": 1e-2,
    }  # fmt: skip
    evaluated = {"eval_strategy": "steps", "eval_steps": 1, "dynamic_sampling": True, "max_prompt_length": 12}
    long = {**TRAIN[0], "prompt": [{"role": "user", "content": "1+" * 20}]}
    for method, rewards, config, rows in (
        ("grpo", [noted, "format"], GRPOConfig(str(outcome), **small, **evaluated), [long, *TRAIN]),
        ("grpo_process", "chain_steps", GRPOProcessConfig(str(process), **small), TRAIN),
    ):
        model, tokenizer = small_model(vocab_size=22), build_tokenizer()
        Trainer(model, rewards, config, rows, HELD_OUT, processing_class=tokenizer, method=method).train()
    return [outcome, process]


def written(value: Any, inside: str = "") -> set[str]:
    """The keys of an object, and of the lists of objects in it with a period between."""
    keys: set[str] = set()
    for key, item in value.items():
        name = inside + ("REWARD" if key in ("noted", "format", "chain_steps") else key)
        keys.add(name)
        if isinstance(item, list) and key not in ("prompt", "completion"):
            keys |= {inner for each in item if isinstance(each, dict) for inner in written(each, f"{name}.")}
    return keys


def described(section: str) -> set[str]:
    cells = [line.split("|")[1] for line in SECTIONS[section].split("\n") if line.startswith("| `")]
    return {key for cell in cells for key in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.parametrize("name", [name for name in SECTIONS if name.endswith(".jsonl") and "metrics" not in name])
def test_the_page_has_the_keys_that_runs_write(folders: list[Path], name: str) -> None:
    paths = [folder / name for folder in folders if (folder / name).exists()]
    texts = [line for path in paths for line in path.read_text(encoding="utf-8").split("\n") if line]
    assert texts and all(line.startswith('{"step": ') for line in texts)
    assert {key for line in texts for key in written(json.loads(line))} == described(name)


@pytest.mark.parametrize("name", ["settings.json", "ended.json"])
def test_the_page_has_the_keys_of_single_objects(folders: list[Path], name: str) -> None:
    keys = set(json.loads((folders[0] / name).read_text(encoding="utf-8")))
    fields = set(GRPOConfig.model_fields) if name == "settings.json" else set()
    assert fields <= keys and keys - fields == described(name)


def test_the_page_has_every_file(folders: list[Path]) -> None:
    files = {path.name for folder in folders for path in folder.iterdir() if path.name.endswith((".jsonl", "ed.json"))}
    assert files | {"settings.json"} == set(SECTIONS)
    assert set(re.findall(r"^\| \[`([^`]+)`\]", PAGE, re.MULTILINE)) == set(SECTIONS)


def test_the_lines_of_pandas_run(folders: list[Path]) -> None:
    pd = pytest.importorskip("pandas")
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == len(SECTIONS) + 2
    known: dict[str, Any] = {"pd": pd}
    for block in blocks:
        code = block.replace("output/run", str(folders[0]))
        if ".plot(" not in code:  # which needs matplotlib
            exec(code, known)
            assert len([line for line in code.split("\n") if line]) <= 2
    assert known["ended"]["by"] == "max_steps" and len(known["siblings"]) == 2
    assert 0 <= known["solved"].min() <= known["solved"].max() <= 1 and len(known["both"])
