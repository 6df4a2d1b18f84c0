"""Reward models in training: they learn, stop, resume and load back as rewards; bad data is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cohort import GRPOConfig, GRPOTrainer, ProcessRewardConfig, RewardConfig, RewardTrainer
from cohort.cli.app import app
from cohort.config import read_run
from cohort.data.configured import configured_rows
from cohort.data.rows import load_rows
from cohort.rewards import Rewards, resolve
from cohort.rewards.steps import by_separator
from cohort.train.reward_models.model import make_reward_model
from cohort.train.reward_models.updater import RewardUpdater
from cohort.train.run_rewards import make_rewards
from cohort.train.trainer import Trainer
from helpers import QUICK_REWARD, ROOT, byte_tokenizer, classifier, digit_rows, pair_rows, step_rows, token_classifier


@pytest.fixture(scope="module")
def trunks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An encoder's and a causal trunk's directory, without heads."""
    found = {}
    for kind in ("Bert", "Qwen2"):
        folder = tmp_path_factory.mktemp(kind)
        classifier(kind).base_model.save_pretrained(folder)
        byte_tokenizer(bert=kind == "Bert", template=False).save_pretrained(folder)
        found[kind] = str(folder)
    return found


CASES = [
    ("Bert", "linear", "full", "labels"),
    ("Bert", "mlp", "lora", "labels"),
    ("Qwen2", "linear", "lora", "pairs"),
    ("Qwen2", "mlp", "full", "pairs"),
]


@pytest.mark.parametrize(("kind", "head", "finetuning", "data"), CASES)
def test_it_learns_and_loads_back_as_a_reward(
    trunks: dict[str, str], tmp_path: Path, kind: str, head: str, finetuning: str, data: str
) -> None:
    rate = 1e-2 if finetuning == "lora" else 3e-3
    settings = {**QUICK_REWARD, "learning_rate": rate, "head": head, "finetuning_type": finetuning}
    config = RewardConfig(str(tmp_path / "rm"), **settings)
    rows, held_out = (
        (digit_rows(160), digit_rows(60, 1)) if data == "labels" else (pair_rows(160)[:120], pair_rows(160)[120:])
    )
    trainer = RewardTrainer(trunks[kind], config, rows, held_out)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_accuracy"] > 0.85 and after["eval_loss"] < 0.6 * before["eval_loss"]
    name, function = resolve(str(tmp_path / "rm"))
    prompts, completions = ["3>"] * 10, [str(d) for d in range(10)]
    scores = function(prompts, completions)
    scorer = trainer.reward_model.scorer
    encoded = [scorer.encode(*each) for each in zip(prompts, completions, strict=True)]
    assert scores == pytest.approx([row[0] for row in scorer.score(encoded, 3)], abs=1e-4)
    assert name == "rm" and min(scores[6:]) > max(scores[:3])
    # it goes on from there, its head is not made anew
    again = RewardTrainer(str(tmp_path / "rm"), RewardConfig(str(tmp_path / "on"), **QUICK_REWARD), rows, held_out)
    assert again.evaluate()["eval_loss"] == pytest.approx(after["eval_loss"], abs=1e-4)


@pytest.mark.parametrize(("kind", "head", "finetuning"), [("Bert", "linear", "lora"), ("Qwen2", "mlp", "full")])
def test_a_process_model_learns_and_scores_step_ends(
    trunks: dict[str, str], tmp_path: Path, kind: str, head: str, finetuning: str
) -> None:
    rate = 1e-2 if finetuning == "lora" else 3e-3
    settings = {
        **QUICK_REWARD,
        "learning_rate": rate,
        "num_train_epochs": 10,
        "head": head,
        "finetuning_type": finetuning,
    }
    trainer = RewardTrainer(
        trunks[kind], ProcessRewardConfig(str(tmp_path / "prm"), **settings), step_rows(160), step_rows(40, 1)
    )
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] > 0.85
    rewards = Rewards([str(tmp_path / "prm"), "repetition"], split=by_separator("\n"))
    found = rewards(["go>"] * 2, ["9\n1", "0"], [[1]] * 2, {})
    assert [len(row) for row in found.step_rewards] == [2, 1]
    good, bad = found.step_rewards[0]
    assert 1 >= good > 0.7 > 0.3 > bad >= 0
    logits = Rewards([{"model": str(tmp_path / "prm"), "probability": False}], split=by_separator("\n"))
    logit = logits(["go>"], ["9\n1"], [[1]], {}).step_rewards[0][0]
    assert good == pytest.approx(float(torch.sigmoid(torch.tensor(logit))), abs=1e-6)


