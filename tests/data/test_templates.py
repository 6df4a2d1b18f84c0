"""Prompts and demonstrations through chat templates."""

# ruff: noqa: E501

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from cohort import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from cohort.config import METHOD_CONFIGS, read_run
from cohort.data import templates
from cohort.data.preferences import pair
from cohort.data.rows import load_rows
from cohort.data.templates import (
    Demonstration,
    encode_demonstration,
    encode_demonstrations,
    encode_prompt,
    for_template,
)
from cohort.evaluation.generate import Generator
from cohort.train.trainer import Trainer
from cohort.types import Row, UserError
from helpers import build_tokenizer, small_model

ROWS = [
    Row("1+1=", "2", {"answer": "2"}),
    Row([{"role": "user", "content": "2+2="}], [{"role": "assistant", "content": "4"}]),
]
USER, ASSISTANT = {"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}


def test_plain_prompts_become_user_turns_where_wanted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="cohort")
    tokenizer = build_tokenizer()
    turned = for_template(ROWS, tokenizer, True)
    assert turned == [Row([USER], [ASSISTANT], {"answer": "2"}), ROWS[1]]
    assert [r.levelname for r in caplog.records] == ["INFO"] and "1 of 2 prompts are plain text" in caplog.text
    caplog.clear()
    assert for_template(ROWS, tokenizer, None) == ROWS
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "apply_chat_template=True" in record.message
    caplog.clear()
    assert for_template(ROWS, tokenizer, False) == ROWS and not caplog.records
    tokenizer.chat_template = None
    assert for_template(ROWS, tokenizer, True) == ROWS and not caplog.records


def test_a_configuration_file_wants_user_turns_unless_it_says_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\ndataset: d\nreward_funcs: format\n")
    assert read_run(path)[1].apply_chat_template is True
    assert read_run(path, ["apply_chat_template=false"])[1].apply_chat_template is False
    assert GRPOConfig().apply_chat_template is None


@pytest.mark.parametrize("wanted", [True, None])
def test_a_trainer_samples_from_user_turns(
    wanted: bool | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Any] = []

    def reward(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        seen.extend(zip(prompts, completions, strict=True))
        return [float(i) for i in range(len(prompts))]

    config = GRPOConfig(
        str(tmp_path), max_steps=1, num_generations=2, per_device_train_batch_size=2, max_completion_length=3,
        apply_chat_template=wanted, reward_preflight=False,
    )  # fmt: skip
    trainer = GRPOTrainer(small_model(), reward, config, [{"prompt": "1+1="}], processing_class=build_tokenizer())
    trainer.train()
    prompts, completions = zip(*seen, strict=True)
    assert all(prompt == ([USER] if wanted else "1+1=") for prompt in prompts)
    assert all(isinstance(completion, list if wanted else str) for completion in completions)
    assert ("reach the model as they are" in caplog.text) == (wanted is None)


def test_demonstrations_become_turns(tmp_path: Path) -> None:
    rows = [{"prompt": "1+1=", "completion": "2"}]
    tokenizer = build_tokenizer()
    config = SFTConfig(str(tmp_path), max_steps=1, per_device_train_batch_size=1, apply_chat_template=True)
    trainer = SFTTrainer(small_model(), config, rows, processing_class=tokenizer)
    ((_, (prompt, completion, _)),) = trainer.loop.source.examples
    whole = tokenizer.apply_chat_template([USER, ASSISTANT], tokenize=True)["input_ids"]
    assert [*prompt, *completion] == whole[: len(prompt) + len(completion)]


def test_prompts_of_a_file_are_answered_in_user_turns(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    answers = {}
    for plain in (False, True):
        generator = Generator(str(tmp_path), plain=plain)
        sampling = {"temperature": 0.0, "max_tokens": 4}
        (record,) = generator.records([Row("1+1=")], sampling)
        (direct,) = generator.generate(["1+1=" if plain else [USER]], sampling)
        assert record["prompt"] == "1+1=" and record["completions"] == [direct[0].text]
        answers[plain] = record["completions"]
    assert answers[False] != answers[True]


QUESTION = {"role": "user", "content": "1+1="}
OPEN = {"role": "assistant", "content": "1+"}


def rendered(messages: list[Any], **options: Any) -> list[int]:
    return build_tokenizer().apply_chat_template(messages, tokenize=True, **options)["input_ids"]


def test_a_prompt_that_ends_in_an_assistant_turn_is_continued() -> None:
    tokenizer = build_tokenizer()
    prompt = encode_prompt(tokenizer, Row([QUESTION, OPEN]))
    assert prompt == rendered([QUESTION, OPEN], continue_final_message=True)
    assert tokenizer.decode(prompt).endswith("1+")
    row = Row([QUESTION, OPEN], [{"role": "assistant", "content": "1=2"}])
    both = encode_demonstration(tokenizer, row)
    assert both[0] == prompt and tokenizer.decode(both[1], skip_special_tokens=True) == "1=2"
    whole = rendered([QUESTION, {"role": "assistant", "content": "1+1=2"}])
    assert [*both[0], *both[1]] == whole[: len(both[0]) + len(both[1])]


TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool['name'] }}{% endfor %}{% endif %}{{ style or '' }}"
    "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
)


