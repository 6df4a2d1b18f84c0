"""Model cards, and pushing them with their model to a hub: a server on this machine that takes the real calls."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from typer.testing import CliRunner

from cohort import DistillConfig, GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer, UserError
from cohort.cli.app import app
from cohort.data.chains import build_tokenizer
from cohort.train.output.card import Card, code, command_line, fenced, plain, settings_of
from helpers import small_model


class Hub(ThreadingHTTPServer):
    """What the hub was asked: repositories made, files of each commit. `refuses`: a status for everything."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.made: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.paths: list[str] = []
        self.tokens: set[str | None] = set()
        self.refuses = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        hub = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.paths.append(self.path)
        hub.tokens.add(self.headers.get("Authorization"))
        if hub.refuses:
            return self._answer({"error": "no"}, hub.refuses)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            hub.made.append(asked)
            owner = asked["organization"] or "somebody"
            return self._answer({"url": f"{hub.url}/{owner}/{asked['name']}", "id": "1"})
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        if "/commit/" in self.path:
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    hub.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            return self._answer({"commitUrl": f"{hub.url}/somebody/m/commit/1", "commitOid": "1"})
        return self._answer({})

    def do_GET(self) -> None:
        self._answer({"error": "not found"}, 404)

    do_HEAD = do_GET

    def _answer(self, body: dict[str, Any], status: int = 200) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub's address and a token, as HF_ENDPOINT and HF_TOKEN set them."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody is logged in."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))


ROWS = [{"prompt": f"{i}+{i}=", "completion": str(2 * i % 10)} for i in range(4)]


def sft(folder: Path, **settings: Any) -> SFTTrainer:
    args = SFTConfig(str(folder), max_steps=2, bf16=False, use_cpu=True, save_steps=1, **settings)
    return SFTTrainer(small_model(), args, ROWS, ROWS[:2], processing_class=build_tokenizer())


