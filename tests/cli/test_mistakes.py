"""Mistakes of users: each is told by `cohort train` in a few lines with place and remedy, and without a traceback."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import SafetensorError
from typer.testing import CliRunner

from cohort import progress
from cohort.cli.app import app
from cohort.config import hub
from cohort.policy.load import load_model
from cohort.train.monitors import slow_rewards
from cohort.train.output import checkpoint
from cohort.train.output.record import Recorder
from cohort.types import UserError
from helpers import byte_tokenizer

REWARDS = """
import time


def split_chat(completions, **_):
    return [float(len(c.split())) for c in completions]


def text_as_chat(completions, **_):
    return [float(len(c[0]["content"])) for c in completions]


def raises(completions, prompts, **_):
    def inner(text):
        return 1 / (len(text) - len(text))
    return [inner(str(c)) for c in completions]


def short(completions, **_):
    return [1.0]


def slow(completions, **_):
    time.sleep(0.1)
    return [float(len(str(c))) for c in completions]


def good(completions, **_):
    return [float(len(str(c))) for c in completions]
"""


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(progress, "displays", [])
    log = logging.getLogger("cohort")
    handlers, level = log.handlers, log.level
    yield
    log.handlers, log.level = handlers, level
    hub.why_no_hub.cache_clear()


class Run:
    def __init__(self, folder: Path, model: str):
        self.folder, self.model = folder, model
        (folder / "my.py").write_text(REWARDS)
        chat = [{"prompt": [{"role": "user", "content": f"say {i}"}]} for i in range(4)]
        (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chat))

    def __call__(self, reward: Any = "good", **changes: Any) -> tuple[int, str]:
        """(exit code, all that was printed)."""
        settings = {
            "method": "grpo",
            "model": self.model,
            "dataset": str(self.folder / "chat.jsonl"),
            "reward_funcs": [f"{self.folder}/my.py:{reward}" if isinstance(reward, str) else reward],
            "output_dir": str(self.folder / "run"),
            "use_cpu": True,
            "bf16": False,
            "num_generations": 2,
            "per_device_train_batch_size": 2,
            "max_completion_length": 4,
            "max_steps": 4,
            "reward_clip": None,
            **changes,
        }
        (self.folder / "run.yaml").write_text(yaml.safe_dump(settings))
        result = CliRunner().invoke(app, ["train", str(self.folder / "run.yaml")])
        assert "Traceback" not in result.output
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output


@pytest.fixture
def run(tmp_path: Path, model: str) -> Run:
    return Run(tmp_path, model)


@pytest.mark.parametrize("processes", [0, 1])
def test_a_reward_that_takes_messages_for_text(run: Run, processes: int) -> None:
    code, text = run({"name": f"{run.folder}/my.py:split_chat", "processes": processes})
    assert code == 2
    assert "error: reward function 'split_chat' raised AttributeError: 'list' object has no attribute 'split'" in text
    assert "completions are chat messages here: the text of one is completion[0]['content']" in text
    assert "at row 0 of " in text and "prompt: 'say " in text and "completion: '" in text
    assert f'File "{run.folder}/my.py", line 6, in split_chat' in text and "cohort/rewards" not in text


def test_a_reward_that_takes_text_for_messages(run: Run) -> None:
    (run.folder / "chat.jsonl").write_text('{"prompt": "say"}\n')
    code, text = run("text_as_chat", apply_chat_template=False)
    assert code == 2 and "completions are plain text here, since the prompts are" in text


def test_a_reward_that_raises_shows_its_own_frames(run: Run) -> None:
    code, text = run("raises")
    assert code == 2 and "raised ZeroDivisionError: division by zero\n  at row 0 of " in text
    assert text.count('my.py", line ') >= 2 and text.count("File ") == text.count('my.py", line ')


def test_a_reward_that_is_not_there(run: Run) -> None:
    code, text = run("god")
    assert code == 2 and "'god' is not there in" in text and "did you mean 'good'?" in text
    assert "It has: split_chat, text_as_chat, raises, short, slow, good" in text


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("x = [1,\n\ndef f(completions):\n    return 1\n", ["SyntaxError: '[' was never closed", "line 1", "x = [1,"]),
        ("import os\nimport not_installed\n", ["No module named 'not_installed'", "line 2", "import not_installed"]),
        ("\nvalue = {}['key']\n", ["KeyError: 'key'", "line 2", "value = {}['key']"]),
    ],
)
def test_a_rewards_file_that_cannot_be_imported(run: Run, source: str, told: list[str]) -> None:
    (run.folder / "my.py").write_text(source)
    code, text = run("f")
    assert code == 2 and text.startswith(f"error: reward '{run.folder}/my.py:f': ")
    for part in told:
        assert part in text
    assert text.count("File ") == 1


def test_scores_that_are_too_few(run: Run) -> None:
    code, text = run("short")
    assert code == 2 and "'short' returned 1 scores for " in text and "return one for each" in text


def test_a_slow_reward_is_told_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_rewards, "SECONDS", 0.05)
    monkeypatch.setattr(slow_rewards, "SHARE", 0.05)
    code, text = run("slow", max_steps=5)
    assert code == 0 and text.count("reward slow took 0.1 s of each ") == 1
    assert f"{{name: {run.folder}/my.py:slow, processes: 4}} calls it in worker processes" in text


def test_a_quick_reward_is_not_told(run: Run) -> None:
    code, text = run("good")
    assert code == 0 and " took " not in text


@pytest.mark.parametrize("place", ["chat.jsonl/run", "/proc/none"])
def test_a_folder_that_cannot_be_made(run: Run, place: str) -> None:
    code, text = run(output_dir=str(run.folder / place))
    assert code == 2 and "error: output_dir " in text and "cannot be made: " in text


def test_a_hub_that_cannot_be_reached(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    hub.why_no_hub.cache_clear()
    code, text = run(model="owner/no-such-model")
    assert code == 2 and "the hub http://127.0.0.1:9 cannot be reached. Check the connection, or give a path" in text


def test_only_a_load_is_offline_where_the_hub_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    hub.why_no_hub.cache_clear()

    def offline() -> tuple[Any, ...]:
        return constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE, os.environ.get("HF_HUB_OFFLINE")

    with hub.cache_without_hub("owner/model"):
        assert offline() == (True, True, "1")
        with hub.cache_without_hub("owner/its-base"):
            assert offline() == (True, True, "1")
        assert offline() == (True, True, "1")
    with hub.cache_without_hub("."):
        assert offline() == (False, False, None)
    with pytest.raises(UserError, match="cannot be reached"):
        load_model("owner/no-such-model")
    assert offline() == (False, False, None)


def test_conversations_without_a_chat_template(run: Run) -> None:

    byte_tokenizer(template=False).save_pretrained(run.folder / "plain")
    for name in ("config.json", "model.safetensors"):
        (run.folder / "plain" / name).write_bytes((Path(run.model) / name).read_bytes())
    code, text = run(model=str(run.folder / "plain"))
    assert code == 2 and "the prompts are chat messages, but the tokenizer has no chat template" in text


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("Io(Os: No space left on device)")]
)
@pytest.mark.parametrize("model_only", [False, True])
def test_a_full_disk_leaves_no_half_checkpoint(
    run: Run, error: Exception, model_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = checkpoint.save_policy, 0

    def full(policy: Any, folder: Path) -> None:
        nonlocal calls
        calls += 1
        save(policy, folder)
        if calls == 2:
            raise error

    monkeypatch.setattr(checkpoint, "save_policy", full)
    code, text = run(save_steps=1, save_only_model=model_only)
    assert code == 2 and f"error: no space left on the disk of {run.folder}/run (" in text and " MiB free): " in text
    assert [path.name for path in (run.folder / "run").glob("*-*")] == ["checkpoint-1"]


def test_a_full_disk_while_metrics_are_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Recorder, "metrics", full)
    code, text = run()
    assert code == 2 and "no space left on the disk of" in text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"eval_strategy": "steps"}, "eval_strategy: steps, and there is no held-out data: give eval_dataset"),
        ({"eval_on_start": True}, "eval_on_start, and there is no held-out data"),
        ({"report_to": "tensorbord"}, "'tensorbord', which is no tracker: did you mean 'tensorboard'?"),
        ({"report_to": ["wanb"]}, "'wanb', which is no tracker: did you mean 'wandb'?"),
        ({"loging_steps": 1}, "unknown key `loging_steps`: did you mean `logging_steps`?"),
    ],
)
def test_settings_that_would_do_nothing(
    run: Run, changes: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("a model is loaded before the mistake is told")

    monkeypatch.setattr("cohort.train.sharded.make_policy", loaded)
    code, text = run(**changes)
    assert code == 2 and told in text


def test_in_python_the_message_says_it_too(model: str, tmp_path: Path) -> None:
    from cohort import GRPOConfig, GRPOTrainer, UserError

    def split_chat(completions: Any, **_: Any) -> list[float]:
        return [float(len(c.split())) for c in completions]

    config = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, max_steps=1, num_generations=2,
                        per_device_train_batch_size=2, max_completion_length=4)  # fmt: skip
    rows = [{"prompt": [{"role": "user", "content": "say"}]}]
    with pytest.raises(UserError, match=r"completion\[0\]\['content'\]") as caught:
        GRPOTrainer(model, split_chat, config, rows).train()
    assert "test_mistakes.py" in str(caught.value) and "cohort/rewards" not in str(caught.value)