@pytest.mark.parametrize("tools", [[{"name": "7"}, {"name": "8"}], '[{"name": "7"}, {"name": "8"}]'])
def test_tools_and_template_arguments_of_a_row_reach_the_template(tools: Any) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATE
    row = Row([QUESTION], columns={"tools": tools, "chat_template_kwargs": {"style": "9"}})
    assert tokenizer.decode(encode_prompt(tokenizer, row, {"style": "0"})) == "7891+1=="
    plain = Row([QUESTION], columns={"tools": None, "chat_template_kwargs": None})
    assert tokenizer.decode(encode_prompt(tokenizer, plain, {"style": "0"})) == "01+1=="


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"tools": "[{"}, "r: `tools` is text that is not JSON"),
        ({"tools": [3]}, "r: `tools` is '.3.'; it must be a list of JSON schemas"),
        ({"chat_template_kwargs": "x"}, "r: `chat_template_kwargs` is 'x'; it must be an object"),
    ],
)
def test_tools_that_are_none_are_told(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        encode_prompt(build_tokenizer(), Row([QUESTION], columns=columns, source="r"))


def test_parts_of_a_message_are_joined() -> None:
    parts = [{"type": "text", "text": "1"}, {"text": "+"}, "1="]
    (row,) = load_rows([{"prompt": [{"role": "user", "content": parts}], "answer": "2"}])
    assert row.prompt == [QUESTION]
    (chosen, _) = pair(
        load_rows(
            [
                {
                    "prompt": "1+1=",
                    "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "2"}]}],
                    "rejected": "3",
                }
            ],
            system_prompt="",
        )[0]
    )
    assert chosen.completion == [{"role": "assistant", "content": "2"}]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": [{"role": "user", "content": [{"type": "image", "image": "x"}]}]}, "row 1: message 1 of `prompt` has a content part of type 'image'; only text"),
        ({"prompt": [{"role": "user", "content": [7]}]}, "message 1 of `prompt` has a content part of '7'"),
        ({"prompt": [{"role": "user", "content": 7}]}, "message 1 of `prompt` has the content '7'; it must be text"),
        ({"prompt": [{"role": "user", "content": None}]}, "message 1 of `prompt` has the content 'None'"),
        ({"prompt": 7}, "row 1: `prompt` is int '7'; it must be text or a list of messages"),
        ({"prompt": {"role": "user"}}, "row 1: `prompt` is dict"),
        ({"prompt": []}, "row 1: `prompt` is list"),
        ({"prompt": ["1+1="]}, "message 1 of `prompt` is 1[+]1="),
        ({"messages": "user: hi"}, "row 1: `messages` is text 'user: hi'; it must be a list of messages"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "one assistant turn: there is no question before"),
        ({"prompt": "1+1=", "completion": 2}, "row 1: `completion` is int '2'"),
        ({"prompt": "1+1=", "completion": [{"role": "user", "content": "2"}]}, "`completion` ends with the user's turn"),
    ],
)  # fmt: skip
def test_conversations_that_are_none_are_told_with_their_row(record: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_rows([record])


@pytest.mark.parametrize(
    "row",
    [Row("1+1=", [{"role": "assistant", "content": "2"}], source="r"), Row([QUESTION], "2", source="r")],
)
def test_a_completion_fits_its_prompts_kind(row: Row) -> None:
    with pytest.raises(UserError, match=r"r: the prompt is .* and its completion .*: make both the same"):
        encode_demonstration(build_tokenizer(), row)


def test_a_tokenizer_without_an_end_token_is_told() -> None:
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match=r"no end-of-sequence token.*set tokenizer.eos_token"):
        encode_demonstration(tokenizer, Row("1+1=", "2"))


