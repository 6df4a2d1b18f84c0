"""The named chat templates: what each writes without a system turn, and what becomes of thoughts."""

from __future__ import annotations

from typing import Any

import pytest

from cohort.data.chains import build_tokenizer
from cohort.data.chat_templates import TEMPLATES, use_template
from cohort.data.templates import encode_demonstration, encode_demonstrations
from cohort.types import Row, UserError
from helpers import ROOT

ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
IM = ("<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n", "A<|im_end|>\n")
GEMMA = ("<b><start_of_turn>user\nQ<end_of_turn>\n<start_of_turn>model\n", "A<end_of_turn>\n")
EMPTY = "<think>\n\n</think>\n\n"
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
WRITTEN = {
    "default": ("Human: Q<e>\nAssistant:", "A<e>\n"),
    "empty": ("Q", "A"),
    "alpaca": (f"{ALPACA}\n\n### Instruction:\nQ\n\n### Response:\n", "A<e>\n\n"),
    "chatml": IM,
    "deepseek": ("<b>User: Q\n\nAssistant:", " A<e>"),
    "deepseek3": ("<b><｜User｜>Q<｜Assistant｜>", "A<e>"),
    "deepseekr1": ("<b><｜User｜>Q<｜Assistant｜>", EMPTY + "A<e>"),
    "gemma": GEMMA,
    "gemma2": GEMMA,
    "gemma3": GEMMA,
    "llama3": (f"<b>{HEADER.format('user')}Q<|eot_id|>{HEADER.format('assistant')}", "A<|eot_id|>"),
    "mistral": ("<b>[INST] Q[/INST]", " A<e>"),
    "phi4": ("<|im_start|>user<|im_sep|>Q<|im_end|><|im_start|>assistant<|im_sep|>", "A<|im_end|>"),
    "qwen": (f"<|im_start|>system\n{QWEN}<|im_end|>\n{IM[0]}", IM[1]),
    "qwen3": (IM[0], EMPTY + IM[1]),
    "qwen3_nothink": IM,
    "vicuna": (f"{VICUNA} USER: Q ASSISTANT:", " A<e>"),
    "yi": IM,
    "zephyr": ("<|user|>\nQ<e>\n<|assistant|>\n", "A<e>\n"),
}
"""Prompt and answer of one question, begin and end token as <b> and <e>."""
QUESTION, ANSWER = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}


def written(name: str, messages: list[dict[str, str]], **options: Any) -> tuple[str, str]:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATES[name].jinja()
    tokenizer.bos_token, tokenizer.eos_token = "<b>", "<e>"
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False, **options)
    whole = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    assert whole.startswith(prompt)
    return prompt, whole[len(prompt) :]


@pytest.mark.parametrize("name", TEMPLATES)
def test_one_question_without_a_system_turn(name: str) -> None:
    assert written(name, [QUESTION, ANSWER]) == WRITTEN[name]


@pytest.mark.parametrize("name", ["qwen3", "deepseekr1"])
def test_thoughts_of_answers(name: str) -> None:
    def thought(text: str) -> dict[str, str]:
        return {"role": "assistant", "content": f"<think>\n{text}\n</think>\n\nA"}

    prompt, answer = WRITTEN[name]
    end = answer.removeprefix(EMPTY)
    own = "<think>\nt\n</think>\n\n"
    assert written(name, [QUESTION, thought("t")]) == (prompt, own + end)
    # A closed thought is the prompt's, and the answer has none.
    for last in (ANSWER, thought("t")):
        assert written(name, [QUESTION, last], enable_thinking=False) == (prompt + EMPTY, end)
    talk = [QUESTION, thought("t"), QUESTION, thought("t")]
    following = prompt.removeprefix("<b>")
    assert written(name, talk) == (prompt + end + following, own + end)
    assert written(name, talk, preserve_thinking=True) == (prompt + own + end + following, own + end)
    assert written(name, talk, enable_thinking=False) == (prompt + end + following + EMPTY, end)


def test_closed_thoughts_are_not_trained_on() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    use_template(tokenizer, "qwen3")
    row = Row([{"role": "user", "content": "1+1="}], [{"role": "assistant", "content": "<think>\n1\n</think>\n\n2"}])
    end = tokenizer.eos_token
    encoded = encode_demonstration(tokenizer, row, {"enable_thinking": False})
    assert tokenizer.decode(encoded.completion) == f"2{end}"
    assert tokenizer.decode(encoded.prompt).endswith("</think>\n\n")
    encoded = encode_demonstration(tokenizer, row)
    assert tokenizer.decode(encoded.completion) == f"<think>\n1\n</think>\n\n2{end}"


def test_every_answer_of_a_conversation_has_an_empty_thought() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    use_template(tokenizer, "qwen3")
    answer = {"role": "assistant", "content": "2"}
    row = Row([QUESTION, answer, QUESTION], [answer], conversation=True)
    texts = [tokenizer.decode(each.completion) for each in encode_demonstrations(tokenizer, row)]
    assert texts == [f"{EMPTY}2{tokenizer.eos_token}"] * 2


def test_a_tokenizers_own_template_stays_or_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "cohort")
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "own"
    use_template(tokenizer, "qwen2_vl")
    assert tokenizer.chat_template == "own" and "'qwen2_vl' is no template here" in caplog.messages[-1]
    use_template(tokenizer, "chatml", instead=True)
    assert tokenizer.chat_template == TEMPLATES["chatml"].jinja() and tokenizer.eos_token == "<|im_end|>"
    assert "template chatml replaces the tokenizer's own chat template" in caplog.messages
    with pytest.raises(UserError, match="unknown template 'qwen2_vl'"):
        use_template(tokenizer, "qwen2_vl", instead=True)


def test_the_page_compares_every_template() -> None:
    page = (ROOT / "docs" / "coming-from-llama-factory.md").read_text(encoding="utf-8")
    assert [name for name in TEMPLATES if f"\n| `{name}` |" not in page] == []
