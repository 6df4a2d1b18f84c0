"""`cohort vllm`: the command of a server as the run needs it."""

from __future__ import annotations

import shlex
import stat
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from cohort.cli.app import app

ROOT = Path(__file__).parents[2]
RUN = str(ROOT / "examples" / "gsm8k.yaml")


def printed(*arguments: str) -> list[list[str]]:
    result = CliRunner().invoke(app, ["vllm", *arguments])
    assert result.exit_code == 0, result.output
    return [shlex.split(line) for line in result.output.splitlines()]


def test_the_command_is_that_of_the_run() -> None:
    (weights,) = printed("org/model")
    assert weights[:5] == ["VLLM_SERVER_DEV_MODE=1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1", "vllm", "serve", "org/model"]
    assert weights[5:9] == ["--host", "localhost", "--port", "8000"]
    assert "processed_logprobs" in weights and '{"tie_word_embeddings": false}' in weights
    (adapter,) = printed("org/model", "--lora-rank", "12", "--url", "http://10.0.0.7:9000")
    assert adapter[5:9] == ["--host", "10.0.0.7", "--port", "9000"]
    assert adapter[adapter.index("--max-lora-rank") + 1] == "16" and "--hf-overrides" not in adapter
    engine = "engine={vllm: {url: [http://a:1, http://b:2], sleep: true}}"
    both = printed(RUN, "finetuning_type=lora", engine, "--options", "--tensor-parallel-size 2")
    assert [command[command.index("--host") + 1] for command in both] == ["a", "b"]
    assert all(command[-3:] == ["--enable-sleep-mode", "--tensor-parallel-size", "2"] for command in both)
    assert all(command[command.index("--max-lora-rank") + 1] == "8" for command in both)


def test_mistakes_are_told() -> None:
    several = "engine={vllm: {url: [http://a:1, http://b:2]}}"
    for arguments, message in (
        (["org/model", "lora_rank=8"], "is read as a model, which has no keys"),
        ([RUN, "--lora-rank", "8"], "says how the model is trained"),
        (["org/model", "--url", "here"], "no address of a server"),
        (["org/model", "--lora-rank", "1000"], "vLLM takes at most 512"),
        (["org/model", "--start", "--executable", "no-such-vllm"], "there is no program 'no-such-vllm'"),
        ([RUN, several, "--start"], "the run has 2 servers"),
        (["absent.yaml"], "absent.yaml"),
    ):
        result = CliRunner().invoke(app, ["vllm", *arguments])
        assert result.exit_code == 2 and message in " ".join(result.output.split()), arguments


def test_it_starts_the_server(tmp_path: Path) -> None:
    program = tmp_path / "vllm"
    program.write_text('#!/bin/sh\necho "$VLLM_SERVER_DEV_MODE $@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    command = [sys.executable, "-m", "cohort", "vllm", "org/model", "--start", "--executable", str(program)]
    started = subprocess.run(command, capture_output=True, text=True, check=True)
    assert started.stdout.startswith("1 serve org/model --host localhost --port 8000 ")