def sentencepiece() -> Any:
    """As Llama's first tokenizers: a space before the text, and a token that may span prompt and completion."""
    names = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "▁b", "ab", "="]
    model = Tokenizer(
        models.BPE(
            vocab={n: i for i, n in enumerate(names)}, merges=[("▁", "a"), ("▁", "b"), ("a", "b")], unk_token="<unk>"
        )
    )
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    model.decoder = decoders.Metaspace(prepend_scheme="always")
    model.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_a_completion_is_encoded_as_it_follows_its_prompt() -> None:
    tokenizer = sentencepiece()

    def tokens(prompt: str, completion: str) -> tuple[list[str], list[str]]:
        both = encode_demonstration(tokenizer, Row(prompt, completion))
        return tuple(map(tokenizer.convert_ids_to_tokens, both[:2]))  # type: ignore[return-value]

    assert tokens("a=", "b") == (["<s>", "▁a", "="], ["b", "</s>"])  # alone it would be ▁b
    assert tokens("a=", " b") == (["<s>", "▁a", "="], ["▁b", "</s>"])
    assert tokens("a=a", "b")[0] == ["<s>", "▁a", "=", "a"]  # not the token `ab`, which spans both
    assert tokens("<s>a=", "b")[0] == ["<s>", "▁a", "="]


@pytest.mark.parametrize("method", ["grpo", "sft", "dpo"])
def test_a_token_beyond_the_embedding_is_told_with_its_row(method: str, tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([*map(str, range(1000, 1100)), "@"])
    row = {"prompt": "1+@=", "completion": "2", "chosen": "2", "rejected": "3", "answer": "2"}
    config = METHOD_CONFIGS[method](str(tmp_path), max_steps=1, apply_chat_template=False)
    rewards = "accuracy" if method == "grpo" else None
    with pytest.raises(
        UserError, match=r"row 2: the tokenizer's token '@' is number \d+, and the model's embedding has"
    ):
        Trainer(
            small_model(), rewards, config, [{**row, "prompt": "1"}, row], processing_class=tokenizer, method=method
        ).train()


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


TALK = [
    turn("user", "1+1="),
    turn("assistant", "2"),
    turn("user", "2+2="),
    turn("assistant", "4"),
    turn("user", "3+3="),
]
TALK += [turn("assistant", "6")]


def said(tokenizer: Any, each: Demonstration) -> str:
    """The trained tokens, with `~` for each run of others."""
    trained = each.trained or [True] * len(each.completion)
    runs = itertools.groupby(zip(each.completion, trained, strict=True), lambda pair: pair[1])
    return "".join(tokenizer.decode([token for token, _ in run]) if learnt else "~" for learnt, run in runs)


def test_every_assistant_turn_of_a_conversation_is_trained_on() -> None:
    tokenizer = build_tokenizer()
    (row,) = load_rows([{"messages": TALK}])
    (each,) = encode_demonstrations(tokenizer, row)
    assert [*each.prompt, *each.completion] == rendered(TALK)
    assert tokenizer.decode(each.prompt) == "<|user|>1+1=<|im_end|><|assistant|>"
    assert said(tokenizer, each) == "2<|im_end|>~4<|im_end|>~6<|im_end|>"
    (last,) = encode_demonstrations(tokenizer, row, last_only=True)
    assert last.trained is None and said(tokenizer, last) == "6<|im_end|>"


def test_of_a_prompt_with_its_completion_only_the_completion_is_trained_on() -> None:
    tokenizer = build_tokenizer()
    (row,) = load_rows([{"prompt": TALK[:3], "completion": TALK[3:]}])
    (each,) = encode_demonstrations(tokenizer, row)
    assert [*each.prompt, *each.completion] == rendered(TALK) and said(tokenizer, each) == "4<|im_end|>~6<|im_end|>"


THOUGHTLESS = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'assistant' and (everywhere or not loop.last) %}"
    "{{ m['content'].split('</think>')[-1] }}{% else %}{{ m['content'] }}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize("everywhere", [False, True])
