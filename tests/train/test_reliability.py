"""What a run survives, and what it refuses: damaged checkpoints, changed settings, a second run, signals."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from cohort import GRPOConfig, GRPOTrainer, UserError
from cohort.config import METHOD_CONFIGS, RewardConfig, read_run
from cohort.data.chains import build_tokenizer, make_chains
from cohort.texts import without_secrets, without_secrets_inside
from cohort.train.facts import FUTURE, UNSEEN, compare
from cohort.train.output import folders, manifest
from cohort.train.output.lock import locked
from cohort.train.rerun import differences
from cohort.train.run import train_from_config
from cohort.types import Terminated
from helpers import ROOT, StopAfter, digits, numbers, rows_of, saved, small_model

TRAIN = make_chains(2, 12, 4, seed=0)[1]
HELD_OUT = make_chains(2, 12, 4, seed=0)[2]


def trainer(folder: Path, model: Any = None, rows: Any = TRAIN, rewards: Any = digits, **values: Any) -> GRPOTrainer:
    settings = {
        "learning_rate": 1e-2,
        "num_generations": 4,
        "per_device_train_batch_size": 12,
        "max_completion_length": 6,
        "max_steps": 4,
        "save_steps": 1,
        "save_total_limit": None,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "reward_preflight": False,
        **values,
    }
    callbacks, eval_dataset = settings.pop("callbacks", None), settings.pop("eval_dataset", None)
    return GRPOTrainer(
        small_model(vocab_size=22) if model is None else model,
        rewards,
        GRPOConfig(str(folder), **settings),
        rows,
        eval_dataset,
        build_tokenizer(),
        callbacks,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with a checkpoint at each."""
    folder = tmp_path_factory.mktemp("whole")
    trainer(folder).train()
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it that may be damaged."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def model_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_end(ours: Path, theirs: Path) -> None:
    assert numbers(rows_of(ours)) == numbers(rows_of(theirs))
    weights = model_of(theirs)
    assert all(torch.equal(weight, weights[name]) for name, weight in model_of(ours).items())


def flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(content))


def truncate(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(path.stat().st_size))


def delete(path: Path, chance: random.Random) -> None:
    path.unlink()


def empty(path: Path, chance: random.Random) -> None:
    path.write_bytes(b"")


def lengthen(path: Path, chance: random.Random) -> None:
    with open(path, "ab") as file:
        file.write(b"\0")


DAMAGES = (flip, truncate, delete, empty, lengthen)


def test_every_damage_of_every_file_is_named_and_no_other_is(whole: Path, tmp_path: Path) -> None:
    chance, source = random.Random(3), whole / "checkpoint-3"
    names = sorted(path.name for path in source.iterdir())
    assert manifest.damage(source) == "" and manifest.MANIFEST in names
    damaged = 0
    for name in names:
        for damage in DAMAGES:
            for _ in range(12 if damage in (flip, truncate) else 1):
                copy = tmp_path / "copy"
                shutil.copytree(source, copy)
                damage(copy / name, chance)
                told = manifest.damage(copy)
                assert told and (name in told or "manifest" in told), (name, damage.__name__, told)
                shutil.rmtree(copy)
                damaged += 1
    assert damaged >= 200


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_files_of_another_checkpoint_are_refused(run: Path, name: str) -> None:
    shutil.copyfile(run / "checkpoint-2" / name, run / "checkpoint-3" / name)
    with pytest.raises(UserError, match=rf"checkpoint-3 cannot be resumed: {name} .*The newest that is whole is"):
        trainer(run).train(resume_from_checkpoint=str(run / "checkpoint-3"))