@pytest.mark.parametrize("kind", ["preference", "bce", "mse"])
@pytest.mark.parametrize("learns", [True, False])
def test_a_model_like_chance_is_told_then_and_where_it_is_used(
    tmp_path: Path, tokenizer: Any, kind: str, learns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {**QUICK_REWARD, "loss_type": kind, **({} if learns else {"learning_rate": 0.0})}
    config = RewardConfig(str(tmp_path / "rm"), **settings)
    rows = pair_rows(240) if kind == "preference" else digit_rows(240, 2)
    RewardTrainer(classifier("Qwen2"), config, rows[:200], rows[200:], processing_class=tokenizer).train()
    noted = json.loads((tmp_path / "rm" / "config.json").read_text())["held_out"]
    assert noted["samples"] == len({row["prompt"] for row in rows[200:]})
    assert {"bce": "majority", "mse": "correlation", "preference": "accuracy"}[kind] in noted
    if kind == "bce":
        share = sum(row["label"] for row in rows[200:]) / 40
        assert noted["majority"] == pytest.approx(max(share, 1 - share))
    assert ("the reward model is no better than chance on its 40 held-out examples" in caplog.text) is not learns
    caplog.clear()
    make_rewards(str(tmp_path / "rm"), GRPOConfig())
    assert ("reward model rm was no better than chance on the held-out data of its" in caplog.text) is not learns


def test_a_process_model_rewards_the_steps_of_grpo(tmp_path: Path, tokenizer: Any) -> None:
    """Together with a rule; its advantage moves the policy."""
    from conftest import small_model

    model = token_classifier("Qwen2")
    model.save_pretrained(tmp_path / "prm")
    byte_tokenizer(template=False).save_pretrained(tmp_path / "prm")
    from cohort import GRPOProcessConfig

    config = GRPOProcessConfig(
        str(tmp_path / "run"),
        num_generations=4,
        per_device_train_batch_size=8,
        max_completion_length=12,
        max_steps=1,
        step_separator="+",
        use_cpu=True,
        bf16=False,
    )
    rows = [{"prompt": "7+5=", "answer": "2"}, {"prompt": "1+1=", "answer": "2"}]
    policy = small_model(vocab_size=len(tokenizer))
    rewards = [str(tmp_path / "prm"), "accuracy"]
    trainer = Trainer(policy, rewards, config, rows, processing_class=tokenizer, method="grpo_process")
    trainer.train()
    state = trainer.state
    assert state.log_history[0]["rewards/prm/std"] > 0 and state.log_history[0]["grad_norm"] > 0


def test_several_models_and_a_rule_in_grpo(trunks: dict[str, str], tmp_path: Path, tokenizer: Any) -> None:
    from conftest import small_model

    for i, kind in enumerate(("Bert", "Qwen2")):
        config = RewardConfig(
            str(tmp_path / f"rm{i}"), **{**QUICK_REWARD, "head": ("mlp", "linear")[i], "max_steps": 1}
        )
        RewardTrainer(trunks[kind], config, digit_rows(20)).train()
    settings = {"num_generations": 4, "per_device_train_batch_size": 4, "max_completion_length": 8, "max_steps": 1}
    trainer = GRPOTrainer(
        small_model(vocab_size=len(tokenizer)),
        [str(tmp_path / "rm0"), {"model": str(tmp_path / "rm1"), "weight": 0.5}, "accuracy"],
        GRPOConfig(str(tmp_path / "run"), reward_preflight=False, use_cpu=True, bf16=False, **settings),
        [{"prompt": "7+5=", "answer": "2"}],
        processing_class=tokenizer,
    )
    trainer.train()
    row = trainer.state.log_history[0]
    total = row["rewards/rm0/mean"] + 0.5 * row["rewards/rm1/mean"] + row["rewards/accuracy/mean"]
    assert row["reward"] == pytest.approx(total, abs=1e-6) and row["rm0/truncated"] == 0


@pytest.mark.parametrize("finetuning", ["full", "lora"])
def test_a_resumed_run_is_the_undisturbed_one(trunks: dict[str, str], tmp_path: Path, finetuning: str) -> None:
    """With dropout, so that the random state counts, and early stopping, whose memory is metrics.jsonl."""

    def trainer(folder: str, **more: Any) -> RewardTrainer:
        settings = {
            **QUICK_REWARD,
            "disable_dropout": False,
            "finetuning_type": finetuning,
            "head": "mlp",
            "max_steps": 8,
        }
        config = RewardConfig(
            str(tmp_path / folder), save_steps=3, eval_steps=2, early_stopping_patience=9, **{**settings, **more}
        )
        return RewardTrainer(trunks["Bert"], config, digit_rows(60), digit_rows(20, 1))

    whole = trainer("whole")
    whole.train()

    class Stop:
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step == 5

    cut = trainer("cut")
    cut.add_callback(Stop())
    cut.train()
    resumed = trainer("cut")
    resumed.train(resume_from_checkpoint=True)
    for a, b in zip(whole.reward_model.parameters, resumed.reward_model.parameters, strict=True):
        assert torch.equal(a, b)

    def metrics(folder: str) -> list[dict[str, Any]]:
        rows = map(json.loads, (tmp_path / folder / "metrics.jsonl").read_text().splitlines())
        return [{key: value for key, value in row.items() if "second" not in key} for row in rows]

    assert metrics("whole") == metrics("cut") and len(metrics("whole")) == 8 + 4


def test_early_stopping_keeps_the_model_of_the_lowest_held_out_loss(trunks: dict[str, str], tmp_path: Path) -> None:
    """Held-out labels are the opposite: every update but the first makes it worse."""
    opposite = [{**row, "label": not row["label"]} for row in digit_rows(40, 1)]
    config = RewardConfig(
        str(tmp_path), eval_steps=1, eval_on_start=True, early_stopping_patience=3, **{**QUICK_REWARD, "max_steps": 40}
    )
    trainer = RewardTrainer(trunks["Bert"], config, digit_rows(200), opposite)
    trainer.train()
    state = trainer.state
    losses = [row["eval_loss"] for row in state.log_history if "eval_loss" in row]
    assert state.global_step < 40 and losses.index(min(losses)) == len(losses) - 4
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-5)
    assert not (tmp_path / "best").exists()
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["held_out"]["loss"] == pytest.approx(min(losses), abs=1e-5)
    assert saved["problem_type"] == "multi_label_classification" and saved["held_out"].keys() >= {"mean", "std"}


