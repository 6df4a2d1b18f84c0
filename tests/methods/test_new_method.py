"""docs/new-method.md: its code runs as printed, from Python and from YAML, and computes what it says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

from cohort.cli import app as cli
from cohort.cli.runs import config_of, read_run
from cohort.compare.config import read_comparison
from cohort.compare.runs import run_comparison
from cohort.config import METHOD_CONFIGS, DPOConfig, GRPOConfig, OnlineConfig, PPOConfig, SFTConfig
from cohort.methods import METHODS, Method, imitate, sequence_mean
from cohort.methods.coefficients import by_ratio, clip_with_kl
from cohort.methods.credits import gae_whitened, ones
from cohort.methods.named import find_method
from cohort.train.step import Updater
from cohort.train.trainer import Trainer
from cohort.types import Completion, Group, Row, UserError
from helpers import ROOT, assert_close, gradients, padded_logprobs, perturbed, random_groups, small_policy, tokens_of

PAGE = ROOT / "docs" / "new-method.md"
PLACE = "my_methods.py:raft"
QUICK = {
    "max_steps": 2,
    "num_generations": 4,
    "per_device_train_batch_size": 16,
    "max_completion_length": 8,
    "use_cpu": True,
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that the page's code defines, and the folder that it writes to: with my_methods.py, raft.yaml, a model
    and a file of problems."""
    folder = tmp_path_factory.mktemp("page")
    code = blocks("python")
    assert len(code) == 3
    assert all(sum(bool(line.strip()) for line in block.splitlines()) <= 30 for block in code)
    names: dict[str, Any] = {"__name__": "page", "folder": folder}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in code:
            exec(compile(block, PAGE.name, "exec"), names)
    (folder / "my_methods.py").write_text(code[0])
    (folder / "raft.yaml").write_text(blocks("yaml")[0])
    names["build_model"](names["tokenizer"], 0).save_pretrained(folder / "model")
    names["tokenizer"].save_pretrained(folder / "model")
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in names["problems"]))
    return names


@pytest.fixture
def folder(page: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's folder, as the current one."""
    monkeypatch.chdir(page["folder"])
    return Path(page["folder"])


def cohort(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "160"})


@pytest.mark.parametrize("method", ["raft", "ipo"])
def test_both_methods_train(page: dict[str, Any], method: str) -> None:
    folder = page["folder"] / "output" / method
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["grad_norm"] > 0 for row in rows)
    assert (folder / "model.safetensors").is_file()
    card = (folder / "README.md").read_text()
    assert f"by `{method}` ([{method.upper()}](https://arxiv.org/abs/23" in card
    if method == "ipo":
        assert rows[0]["loss"] == pytest.approx(25, rel=1e-4)  # at the reference h = 0, and 1 / (2 * 0.1) = 5
        assert rows[-1]["margins"] > 0


def test_credit_goes_to_the_best_of_each_group(page: dict[str, Any]) -> None:
    completions = [Completion(torch.tensor([5] * n), torch.zeros(n)) for n in (2, 1, 3)]
    groups = [Group(torch.tensor([4]), completions, Row("?"), rewards) for rewards in ([1, 3, 2], [2, 2, 2])]
    advantages = page["best_of_group"](groups, None)
    assert [[a.tolist() for a in row] for row in advantages] == [[[0, 0], [1], [0, 0, 0]], [[0, 0], [0], [0, 0, 0]]]


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


