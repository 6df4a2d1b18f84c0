"""`cohort generate`: one prompt, a file, a chat; a completion's control characters never reach the terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from cohort.cli.app import app
from cohort.config import TrainingConfig
from cohort.evaluation.generate import Generator, TextStream
from cohort.policy.load import make_policy
from cohort.train.output.checkpoint import save_policy
from cohort.types import UserError, printable
from helpers import ROOT, small_model

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def run(*arguments: Any, given: str = "") -> Result:
    return CliRunner().invoke(app, ["generate", *map(str, arguments)], input=given)


def greedy(model: str, text: str, tokens: int) -> str:
    """The text that transformers' generate gives."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    found = AutoModelForCausalLM.from_pretrained(model).generate(ids, do_sample=False, max_new_tokens=tokens)
    return str(tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True))


@pytest.fixture(scope="module")
def loud(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose most likely token, after anything, is the escape character, then `[2J`: it clears a terminal."""
    folder = tmp_path_factory.mktemp("loud")
    tokenizer = AutoTokenizer.from_pretrained(model)
    chain = tokenizer("\x1b[2J")["input_ids"]
    made = small_model("Llama", vocab_size=len(tokenizer), hidden_size=264, max_position_embeddings=2048)
    # Attention and MLP add nothing; the embedding of a token is its own direction, the output layer names what follows.
    for name, parameter in made.named_parameters():
        parameter.data.zero_() if "norm" not in name else parameter.data.fill_(1.0)
    size = len(tokenizer)
    made.model.embed_tokens.weight.data[:, :size] = torch.eye(size)
    made.lm_head.weight.data[chain[0], :size] = 1.0
    for before, after in zip(chain, [*chain[1:], tokenizer.eos_token_id], strict=True):
        made.lm_head.weight.data[:, before] = 0.0
        made.lm_head.weight.data[after, before] = 1.0
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_one_prompt_is_answered_as_transformers_answers_it(model: str) -> None:
    done = run(model, "--prompt", "2+2=", "--plain", "--max-completion-length", 12)
    assert done.exit_code == 0, done.output
    said = greedy(model, "2+2=", 12)
    assert len(said) >= 3
    assert done.stdout == said + "\n"
    assert "[cut after 12 tokens: --max-completion-length]" in done.stderr
    chat = run(model, "--prompt", "2+2=", "--max-completion-length", 12)
    assert chat.stdout == greedy(model, "[user]2+2=[assistant]", 12) + "\n"
    system = run(model, "--prompt", "2+2=", "--system-prompt", "Sum.", "--max-completion-length", 12)
    assert system.stdout == greedy(model, "[system]Sum.[user]2+2=[assistant]", 12) + "\n"


def test_standard_input_is_a_prompt(model: str) -> None:
    given = run(model, "--plain", "--max-completion-length", 6, given="2+2=")
    named = run(model, "--plain", "--max-completion-length", 6, "--prompt", "2+2=")
    assert given.exit_code == 0 and given.stdout == named.stdout
    nothing = run(model, given="\n")
    assert nothing.exit_code == 2 and "there is no prompt" in nothing.stderr


def test_control_characters_are_visible_on_a_terminal_and_exact_elsewhere(loud: str) -> None:
    options = ["generate", loud, "--prompt", "hi", "--plain"]
    done = run(loud, "--prompt", "hi", "--plain")
    assert done.exit_code == 0 and done.stdout == "\x1b[2J\n"
    master, slave = pty.openpty()
    code = "from cohort.cli.app import main; main()"
    subprocess.run([sys.executable, "-c", code, *options], stdout=slave, stderr=slave, env=ENVIRONMENT, check=True)
    os.close(slave)
    shown = os.read(master, 4096)
    os.close(master)
    assert shown.endswith(b"\\x1b[2J\r\n") and b"\x1b[2J" not in shown
    exact = Generator(loud).generate(["hi"], {"temperature": 0.0, "max_tokens": 9})
    assert exact[0][0].text == "\x1b[2J" and not exact[0][0].truncated


def test_a_file_is_answered_in_order(model: str, loud: str, tmp_path: Path) -> None:
    rows = [{"question": f"{i}+{i}=", "answer": str(2 * i)} for i in range(5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "answers.jsonl"
    options = ["--data", tmp_path / "rows.jsonl", "--max-completion-length", 6, "--limit", 4]
    sampled = ["--num-generations", 3, "--temperature", 0.8, "--top-k", 20, "--top-p", 0.9, "--min-p", 0.01]
    done = run(model, *options, *sampled, "--output", output, "--seed", 5)
    assert done.exit_code == 0 and "4 prompts answered" in done.stderr, done.output
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["prompt"] for row in written] == ["0+0=", "1+1=", "2+2=", "3+3="]
    assert [row["answer"] for row in written] == ["0", "2", "4", "6"]
    assert all(len(row["completions"]) == 3 == len(row["truncated"]) for row in written)
    again = tmp_path / "again.jsonl"
    run(model, *options, *sampled, "--output", again, "--seed", 5)
    assert again.read_text() == output.read_text()
    printed = run(loud, *options)
    assert [json.loads(line)["completions"] for line in printed.stdout.splitlines()] == [["\x1b[2J"]] * 4
    assert "\x1b" not in printed.stdout


@pytest.mark.usefixtures("float32")
def test_stop_strings_and_adapters(model: str, tmp_path: Path) -> None:
    said = greedy(model, "2+2=", 12)
    stopped = run(model, "--prompt", "2+2=", "--plain", "--max-completion-length", 12, "--stop", said[1:3])
    assert "cut after" not in stopped.stderr and len(stopped.stdout) < len(said)
    policy = make_policy(model, None, TrainingConfig(finetuning_type="lora", use_cpu=True, bf16=False))
    for name, parameter in policy.peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    save_policy(policy, tmp_path / "adapter")
    policy.peft.merge_and_unload().save_pretrained(tmp_path / "merged")
    policy.tokenizer.save_pretrained(tmp_path / "merged")
    texts = [
        Generator(str(tmp_path / name)).generate(["2+2="], {"temperature": 0.0, "max_tokens": 12})[0][0].text
        for name in ("adapter", "merged")
    ]
    assert texts[0] == texts[1] != said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "a", "--data", "b"], "--prompt and --data both name prompts"),
        (["--prompt", "a", "--output", "b.jsonl"], "--output is for the answers to --data"),
        (["--data", "a.jsonl", "--output", "no/where.jsonl"], "there is no folder no"),
        (["--data", "a.jsonl"], "dataset 'a.jsonl': no such file"),
        (["--prompt", "a", "--num-generations", "2", "--temperature", "0"], "2 greedy completions are all the same"),
        (["--prompt", "a", "--plain", "--system-prompt", "b"], "a plain prompt has no system turn"),
        (["--prompt", "a" * 3000], "and the model 2048 positions: no room for an answer"),
        (["--prompt", "a", "--template", "qwenn"], "unknown template 'qwenn': did you mean 'qwen'"),
    ],
)
def test_mistakes_are_told(model: str, options: list[str], message: str) -> None:
    done = run(model, *options)
    assert done.exit_code == 2 and message in done.stderr, done.output


def chat(model: str, *lines: str) -> tuple[str, int]:
    """(output, exit code) of a chat in a terminal."""
    master, slave = pty.openpty()
    code = "from cohort.cli.app import main; main()"
    command = [sys.executable, "-c", code, "generate", model, "--max-completion-length", "6"]
    process = subprocess.Popen(
        command, stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=ENVIRONMENT, text=True
    )
    os.close(slave)
    os.write(master, "".join(line + "\n" for line in lines).encode() + b"\x04")
    shown, _ = process.communicate(timeout=120)
    os.close(master)
    return shown, process.returncode


def test_a_chat_keeps_the_conversation_until_it_starts_over(model: str) -> None:
    shown, code = chat(model, "hi", "", "more", "/new", "hi")
    assert code == 0, shown
    generator = Generator(model)
    sampling = {"temperature": 0.0, "max_tokens": 6}
    turns = [{"role": "user", "content": "hi"}]
    first = generator.generate([turns], sampling)[0][0].text
    turns += [{"role": "assistant", "content": first}, {"role": "user", "content": "more"}]
    second = generator.generate([turns], sampling)[0][0].text
    answers = [part.strip("\n") for part in shown.split("> ")[1:]]
    said = [answer.split("[cut after")[0].strip("\n") for answer in answers]
    assert [text for text in said if text] == [t.strip("\n") for t in (first, second, first)]


def test_ctrl_c_ends_an_answer_and_not_the_chat(model: str) -> None:
    master, slave = pty.openpty()
    float32 = "import cohort.policy.load as load; load.fast_bf16 = lambda device: False; "
    code = float32 + "from cohort.cli.app import main; main()"
    command = [sys.executable, "-c", code, "generate", model, "--max-completion-length", "1900"]
    process = subprocess.Popen(command, stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT)
    os.close(slave)
    assert process.stdout is not None
    os.write(master, b"hi\n")
    shown = b""
    while len(shown) < 40:  # it is shown while it is sampled
        shown += process.stdout.read1(40)
    process.send_signal(signal.SIGINT)
    os.write(master, b"/exit\n")
    rest, errors = process.communicate(timeout=60)
    os.close(master)
    assert process.returncode == 0, errors
    assert b"Ctrl-C ends an answer" in errors and b"[cut after" not in errors
    said = greedy(model, "[user]hi[assistant]", 300)
    assert shown.decode(errors="ignore").removeprefix("> ")[:10] == said[:10]
    assert rest.endswith(b"\n> ") and len(shown + rest) < 1900


@pytest.mark.slow
def test_an_answer_on_a_terminal_comes_in_pieces_and_is_the_same(model: str) -> None:
    master, slave = pty.openpty()
    code = "from cohort.cli.app import main; main()"
    command = [sys.executable, "-c", code, "generate", model, "--prompt", "2+2=", "--max-completion-length", "30"]
    done = subprocess.run(command, stdout=slave, stderr=subprocess.PIPE, env=ENVIRONMENT, timeout=60)
    os.close(slave)
    shown = os.read(master, 4096).decode()
    os.close(master)
    piped = run(model, "--prompt", "2+2=", "--max-completion-length", 30)
    assert done.returncode == 0 and shown.replace("\r\n", "\n") == printable(piped.stdout)
    assert b"[cut after 30 tokens" in done.stderr


TEXT = "naïve 日本語 👍🏽\n\tend "


def test_pieces_of_a_text_are_whole_characters(model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    pieces: list[str] = []
    stream = TextStream(tokenizer, pieces.append)
    for token in [*tokenizer(TEXT)["input_ids"], tokenizer.eos_token_id]:
        stream.add([token])
    stream.end()
    assert pieces == list(TEXT)
    # An incomplete character at the end, and bytes that never form one, are written in the end.
    pieces.clear()
    stream = TextStream(tokenizer, pieces.append)
    for token in tokenizer("é")["input_ids"][:1] * 4:
        stream.add([token])
    assert pieces == ["\ufffd" * 4]
    stream.add(tokenizer("é")["input_ids"][:1])
    stream.end()
    assert "".join(pieces) == "\ufffd" * 5


def test_pieces_keep_the_blanks_that_a_tokenizer_drops_at_the_start() -> None:
    words = {"<unk>": 0, "▁two": 1, "▁words": 2, "s": 3}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.decoder = decoders.Metaspace()
    pieces: list[str] = []
    stream = TextStream(PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>"), pieces.append)
    for token in (1, 2, 3, 1):
        stream.add([token])
    stream.end()
    assert pieces == ["two", " words", "s", " two"]


@pytest.mark.slow
def test_a_chat_needs_a_template(model: str, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = None
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    shown, code = chat(str(tmp_path), "hi")
    assert code == 2 and "a chat needs a chat template" in shown
    with pytest.raises(UserError, match="no chat template"):
        Generator(str(tmp_path)).generate([[{"role": "user", "content": "hi"}]], {"max_tokens": 2})