def test_fit_is_the_core_that_other_runs_call(trunks: dict[str, str]) -> None:
    """Twice the same from the same state, which the optimiser's and the weights' tensors are."""
    config = RewardConfig(**QUICK_REWARD)
    torch.manual_seed(0)
    updater = RewardUpdater(make_reward_model(trunks["Bert"], None, config), config, "bce")
    examples, held_out = updater.examples(load_rows(digit_rows(64))), updater.examples(load_rows(digit_rows(32, 1)))
    start = updater.measure(held_out)["loss"]
    arguments = {"epochs": 2, "batch_size": 16, "learning_rate": 3e-3, "seed": 5}
    updater.fit(examples, **arguments)
    weights = [parameter.detach().clone() for parameter in updater.model.parameters]
    state = {"state": dict(updater.optimizer.state_dict()["state"])}
    moments = {i: {name: x.clone() for name, x in values.items()} for i, values in state["state"].items()}
    first = updater.fit(examples, **arguments), updater.measure(held_out)
    for parameter, weight in zip(updater.model.parameters, weights, strict=True):
        parameter.data.copy_(weight)
    groups = updater.optimizer.state_dict()["param_groups"]
    updater.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    assert (updater.fit(examples, **arguments), updater.measure(held_out)) == first
    assert first[1]["loss"] < start and first[0]["loss"] < 0.5
    assert updater.model.version == 3 * 8