def test_the_newest_whole_checkpoint_is_resumed_and_damaged_ones_are_named(
    run: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (run / "checkpoint-999999").mkdir()
    flip(run / "checkpoint-4" / "model.safetensors", random.Random(1))
    (run / "checkpoint-3" / "config.json").unlink()
    trainer(run).train(resume_from_checkpoint=True)
    assert_same_end(run, whole)
    for told in (
        "checkpoint-999999 cannot be resumed: it has no state.json",
        "checkpoint-4 cannot be resumed: model.s",
    ):
        assert told in caplog.text
    assert "checkpoint-3 cannot be resumed: config.json is missing" in caplog.text
    assert sorted(path.name for path in (run / "abandoned-1").glob("checkpoint-*")) == [
        "checkpoint-3",
        "checkpoint-4",
        "checkpoint-999999",
    ]


def test_without_a_whole_checkpoint_nothing_is_trained(run: Path) -> None:
    for path in run.glob("checkpoint-*"):
        truncate(path / "optimizer.safetensors", random.Random(0))
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole: .*optimizer.safetensors has"):
        trainer(run).train(resume_from_checkpoint=True)


def test_weights_of_another_model_are_refused_even_with_a_right_manifest(run: Path) -> None:
    path = run / "checkpoint-4"
    facts, weights = manifest.facts_of(path), load_file(path / "model.safetensors")
    name = next(iter(weights))
    others = {k: v for k, v in weights.items() if k != name}
    for changed, told in (({**weights, "extra": torch.ones(2)}, "extra"), (others, name)):
        save_file(changed, path / "model.safetensors", {"format": "pt"})
        manifest.write(path, facts)
        with pytest.raises(UserError, match=f"has the weights of another model: 1 are missing, .* first {told}"):
            trainer(run).train(resume_from_checkpoint=True)


def other_digits(completions: list[Any], **_: Any) -> list[float]:
    return [len(completion[0]["content"]) / 10 for completion in completions]


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"seed": 1}, "seed: 42 -> 1"),
    ({"num_generations": 6}, "num_generations: 4 -> 6"),
    ({"beta": 0.5}, "beta: 0.04 -> 0.5"),
    ({"temperature": 0.5}, "temperature: 1.0 -> 0.5"),
    ({"loss_type": "dr_grpo"}, "loss_type: "),
    ({"epsilon": 0.3}, "epsilon: 0.2 -> 0.3"),
    ({"max_completion_length": 7}, "max_completion_length: 6 -> 7"),
    ({"num_iterations": 2}, "num_iterations: 1 -> 2"),
    ({"scale_rewards": "none"}, "scale_rewards: "),
    ({"weight_decay": 0.1}, "weight_decay: "),
    ({"adam_beta2": 0.9}, "adam_beta2: "),
    ({"max_grad_norm": 0.1}, "max_grad_norm: "),
    ({"shuffle_dataset": False}, "shuffle_dataset: true -> false"),
    ({"bf16": True}, "bf16: false -> true"),
    ({"finetuning_type": "lora"}, 'finetuning_type: "full" -> "lora"'),
    ({"top_p": 0.9}, "top_p: "),
    ({"stop": ["x"]}, "stop: "),
    ({"mask_truncated_completions": True}, "mask_truncated_completions: "),
    ({"reward_clip": (-1, 1)}, "reward_clip: "),
    ({"rows": TRAIN[::-1]}, "data: "),
    ({"rows": TRAIN[:-1]}, "number of rows: 12 -> 11"),
    ({"rewards": other_digits}, "reward other_digits, code: it is new"),
    ({"rewards": [digits, other_digits]}, "reward other_digits, code: it is new"),
]