def test_the_row_trains_from_yaml(folder: Path) -> None:
    """The page's YAML, with a small model, few steps and a folder of its own."""
    changes = {"model": "model", "output_dir": "output/yaml", "bf16": "false", "reward_preflight": "false", **QUICK}
    result = cohort("train", "raft.yaml", *(f"{key}={value}" for key, value in changes.items()))
    assert result.exit_code == 0, result.output
    rows = (folder / "output" / "yaml" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2 and "rewards/digits/mean" in json.loads(rows[0])
    assert yaml.safe_load((folder / "output" / "yaml" / "config.yaml").read_text())["method"] == PLACE
    assert "`raft` ([RAFT](https://arxiv.org/abs/2304.06767))" in (folder / "output" / "yaml" / "README.md").read_text()


def test_other_commands_take_the_row(folder: Path) -> None:
    shown = cohort("data", "show", "raft.yaml", "model=model")
    assert shown.exit_code == 0 and f"method {PLACE}" in shown.output and "completion, sampled" in shown.output
    small = [f"{key}={value}" for key, value in {**QUICK, "max_prompt_length": 16}.items()]
    machine = ["--memory", "8GiB", "--flops", "1e12", "--bandwidth", "1e10"]
    planned = cohort("plan", "raft.yaml", "model=model", *small, *machine)
    assert planned.exit_code == 0 and PLACE in planned.output, planned.output
    table = cohort("methods", PLACE)
    assert table.exit_code == 0 and "RAFT, section 3" in table.output
    assert any(line.split()[:3] == ["raft", "current", "policy"] for line in table.output.splitlines())


def test_a_comparison_takes_the_row(folder: Path) -> None:
    chains = {"operations": 2, "problems": 16}
    small = {"max_steps": 2, "eval_steps": 2, "eval_samples": 4, "final_generations": 2, "use_cpu": True, "bf16": False}
    settings = {
        "task": "chains",
        "task_kwargs": chains,
        "sft": {"max_steps": 2, "per_device_train_batch_size": 4},
        "reward_funcs": "accuracy",
        "methods": {"raft": {"learning_rate": 1e-4}},
        "output_dir": "output/compared",
        **QUICK,
        **small,
    }
    (folder / "compare.yaml").write_text(yaml.safe_dump(settings))
    plan = read_comparison("compare.yaml", [], [PLACE], 1, config_of)
    assert plan.methods == {"raft": PLACE} and plan.configs["raft"].learning_rate == 1e-4
    run_comparison(plan, 1, lambda line: None)
    assert json.loads((folder / "output/compared/seed-42/raft/result.json").read_text())["method"] == "raft"
    with pytest.raises(UserError, match=r"--methods: unknown method 'rft2' .*: did you mean 'rft'"):
        read_comparison("compare.yaml", [], ["rft2"], 1, config_of)


def test_a_row_of_the_table_needs_no_other_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "best", replace(find_method(PLACE), name="best"))
    run, config = read_run(folder / "raft.yaml", ["method=best"])
    assert run.method == "best" and type(config) is OnlineConfig
    assert find_method("best").credit.__name__ == "best_of_group"


def test_built_in_names_lead_to_their_rows_classes() -> None:
    """The map of names that needs no torch says what the rows say."""
    assert {name: METHODS[name].config for name in METHOD_CONFIGS} == dict(METHOD_CONFIGS)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("none.py:raft", "method 'none.py:raft': there is no file .*none.py"),
        ("nowhere.at.all:raft", "method 'nowhere.at.all:raft': there is no module 'nowhere'; is it installed"),
        ("my_methods.py:rft", "'rft' is not there in my_methods.py: did you mean 'raft'"),
        ("my_methods.py:digits", "'digits' is a function, not a Method in my_methods.py: use one of raft"),
        ("gropo", r"raft.yaml: unknown method 'gropo' \(a row of your own .*\): did you mean 'grpo'"),
    ],
)
def test_a_row_that_is_not_there_is_a_mistake(folder: Path, method: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_run(Path("raft.yaml"), [f"method={method}"])


def test_a_mistyped_name_is_told_without_torch() -> None:
    script = (
        "import sys\nfrom cohort.cli.runs import config_of\nfrom cohort.types import UserError\n"
        "try:\n    config_of('gropo')\nexcept UserError as error:\n    print(error, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert "did you mean 'grpo'? False" in done.stdout


def row(**changes: Any) -> Method:
    parts = {"credit": ones, "coefficient": imitate, "weight": sequence_mean, "config": OnlineConfig, **changes}
    return Method("mine", parts.pop("source", "policy"), **parts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"coefficient": clip_with_kl},
            "its coefficient `clip_with_kl` reads the keys of GRPOConfig, and config is OnlineConfig",
        ),
        ({"sees": by_ratio}, "its sees `by_ratio` reads the keys of GRPOConfig"),
        ({"config": SFTConfig}, "its source 'policy' reads the keys of OnlineConfig, and config is SFTConfig"),
        ({"critic": True}, "its critic reads the keys of PPOConfig"),
        (
            {"credit": METHODS["rft"].credit},
            "reads the keys of RFTConfig or OnlineRFTConfig, and config is OnlineConfig",
        ),
    ],
)
def test_a_row_whose_functions_read_other_settings_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        row(**changes)


def test_a_row_with_the_settings_of_its_functions_is_made() -> None:
    assert row(coefficient=clip_with_kl, config=GRPOConfig).paper is None
    assert row(credit=gae_whitened, config=PPOConfig, critic=True).critic
    assert row(credit=lambda groups, config: []).name == "mine"


def test_the_trainer_refuses_another_configuration() -> None:
    with pytest.raises(UserError, match="method mine takes a GRPOConfig, and args is a OnlineConfig"):
        Trainer("model", "accuracy", OnlineConfig(), method=row(config=GRPOConfig))