def test_from_a_file_with_prompts_held_out_whole(
    trunks: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = digit_rows(60)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"method": "reward_model", "model": trunks["Bert"], "dataset": "rows.jsonl", "val_size": 0.2, "seed": 3}
    quick = {"max_steps": 3, "use_cpu": True, "output_dir": "out"}
    Path("rm.yaml").write_text(json.dumps({**settings, **quick}))
    refused = CliRunner().invoke(app, ["train", "rm.yaml", "reward_funcs=accuracy"])
    assert refused.exit_code == 2 and "reward_funcs has no effect for method reward_model" in refused.stderr
    run, config = read_run("rm.yaml")
    assert isinstance(config, RewardConfig) and config.learning_rate == 2e-5
    trained, held_out = configured_rows(run, config.seed, by_prompt=True)
    assert held_out and {row.prompt for row in held_out}.isdisjoint({row.prompt for row in trained})
    assert len(trained) + len(held_out) == 60 and len({row.prompt for row in held_out}) == 2
    result = CliRunner().invoke(app, ["train", "rm.yaml"])
    assert result.exit_code == 0, result.output
    assert {"loss.png", "held_out_accuracy.png", "model.safetensors", "config.yaml"} <= set(
        map(str, Path("out").iterdir())
    ) | {path.name for path in Path("out").iterdir()}


def test_the_example_runs(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A causal model with a chat template; what it is made of scores nothing yet."""
    rows = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in digit_rows(40)]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    changes = [f"model={model}", "max_steps=4", "use_cpu=true", "per_device_train_batch_size=4"]
    example = ROOT / "examples" / "reward_model.yaml"
    result = CliRunner().invoke(app, ["train", str(example), *changes])
    assert result.exit_code == 0, result.output
    saved = Path("output/rm")
    assert (saved / "adapter_config.json").is_file() and (saved / "checkpoint-4").is_dir()
    assert len(resolve("output/rm")[1]([rows[0]["prompt"]], ["5"])) == 1


def test_llama_factorys_stage_rm(trunks: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    rows = [{"instruction": "Say", "input": row["prompt"], **row} for row in pair_rows(20)]
    for row in rows:
        del row["prompt"]
    Path("data/cmp.json").write_text(json.dumps(rows))
    Path("data/dataset_info.json").write_text(json.dumps({"cmp": {"file_name": "cmp.json", "ranking": True}}))
    Path("rm.yaml").write_text(
        f"model_name_or_path: {trunks['Qwen2']}\nstage: rm\ndo_train: true\nfinetuning_type: lora\ndataset: cmp\n"
        "template: default\ncutoff_len: 64\nlearning_rate: 1.0e-4\nmax_steps: 2\nval_size: 0.2\noutput_dir: out\n"
        "early_stopping_steps: 4\n"
    )
    run, config = read_run("rm.yaml")
    assert run.method == "reward_model" and isinstance(config, RewardConfig)
    assert (config.max_length, config.early_stopping_patience, config.truncation) == (64, 4, "cut")
    result = CliRunner().invoke(app, ["train", "rm.yaml", "use_cpu=true"])
    assert result.exit_code == 0, result.output
    assert json.loads(Path("out/config.json").read_text())["architectures"] == ["Qwen2ForSequenceClassification"]
    assert len(resolve("out")[1](["Say"], ["5"])) == 1
