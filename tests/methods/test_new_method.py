"""docs/new-method.md: its code runs as printed, from Python and from YAML, and computes what it says."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch

from cohort.config import DPOConfig
from cohort.train.step import Updater
from cohort.types import Completion, Group, Row
from helpers import ROOT, assert_close, gradients, padded_logprobs, perturbed, random_groups, small_policy, tokens_of

PAGE = ROOT / "docs" / "new-method.md"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that the page's code defines, and the folder that it writes to."""
    folder = tmp_path_factory.mktemp("page")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    assert all(sum(bool(line.strip()) for line in block.splitlines()) <= 30 for block in blocks)
    names: dict[str, Any] = {"__name__": "page", "folder": folder}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in blocks:
            exec(compile(block, PAGE.name, "exec"), names)
    return names


@pytest.mark.parametrize("method", ["raft", "ipo"])
def test_both_methods_train(page: dict[str, Any], method: str) -> None:
    folder = page["folder"] / "output" / method
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["grad_norm"] > 0 for row in rows)
    assert (folder / "model.safetensors").is_file()
    if method == "ipo":
        assert rows[0]["loss"] == pytest.approx(25, rel=1e-4)  # at the reference h = 0, and 1 / (2 * 0.1) = 5
        assert rows[-1]["margins"] > 0


def test_credit_goes_to_the_best_of_each_group(page: dict[str, Any]) -> None:
    completions = [Completion(torch.tensor([5] * n), torch.zeros(n)) for n in (2, 1, 3)]
    groups = [Group(torch.tensor([4]), completions, Row("?"), rewards) for rewards in ([1, 3, 2], [2, 2, 2])]
    found = page["best_of_group"](groups, None)
    assert [[a.tolist() for a in row] for row in found] == [[[0, 0], [1], [0, 0, 0]], [[0, 0], [0], [0, 0, 0]]]


def test_the_squared_loss_has_autograds_gradient(page: dict[str, Any]) -> None:
    config = DPOConfig(beta=0.3, bf16=False, use_cpu=True)
    policy, groups = small_policy(), random_groups([(5, [4, 7]), (9, [3, 8])])
    for group, reference in zip(groups, perturbed(policy, groups, 0.5, 2), strict=True):
        group.reference_logprobs = reference
        group.advantages = [torch.full((len(c.ids),), s) for s, c in zip((1.0, -1.0), group.completions, strict=True)]
    metrics = Updater(policy, page["ipo"], config).gradient(groups, tokens_of(groups))
    ours = gradients(policy.model)
    policy.model.zero_grad()
    gaps = [
        [(x - y).sum() for x, y in zip(padded_logprobs(policy.model, g), g.reference_logprobs or [], strict=True)]
        for g in groups
    ]
    loss = torch.stack([(chosen - rejected - 1 / 0.6) ** 2 for chosen, rejected in gaps]).mean()
    loss.backward()
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert_close(ours, gradients(policy.model), 1e-5)