@pytest.mark.parametrize(("changes", "told"), CHANGES, ids=[next(iter(changes)) for changes, _ in CHANGES])
def test_a_change_of_what_the_run_is_is_refused(run: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        trainer(run, **changes).train(resume_from_checkpoint=True)
    assert told in str(caught.value) and "resume_changes: allow" in str(caught.value)


def test_another_model_is_refused(run: Path) -> None:
    for model, told in (
        (small_model(vocab_size=22, num_hidden_layers=1), "model's configuration"),
        (small_model(vocab_size=22), "model's weights"),
    ):
        if told == "model's weights":
            next(model.parameters()).data[0, 0] += 0.5
        with pytest.raises(UserError, match=told):
            trainer(run, model).train(resume_from_checkpoint=True)


def test_what_only_changes_the_future_is_told(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    changes = {"max_steps": 5, "learning_rate": 1e-3, "save_steps": 2, "eval_strategy": "steps", "eval_steps": 5}
    trainer(run, **changes, eval_dataset=HELD_OUT).train(resume_from_checkpoint=True)
    for line in (
        "max_steps: 4 -> 5",
        "learning_rate: 0.01 -> 0.001",
        "save_steps: 1.0 -> 2.0",
        "eval_steps: 50.0 -> 5.0",
    ):
        assert f"changed since checkpoint-4: {line}" in caplog.text
    assert rows_of(run)[-1]["step"] == 5


def test_an_allowed_change_is_told_and_made(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer(run, beta=0.5, max_steps=5, resume_changes="allow").train(resume_from_checkpoint=True)
    assert "changed since checkpoint-4, and allowed by resume_changes: beta: 0.04 -> 0.5" in caplog.text


def test_the_lists_of_settings_name_settings() -> None:
    known = {name for config in (*METHOD_CONFIGS.values(), RewardConfig) for name in config.model_fields}
    assert not (FUTURE | UNSEEN) - known and not FUTURE & UNSEEN


def test_a_change_of_every_setting_is_refused_told_or_unseen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = {name for config in (*METHOD_CONFIGS.values(), RewardConfig) for name in config.model_fields}
    assert len(known) > 100
    run: dict[str, Any] = {"method": "grpo", "rewards": {}}
    for key in sorted(known):
        before, now = ({"settings": {key: value}, "run": run, "versions": {}} for value in (1, 2))
        caplog.clear()
        if key in FUTURE or key in UNSEEN:
            compare(tmp_path / "checkpoint-1", before, now, allow=False)
            assert caplog.messages == ([] if key in UNSEEN else [f"changed since checkpoint-1: {key}: 1 -> 2"])
            continue
        with pytest.raises(UserError, match=rf"another run:\n  {key}: 1 -> 2\n"):
            compare(tmp_path / "checkpoint-1", before, now, allow=False)
        compare(tmp_path / "checkpoint-1", before, now, allow=True)
        assert caplog.messages == [f"changed since checkpoint-1, and allowed by resume_changes: {key}: 1 -> 2"]


def test_an_older_checkpoint_begins_a_branch(run: Path, whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = (run / "metrics.jsonl").read_text()
    older = str(run / "checkpoint-1")
    trainer(run, save_total_limit=2, learning_rate=1e-3).train(resume_from_checkpoint=older)
    assert "goes on from step 1: checkpoint-2, checkpoint-3, checkpoint-4, of the branch that is left" in caplog.text
    left = run / "abandoned-1"
    assert sorted(path.name for path in left.iterdir() if path.is_dir()) == [f"checkpoint-{i}" for i in (2, 3, 4)]
    assert (left / "metrics.jsonl").read_text() == before
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
    assert torch.equal(model_of(left / "checkpoint-4")["model.norm.weight"], model_of(whole)["model.norm.weight"])
    ends = [model_of(run / each)["model.norm.weight"] for each in ("checkpoint-4", ".")]
    assert torch.equal(*ends) and not torch.equal(ends[0], model_of(whole)["model.norm.weight"])


def test_a_second_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UserError, match=rf"run that goes on \(process {os.getpid()} on .*, since 20"):
        trainer(tmp_path).train()
    assert not (tmp_path / "metrics.jsonl").exists()
    trainer(tmp_path, max_steps=1).train()


class Signal:
    """Sends signals to this process in a step."""

    def __init__(self, *numbers: int, step: int = 2):
        self.numbers, self.step = numbers, step

    def __call__(self, completions: list[Any], trainer_state: Any, **_: Any) -> list[float]:
        if trainer_state.global_step == self.step - 1:
            for number in self.numbers:
                os.kill(os.getpid(), number)
        return digits(completions)

    __name__ = "digits"


EVALUATED = {"eval_dataset": HELD_OUT, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 0}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_at_the_end_of_the_step_and_nothing_is_lost(
    tmp_path: Path, request: pytest.FixtureRequest, number: int
) -> None:
    before = signal.getsignal(number)
    if before is signal.SIG_IGN:  # as a background job of a shell ignores Ctrl-C, and a run would too
        signal.signal(number, signal.default_int_handler)
        request.addfinalizer(lambda: signal.signal(number, before))
    handler = signal.getsignal(number)
    trainer(tmp_path / "whole", rewards=Signal(), **EVALUATED).train()
    with pytest.raises((Terminated, KeyboardInterrupt)) as caught:
        trainer(tmp_path / "cut", rewards=Signal(number), **EVALUATED).train()
    if isinstance(caught.value, Terminated):
        assert caught.value.code == 128 + number
    assert isinstance(caught.value, KeyboardInterrupt) == (number == signal.SIGINT)
    assert signal.getsignal(number) is handler
    assert [path.name for path in (tmp_path / "cut").glob("checkpoint-*")] == ["checkpoint-2"]
    assert not any("eval/reward" in row for row in rows_of(tmp_path / "cut")), "it does not wait for the evaluation"
    trainer(tmp_path / "cut", rewards=Signal(), **EVALUATED).train(resume_from_checkpoint=True)
    assert_same_end(tmp_path / "cut", tmp_path / "whole")


def test_a_second_signal_ends_the_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Terminated):
        trainer(tmp_path / "same wish", rewards=Signal(signal.SIGTERM, signal.SIGTERM), save_steps=0).train()
    assert [path.name for path in (tmp_path / "same wish").glob("checkpoint-*")] == ["checkpoint-2"]
    monkeypatch.setattr("cohort.train.signals.ONE_WISH", 0.0)
    with pytest.raises(Terminated) as caught:
        trainer(tmp_path, rewards=Signal(signal.SIGHUP, signal.SIGTERM), save_steps=0).train()
    assert caught.value.code == 143
    assert not list(tmp_path.glob("checkpoint-*")) and rows_of(tmp_path)[-1]["step"] == 1


def test_in_another_thread_signals_are_left_alone(tmp_path: Path) -> None:
    thread = threading.Thread(target=lambda: trainer(tmp_path, max_steps=1).train())
    thread.start()
    thread.join()
    assert rows_of(tmp_path)[-1]["step"] == 1


def test_a_checkpoint_by_time_comes_without_save_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cohort.train.saving.SHARE", 0)
    trainer(tmp_path, save_steps=0, save_minutes=1e-6, save_total_limit=2).train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
    trainer(tmp_path / "never", save_steps=0, save_minutes=None).train()
    trainer(tmp_path / "never", save_strategy="no", save_minutes=1e-6).train()
    assert not list((tmp_path / "never").glob("checkpoint-*"))


def test_the_best_checkpoint_is_kept(tmp_path: Path) -> None:
    values = {
        "eval_dataset": HELD_OUT,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "max_steps": 6,
        "save_total_limit": 1,
    }
    trainer(tmp_path, metric_for_best_model="eval_completions/mean_length", **values).train()
    rows = [row for row in rows_of(tmp_path) if "eval/reward" in row]
    best = max(rows, key=lambda row: row["eval/completions/mean_length"])
    record = json.loads((tmp_path / "best.json").read_text())
    assert (
        record["value"] == best["eval/completions/mean_length"]
        and record["checkpoint"] == f"checkpoint-{record['step']}"
    )
    assert record["step"] == best["step"]
    kept = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert kept == {record["checkpoint"], "checkpoint-6"}
    with pytest.raises(UserError, match=r"metric_for_best_model is 'rewrd', and an evaluation has: .*did you mean"):
        trainer(tmp_path / "other", metric_for_best_model="rewrd", **values).train()


def test_what_is_half_deleted_has_another_name_and_is_deleted_later(run: Path) -> None:
    (run / "checkpoint-1").rename(run / "removed-checkpoint-1")
    folders.prune(run, 2)
    assert sorted(path.name for path in run.glob("*checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


def test_an_earlier_versions_checkpoint_is_resumed_and_says_so(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = run / "checkpoint-4"
    (path / manifest.MANIFEST).unlink()
    state = json.loads((path / "state.json").read_text())
    del state["has_manifest"], state["unfinished"]
    (path / "state.json").write_text(json.dumps(state))
    caplog.set_level(logging.WARNING)
    trainer(run, max_steps=5).train(resume_from_checkpoint=True)
    assert "was written by an earlier version, without a manifest" in caplog.text and rows_of(run)[-1]["step"] == 5


def test_stopping_callbacks_still_end_a_run(tmp_path: Path) -> None:
    trainer(tmp_path, callbacks=[StopAfter(2)]).train()
    assert rows_of(tmp_path)[-1]["step"] == 2


def test_runs_that_are_killed_end_as_if_they_were_not() -> None:
    """The short form of `make torture`."""
    done = subprocess.run(
        [sys.executable, "tests/torture.py", "--kills", "2", "grpo", "ppo"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith(" 0 different ends")


def test_the_environment_of_each_start_is_recorded(run: Path) -> None:
    first = json.loads((run / "environment.json").read_text())
    assert first["resumed_from"] is None and first["versions"]["torch"] == torch.__version__
    assert first["machine"]["cores"] and first["threads"] and set(first["git"] or {"commit": 0}) >= {"commit"}
    trainer(run, max_steps=5).train(resume_from_checkpoint=True)
    after = json.loads((run / "environment.json").read_text())
    assert after["time"] == first["time"] and [each["resumed_from"] for each in after["resumed"]] == ["checkpoint-4"]


def test_a_rerun_is_compared_with_the_run(run: Path, whole: Path) -> None:
    assert differences(run, whole) == []
    rows = rows_of(run)
    rows[1]["reward"] += 1
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    weights = model_of(run)
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1
    save_file(weights, run / "model.safetensors", {"format": "pt"})
    metrics, tensors = differences(run, whole)
    assert metrics.startswith("step 2: reward ") and tensors == (
        "model.safetensors: 1 tensors differ, first model.norm.weight"
    )


def test_secrets_are_in_no_file_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {
        "model": saved(tmp_path / "model", small_model(vocab_size=22), build_tokenizer()),
        "model_init_kwargs": {"token": "hf_ABCDEF"},
        "reward_funcs": [{"name": f"{__file__}:keyed", "api_key": "sk-ABCDEF", "max_tokens": 5}],
        "dataset": str(tmp_path / "rows.json"),
        "output_dir": str(tmp_path / "run"),
        "max_steps": 1,
        "save_steps": 1,
        "num_generations": 2,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "max_completion_length": 4,
        "reward_preflight": False,
    }
    (tmp_path / "rows.json").write_text(json.dumps([{"prompt": row["prompt"]} for row in TRAIN[:4]]))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(sys, "argv", ["cohort", "train", "run.yaml", "model_init_kwargs={token: hf_ABCDEF}"])
    train_from_config(*read_run(tmp_path / "run.yaml"))
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        assert b"ABCDEF" not in path.read_bytes(), path
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["reward_funcs"][0]["max_tokens"] == 5


def keyed(completions: list[Any], api_key: str, max_tokens: int, **_: Any) -> list[float]:
    return digits(completions)


def test_records_with_strange_lines_are_resumed_from(run: Path, whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("metrics.jsonl", "completions.jsonl"):
        first, *others = (run / name).read_bytes().split(b"\n")
        strange = [b"a note", b"[1]", b'{"step": "two"}', b"\xff\xfe", b""]
        cut_letter = '{"step": 9, "completion": "ä'.encode()[:-1]
        (run / name).write_bytes(b"\n".join([first, *strange, *others[:-1], cut_letter]))
    (run / "checkpoint-4").rename(run.parent / "gone")
    (run / "partial-4").mkdir()
    trainer(run).train(resume_from_checkpoint=True)
    assert_same_end(run, whole)
    assert "metrics.jsonl: 4 lines are no rows of a run and are left out, first line 2" in caplog.text
    assert (run / "completions.jsonl").read_bytes() == (whole / "completions.jsonl").read_bytes()


class ShortOfMemory:
    """Raises where a pass of a policy has more tokens than there is memory for, as torch does."""

    def __init__(self, policy: Any, most: int):
        self.policy, self.most, self.refused = policy, most, 0
        self.logprobs = policy.logprobs

    def __call__(self, batches: Any, temperature: float) -> Any:
        micros = list(batches)
        if max(sum(part.tokens for part in micro) for micro in micros) > self.most:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return self.logprobs(micros, temperature)


def test_scoring_goes_on_with_smaller_micro_batches_where_memory_runs_out(
    tmp_path: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = trainer(tmp_path, token_budget=120)
    frozen = short.online_reference.frozen
    frozen.logprobs = ShortOfMemory(frozen, 60)
    short.train()
    assert frozen.logprobs.refused and "out of memory while scoring under the reference: going on with" in caplog.text
    for row, expected in zip(rows_of(tmp_path), rows_of(whole), strict=True):
        assert row["kl"] == pytest.approx(expected["kl"], abs=1e-5)


def test_names_of_secrets() -> None:
    settings = {"hub_token": "x", "aws_secret_access_key": "x", "inner": [{"password": 1}], "max_tokens": 5}
    expected = {"hub_token": "...", "aws_secret_access_key": "...", "inner": [{"password": "..."}], "max_tokens": 5}
    assert without_secrets({**settings, "api_key_env": "KEY"}) == {**expected, "api_key_env": "KEY"}
    for argument, shown in (("x={token: a, b: 1}", "x={token: ..., b: 1}"), ("x={max_tokens: 5}", "x={max_tokens: 5}")):
        assert without_secrets_inside(argument) == shown