def front(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def test_a_training_pushes_its_model_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    sft(tmp_path / "run", push_to_hub=True, hub_model_id="me/sums", hub_private_repo=True).train()
    assert hub.made == [{"name": "sums", "organization": "me", "visibility": "private"}]
    assert sorted(hub.files) == [
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert hub.files["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
    assert hub.tokens == {"Bearer hf_secret"}
    assert any(path == "/api/models/me/sums/commit/main" for path in hub.paths)
    assert b"hf_secret" not in b"".join(hub.files.values())


@pytest.mark.parametrize("adapter", [False, True])
def test_a_reward_model_has_a_card_of_its_own_and_is_pushed(hub: Hub, tmp_path: Path, adapter: bool) -> None:
    small_model().save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    kind = {"finetuning_type": "lora"} if adapter else {}
    args = RewardConfig(str(tmp_path / "judge"), max_steps=1, bf16=False, use_cpu=True, push_to_hub=True, **kind)
    rows = [{"prompt": "1+1=", "completion": str(i), "label": float(i == 2)} for i in range(4)]
    RewardTrainer(str(tmp_path / "base"), args, rows).train()
    text = hub.files["README.md"].decode()
    assert front(text)["pipeline_tag"] == "text-classification" and "reward_model" in front(text)["tags"]
    assert "cohort reward eval judge" in text and "vllm" not in text and "by `reward_model`" in text
    assert ("adapter_model.safetensors" if adapter else "model.safetensors") in hub.files


def test_without_a_name_the_folders_is_taken(hub: Hub, tmp_path: Path) -> None:
    trainer = sft(tmp_path / "my-run")
    trainer.train()
    assert not hub.paths
    assert trainer.push_to_hub("first") == f"{hub.url}/somebody/my-run"
    assert hub.made == [{"name": "my-run", "organization": None}]


def test_export_pushes(hub: Hub, tmp_path: Path) -> None:
    sft(tmp_path / "run").train()
    arguments = ["export", str(tmp_path / "run"), "--output", str(tmp_path / "copy"), "--push", "me/copy", "--private"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert f"pushed to {hub.url}/me/copy" in done.stdout
    assert hub.files["README.md"] == (tmp_path / "run" / "README.md").read_bytes()


@pytest.mark.parametrize(
    ("status", "advice"), [(403, "Is it yours? Else run `hf auth login`"), (500, "500 Internal Server Error")]
)
def test_a_hub_that_refuses_leaves_the_model_and_says_how_to_go_on(
    hub: Hub, status: int, advice: str, tmp_path: Path
) -> None:
    hub.refuses = status
    with pytest.raises(UserError, match="could not be pushed to 'me/sums'") as error:
        sft(tmp_path / "run", push_to_hub=True, hub_model_id="me/sums").train()
    assert advice in str(error.value)
    assert f"`cohort export {tmp_path / 'run'} --push me/sums` tries again" in str(error.value)
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_a_hub_that_is_not_there(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = sft(tmp_path / "run")
    trainer.train()
    with pytest.raises(UserError, match=r"'a/b/c' is no name of a hub repository"):
        SFTTrainer.push_to_hub(_named(trainer, "a/b/c"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"could not be pushed to 'me/x': .*[Cc]onnect"):
        _named(trainer, "me/x").push_to_hub()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"could not be pushed to 'me/x': .*offline mode"):
        trainer.push_to_hub()


def _named(trainer: SFTTrainer, name: str) -> SFTTrainer:
    trainer.args = trainer.args.model_copy(update={"hub_model_id": name})
    return trainer


def test_a_missing_token_is_told_before_anything_is_done(stranger: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pushing to the hub needs a token: run `hf auth login`, or set HF_TOKEN"):
        sft(tmp_path / "run", push_to_hub=True)
    small_model().save_pretrained(tmp_path / "model")
    done = CliRunner().invoke(app, ["export", str(tmp_path / "model"), "--push", "me/m"])
    assert done.exit_code == 2 and "needs a token" in done.stderr
    assert not (tmp_path / "model-export").exists()


def test_a_card_says_what_was_done(tmp_path: Path) -> None:
    def letters(completions: list[Any], **_: Any) -> list[float]:
        return [float(len(set(str(c)))) for c in completions]

    small_model().save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in ROWS))
    args = GRPOConfig(
        str(tmp_path / "run"), max_steps=2, num_generations=2, per_device_train_batch_size=4, learning_rate=1e-3,
        max_completion_length=4, bf16=False, use_cpu=True, finetuning_type="lora", reward_preflight=False,
        eval_strategy="steps", eval_on_start=True, model_init_kwargs={"token": "hf_secret"},
    )  # fmt: skip
    data = str(tmp_path / "sums.jsonl")
    GRPOTrainer(str(tmp_path / "base"), letters, args, data, data).train()
    text = (tmp_path / "run" / "README.md").read_text()
    assert front(text) == {"library_name": "peft", "pipeline_tag": "text-generation", "tags": ["cohort", "grpo"]}
    assert "\n# run\n" in text and "by `grpo` ([DeepSeekMath](https://arxiv.org/abs/2402.03300))" in text
    assert "\n- Base model: `base`\n- Data: `sums.jsonl`; 4 rows\n- Rewards: `letters`\n" in text
    settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert settings["learning_rate"] == 1e-3 and settings["finetuning_type"] == "lora"
    assert settings["model_init_kwargs"] == {"token": "..."} and "output_dir" not in settings
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    before, after = (f"{row['eval/letters']:.4g}" for row in lines if "eval/letters" in row and row["step"] in (0, 2))
    assert "| metric | step 0 | step 2 |\n" in text and f"| eval/letters | {before} | {after} |\n" in text
    assert str(tmp_path) not in text and "hf_secret" not in text


def test_text_of_users_cannot_break_out_of_a_card() -> None:
    evil = "x`|\n---\n# <script>alert(1)</script> [a](b) ```"
    card = Card(evil, "grpo", evil, [evil], 1, [evil], {"stop": ["```\n# out"]}, [], adapter=False, command=evil)
    text = card.text()
    assert front(text)["tags"] == ["cohort", "grpo"]
    assert [line for line in text.splitlines() if line.startswith("# ")] == [f"# {plain(evil)}"]
    fence = text.split("````yaml\n")[1].split("\n````")[0]
    assert yaml.safe_load(fence) == {"stop": ["```\n# out"]}
    assert "\n- Base model: ````" in text and "\n- Rewards: ````" in text
    outside = re.sub(r"^(`{3,})\w*\n.*?\n\1$", "", text.replace(code(evil), ""), flags=re.DOTALL | re.MULTILINE)
    assert "<script>" not in outside and len(outside) < len(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a", "`a`"), ("a`b", "``a`b``"), ("`a", "`` `a ``"), ("a\nb", "`a b`"), ("a```b", "````a```b````")],
)
def test_code_spans(text: str, expected: str) -> None:
    assert code(text) == expected


def test_fences_and_plain_text() -> None:
    assert fenced("a\n", "yaml") == "```yaml\na\n```" and fenced("````") == "`````\n````\n`````"
    assert plain("a*b <i> [x](y)\n# z") == "a\\*b \\<i\\> \\[x\\](y) \\# z"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["/x/bin/cohort", "train", "a b.yaml", "lr=1"], "cohort train 'a b.yaml' lr=1"),
        (["/lib/cohort/__main__.py", "train", "a.yaml"], "cohort train a.yaml"),
        (["/home/me/run.py", "--hf_token", "hf_x", "--n", "2"], "python run.py --hf_token ... --n 2"),
        (["cohort", "train", "a.yaml", "hub_token=hf_x"], "cohort train a.yaml hub_token=..."),
        (["/usr/lib/ipykernel_launcher", "-f", "k.json"], ""),
    ],
)
def test_the_command_without_secrets(arguments: list[str], expected: str) -> None:
    assert command_line(arguments) == expected


def test_settings_are_those_that_were_changed() -> None:
    config = GRPOConfig("out", beta=0.0, learning_rate=1e-6, push_to_hub=False)
    assert settings_of(config) == {"beta": 0.0}
    for teacher, shown in (("/home/me/models/big", "big"), ("Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-3B")):
        assert settings_of(DistillConfig(teacher=teacher)) == {"teacher": shown}


def test_a_readme_of_ones_own_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "README.md").write_text("# My project\n")
    trainer = sft(tmp_path)
    trainer.train()
    assert (tmp_path / "README.md").read_text() == "# My project\n"
    assert any("is not a model card of ours" in message for message in caplog.messages)
    (tmp_path / "README.md").unlink()
    trainer.save_model()
    first = (tmp_path / "README.md").read_text()
    trainer.save_model()  # ours is written again
    assert (tmp_path / "README.md").read_text() == first and "| eval/loss" not in first