def test_thoughts_that_a_template_leaves_out_are_trained_on(everywhere: bool, caplog: pytest.LogCaptureFixture) -> None:
    templates._TOLD.clear()
    tokenizer = build_tokenizer()
    tokenizer.chat_template = THOUGHTLESS
    talk = [
        turn("user", "1+1="),
        turn("assistant", "<think>1</think>2"),
        turn("user", "2+2="),
        turn("assistant", "<think>2</think>4"),
    ]
    (row,) = load_rows([{"messages": talk}])
    both = encode_demonstrations(tokenizer, row, {"everywhere": everywhere})
    assert [said(tokenizer, each) for each in both] == ["<think>1</think>2<|im_end|>", "<think>2</think>4<|im_end|>"]
    assert (
        tokenizer.decode(both[1].prompt)
        == "<|user|>1+1=<|im_end|><|assistant|>2<|im_end|><|user|>2+2=<|im_end|><|assistant|>"
    )
    assert ("leaves out a part of this answer" in caplog.text) == everywhere


def test_thoughts_that_the_prompt_opens_are_not_opened_twice() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = THOUGHTLESS.replace("<|assistant|>{% endif %}", "<|assistant|><think>{% endif %}")
    row = Row([QUESTION], [turn("assistant", "<think>1</think>2")])
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{% else %}{{ m['content'] }}",
        "{% else %}{{ '<think>' * (m['role'] == 'assistant') + m['content'].split('<think>')[-1] }}",
    )
    each = encode_demonstration(tokenizer, row)
    assert (
        tokenizer.decode([*each.prompt, *each.completion])
        == "<|user|>1+1=<|im_end|><|assistant|><think>1</think>2<|im_end|>"
    )


def test_an_answer_that_quotes_the_end_token_is_not_cut() -> None:
    tokenizer = build_tokenizer()
    each = encode_demonstration(tokenizer, Row([QUESTION], [turn("assistant", "1<|im_end|>2")]))
    assert each.completion.count(tokenizer.eos_token_id) == 1 and tokenizer.decode(each.completion).startswith("1")
    assert "2" in tokenizer.decode(each.completion)


def test_the_loss_is_the_mean_over_the_assistants_tokens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer, model = build_tokenizer(), small_model()
    config = SFTConfig(
        str(tmp_path), max_steps=1, per_device_train_batch_size=2, shuffle_dataset=False, bf16=False, use_cpu=True
    )
    rows = [{"messages": TALK}, {"messages": TALK[:2]}]
    expected = []
    for row in load_rows(rows):
        (each,) = encode_demonstrations(tokenizer, row)
        ids = torch.tensor([[*each.prompt, *each.completion]])
        logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[len(each.prompt) - 1 :, 0]
        expected.append(-logprobs[torch.tensor(each.trained or [True] * len(each.completion))].mean())
    caplog.set_level(logging.INFO, logger="cohort")
    trainer = SFTTrainer(model, config, rows, eval_dataset=rows, processing_class=tokenizer)
    assert "2 rows are 2 demonstrations: every answer of a conversation is trained on" in caplog.text
    evaluated = trainer.loop.source.held_out_loss()["eval/loss"]
    trainer.train()
    wanted = pytest.approx(torch.stack(expected).mean().item(), rel=1e-4)
    assert trainer.state.log_history[0]["loss"] == wanted and evaluated == wanted
