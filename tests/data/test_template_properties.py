"""Any conversation through templates of many kinds: what is trained on is what the assistant says, or it is told."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cohort.data import templates
from cohort.data.chat_templates import use_template
from cohort.data.rows import load_rows
from cohort.data.templates import Demonstration, encode_demonstrations, encode_prompt
from cohort.types import Message, UserError, joined

SPECIAL = ["<pad>", "<s>", "<|end|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>"]
THINK, NO_THOUGHT = "<think>", "<think>\n\n</think>\n\n"


def generic(answer: str, head: str = "", opening: str = "", after: str = "\\n") -> str:
    """A template of `<|im_start|>ROLE` turns, whose assistant's content is rendered by the expression `answer`; `last`
    says whether no user turn follows."""
    return (
        head + "{% set ns = namespace(users=messages | selectattr('role', 'equalto', 'user') | list | length) %}"
        "{% for m in messages %}{% if m.role == 'user' %}{% set ns.users = ns.users - 1 %}{% endif %}"
        "{% set said = m.content or '' %}{% set last = ns.users == 0 %}{{ '<|im_start|>' + m.role + '\\n' }}"
        "{% if m.role == 'assistant' %}{{ " + answer + " }}{% for call in m.tool_calls or [] %}"
        "{{ '<tool_call>' + call.function.name + '</tool_call>' }}{% endfor %}{% else %}{{ said }}{% endif %}"
        "{{ '<|im_end|>" + after + "' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n" + opening + "' }}{% endif %}"
    )


STRIPPED = "said.split('</think>')[-1].lstrip('\\n')"
JINJA = {
    "calls": generic("said"),
    "begin": generic("said", head="{{ bos_token }}", after=""),
    "trims": generic("said | trim"),
    "strips earlier thoughts": generic(f"(said if last else {STRIPPED})"),
    "strips all thoughts": generic(STRIPPED),
    "opens a thought": generic("('<think>\\n' + said.split('<think>', 1)[-1].lstrip('\\n'))", opening="<think>\\n"),
    "opens a thought, strips it": generic(STRIPPED, opening="<think>\\n"),
    "puts a thought": generic("(said if '</think>' in said else '<think>\\n\\n</think>\\n\\n' + said)"),
}
NAMED = ("chatml", "llama3", "qwen3", "gemma", "mistral", "default", "empty")
LEADS = {"mistral": " "}


@cache
def tokenizer_of(name: str) -> Any:
    """A byte-level tokenizer with a few merges, so that a token can span two turns, and with the template."""
    letters = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = [("a", "b"), ("\u010a", "\u010a"), ("\u0120", "a"), ("\u0120", "\u0120"), (":", "\u0120")]
    vocabulary = {token: i for i, token in enumerate([*letters, *map("".join, merges)])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    core.add_tokens([AddedToken(token, normalized=False) for token in (THINK, "</think>")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="<|end|>" if name in NAMED else "<|im_end|>",
    )
    if name in NAMED:
        use_template(tokenizer, name)
    else:
        tokenizer.chat_template = JINJA[name]
    return tokenizer


PIECES = st.sampled_from([*"ab2é🙂", "ab", " ", "\n", "\n\n", *SPECIAL[1:], "<think>\nab</think>\n\n"])
TEXTS = st.lists(PIECES, max_size=4).map("".join)
THOUGHTS = st.builds("<think>{}{}{}</think>{}{}".format, *[st.sampled_from(["", "\n", "\n\n"]), TEXTS] * 2, TEXTS)
ANSWERS = TEXTS | THOUGHTS


@st.composite
def conversations(draw: st.DrawFn) -> tuple[str, list[Message], int, str]:
    """(template, messages, how many of them are the prompt: 0 for a conversation, text that opens the answer)."""
    name = draw(st.sampled_from([*NAMED, *JINJA]))
    messages: list[Message] = [{"role": "system", "content": draw(TEXTS)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        answer: Message = {"role": "assistant", "content": draw(ANSWERS)}
        if name in JINJA and draw(st.integers(0, 5)) == 0:
            answer = {**answer, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}
        messages += [{"role": "user", "content": draw(TEXTS)}, answer]
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    # A template that trims moves a space between the prompt's open turn and its answer.
    opening = draw(st.sampled_from(["", "", "ab"] if name == "trims" else ["", "", "ab", "b "]))
    return name, messages, draw(st.sampled_from([0, *answers])), opening


def trained(tokenizer: Any, each: Demonstration) -> str:
    marked = zip(each.completion, each.trained or [True] * len(each.completion), strict=True)
    return "".join(tokenizer.decode([token for token, learnt in marked if learnt]))


def rendered_answer(name: str, message: Message, opened: bool) -> str:
    """What a template makes of an answer that it leaves whole."""
    content = message["content"]
    if name == "opens a thought" and not opened:
        content = content.split(THINK, 1)[-1].lstrip("\n") if content.lstrip().startswith(THINK) else content
    lead = "" if opened else LEADS.get(name, "")
    if name in ("puts a thought", "qwen3", "deepseekr1") and "</think>" not in content and not opened:
        lead = NO_THOUGHT if name == "puts a thought" or "<think>" not in content else lead
    calls = "<tool_call>f</tool_call>" * len(message.get("tool_calls") or [])
    return f"{lead}{content}{calls}"


def round_trip(case: tuple[str, list[Message], int, str], last_only: bool, caplog: pytest.LogCaptureFixture) -> None:
    name, messages, border, opening = case
    tokenizer = tokenizer_of(name)
    record: dict[str, Any] = {"messages": messages}
    if border:
        opened = [{"role": "assistant", "content": opening}] if opening else []
        record = {"prompt": [*messages[:border], *opened], "completion": messages[border:]}
    (row,) = load_rows([record])
    templates._TOLD.clear()
    caplog.clear()
    try:
        demonstrations = encode_demonstrations(tokenizer, row, None, last_only)
    except UserError as error:
        assert str(error).startswith("row 1: "), error
        assert name == "opens a thought, strips it" or opening
        return
    told = bool(caplog.records)
    assert all(record.message.startswith("row 1: ") for record in caplog.records)
    assert isinstance(row.prompt, list) and isinstance(row.completion, list)
    for each in demonstrations:
        assert each.completion.count(tokenizer.eos_token_id) >= 1 and each.completion[-1] == tokenizer.eos_token_id
    assert demonstrations[0].prompt == encode_prompt(
        tokenizer, row if border or last_only else replace(row, prompt=row.prompt[: first_answer(row.prompt)])
    )
    answers = [message for message in messages[border:] if message["role"] == "assistant"]
    answers = answers[-1:] if last_only and not border else answers
    if told or (last_only and border):
        return
    wanted = [rendered_answer(name, m, bool(opening and border and not i)) for i, m in enumerate(answers)]
    assert "".join(trained(tokenizer, each) for each in demonstrations) == "".join(
        text + tokenizer.eos_token for text in wanted
    )
    whole = tokenizer.apply_chat_template(joined(row.prompt, row.completion), tokenize=False)
    last = tokenizer.decode([*demonstrations[-1].prompt, *demonstrations[-1].completion])
    assert whole.startswith(last.removesuffix(tokenizer.eos_token)), (whole, last)


def first_answer(prompt: list[Message]) -> int:
    return next((i for i, message in enumerate(prompt) if message["role"] == "assistant"), len(prompt))


ANY = given(conversations(), st.booleans())
QUIET: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(max_examples=200, **QUIET)
@ANY
def test_any_conversation_is_trained_on_as_it_stands_or_told(
    caplog: pytest.LogCaptureFixture, case: tuple[str, list[Message], int, str], last_only: bool
) -> None:
    caplog.set_level(logging.INFO, logger="cohort")
    round_trip(case, last_only, caplog)


@pytest.mark.slow
@settings(max_examples=10_000, **QUIET)
@ANY
def test_any_conversation_is_trained_on_as_it_stands_or_told_often(
    caplog: pytest.LogCaptureFixture, case: tuple[str, list[Message], int, str], last_only: bool
) -> None:
    caplog.set_level(logging.INFO, logger="cohort")
    round_trip(case, last_only, caplog)


USER = {"role": "user", "content": "ab"}
CALL = {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}


def answer(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def test_an_answer_that_begins_with_a_line_break_has_its_own_tokens() -> None:
    """The tokenizer joins two line breaks, of which the first ends the prompt."""
    tokenizer = tokenizer_of("chatml")
    (row,) = load_rows([{"messages": [USER, answer("\nab")]}])
    (each,) = encode_demonstrations(tokenizer, row)
    assert each.prompt == encode_prompt(tokenizer, row)
    assert tokenizer.convert_ids_to_tokens(each.completion) == ["\u010a", "ab", "<|im_end|>"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("calls", "a<|im_end|>b", "a<|im_end|>b<tool_call>f</tool_call><|im_end|>"),
        ("strips all thoughts", "<think>a</think>b", "<think>a</think>b<tool_call>f</tool_call><|im_end|>"),
        ("strips all thoughts", "<think>a</think>", "<think>a</think><tool_call>f</tool_call><|im_end|>"),
    ],
)
def test_tool_calls_stay_beside_a_text_that_is_not_trained_on_as_rendered(name: str, content: str, said: str) -> None:
    tokenizer = tokenizer_of(name)
    (row,) = load_rows([{"messages": [USER, answer(content, **CALL)]}])
    (each,) = encode_demonstrations(tokenizer, row)
    assert trained(tokenizer, each) == said and each.completion.count(tokenizer.eos_token_id) == 1


def test_what_a_template_puts_before_an_answer_stays_where_it_quotes_the_end_token() -> None:
    tokenizer = tokenizer_of("mistral")
    (row,) = load_rows([{"messages": [USER, answer("a<|end|>b")]}])
    assert trained(tokenizer, encode_demonstrations(tokenizer, row)[0]) == " a<|end|>b<|end|>"


def test_an_answer_that_continues_the_prompt_is_trained_on_before_further_turns() -> None:
    tokenizer = tokenizer_of("chatml")
    (row,) = load_rows([{"prompt": [USER, answer("2")], "completion": [answer("a"), USER, answer("b")]}])
    (each,) = encode_demonstrations(tokenizer, row)
    assert tokenizer.decode(each.prompt).endswith("assistant\n2")
    assert trained(tokenizer, each) == "a<|im_end|>b<|im_end|>"


def test_what_a_template_does_to_answers_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="cohort")
    templates._TOLD.clear()
    for name, content in (("strips all thoughts", "<think>a</think>b"), ("trims", " a"), ("opens a thought", "a")):
        for row in load_rows([{"messages": [USER, answer(content)]}] * 3):
            encode_demonstrations(tokenizer_of(name), row)
    assert [(record.levelname, record.message.split(",")[0]) for record in caplog.records] == [
        ("WARNING", "row 1: the chat template leaves out a part of this answer (its thoughts"),
        ("INFO", "row 1: the chat template changes white space of this answer"),
        ("WARNING", "row 1: the chat template opens a thought (<think>) before this answer"),
    ]
