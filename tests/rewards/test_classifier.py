"""Sequence classifiers as rewards: small random models, compared with their own forward on one text at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from cohort.rewards import Rewards, resolve, reward
from cohort.rewards.models.scorer import Scorer
from cohort.types import UserError
from helpers import SHAPE, byte_tokenizer, classifier, saved, token_classifier

PROMPTS = ["2+2=?", "What is the capital of France?", "?"]
COMPLETIONS = ["4", "It is Paris, on the Seine.", ""]
CHATS = [[{"role": "system", "content": "Hi"}, {"role": "user", "content": text}] for text in PROMPTS]
REPLIES = [[{"role": "assistant", "content": text}] for text in COMPLETIONS]


def last_token_scores(model: Any, rows: list[list[int]]) -> list[float]:
    """An oracle without padding: the head on the last hidden state of each text alone."""
    with torch.no_grad():
        hidden = [model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1] for ids in rows]
        return [float(model.score(last)) for last in hidden]


def test_a_causal_classifier_scores_the_last_token_of_the_conversation(tmp_path: Path) -> None:
    model, tokenizer = classifier("Qwen2"), byte_tokenizer()
    path = saved(tmp_path / "rm", model, tokenizer)
    name, function = resolve(path)
    texts = [f"<system>Hi<eos><user>{p}<eos><assistant>{c}<eos>" for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    expected = last_token_scores(model, [tokenizer(text)["input_ids"] for text in texts])
    assert name == "rm" and max(expected) - min(expected) > 0.1
    assert function(prompts=CHATS, completions=REPLIES) == pytest.approx(expected, abs=1e-5)
    for i in range(3):
        assert function(CHATS[i : i + 1], REPLIES[i : i + 1]) == pytest.approx(expected[i : i + 1], abs=1e-5)
    assert function(CHATS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)
    assert reward("model", model=path, batch_size=1)(CHATS, REPLIES) == pytest.approx(expected, abs=1e-5)


def test_plain_texts_are_joined() -> None:
    model, tokenizer = classifier("Qwen2"), byte_tokenizer()
    function = reward("model", model=model, processing_class=tokenizer)
    rows = [tokenizer(p + c)["input_ids"] for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert function(PROMPTS, COMPLETIONS) == pytest.approx(last_token_scores(model, rows), abs=1e-5)
    assert function([""], [""]) == pytest.approx(last_token_scores(model, [[1]]), abs=1e-5)


@pytest.mark.parametrize("ends", ["<eos>", "."])
def test_a_model_without_padding_token_scores_the_last_token_too(ends: str) -> None:
    """Where the tokenizer pads with its end token, a text's own end is no padding."""
    model, tokenizer = classifier("Llama", pad_token_id=None), byte_tokenizer()
    tokenizer.pad_token = "<eos>"
    completions = [text + ends for text in COMPLETIONS]
    rows = [tokenizer(p + c)["input_ids"] for p, c in zip(PROMPTS, completions, strict=True)]
    function = reward("model", model=model, processing_class=tokenizer)
    assert function(PROMPTS, completions) == pytest.approx(last_token_scores(model, rows), abs=1e-5)
    assert model.config.pad_token_id is None


@pytest.mark.parametrize("conversations", [False, True])
def test_bert_scores_the_pair(tmp_path: Path, conversations: bool) -> None:
    model, tokenizer = classifier("Bert"), byte_tokenizer(bert=True, template=False)
    _, function = resolve(saved(tmp_path / "bert", model, tokenizer))
    plain = [f"Hi\n{p}" for p in PROMPTS] if conversations else PROMPTS
    expected = []
    for prompt, completion in zip(plain, COMPLETIONS, strict=True):
        pair = tokenizer(prompt, completion, return_tensors="pt")
        assert pair["token_type_ids"].sum() == (len(completion) + 1 if completion else 0)
        with torch.no_grad():
            expected.append(float(model(**pair).logits[0, 0]))
    found = function(CHATS, REPLIES) if conversations else function(PROMPTS, COMPLETIONS)
    assert found == pytest.approx(expected, abs=1e-5) and max(expected) - min(expected) > 0.01


def test_long_texts_lose_their_beginning() -> None:
    model, tokenizer = classifier("Qwen2", max_position_embeddings=16), byte_tokenizer()
    function = reward("model", model=model, processing_class=tokenizer)
    logged: dict[str, float] = {}
    found = function(["x" * 30, "short"], ["the end of it", ""], log_metric=logged.__setitem__)
    rows = [tokenizer("xxxthe end of it")["input_ids"], tokenizer("short")["input_ids"]]
    assert found == pytest.approx(last_token_scores(model, rows), abs=1e-5)
    assert list(logged.values()) == [0.5] and next(iter(logged)).endswith("/truncated")
    cut = reward("model", model=model, processing_class=tokenizer, max_length=4)(["abcdef"], ["gh"])
    assert cut == pytest.approx(last_token_scores(model, [tokenizer("efgh")["input_ids"]]), abs=1e-5)
    bert, pairs = classifier("Bert", max_position_embeddings=16), byte_tokenizer(bert=True, template=False)
    pair = pairs("x" * 11, "yy", return_tensors="pt")
    with torch.no_grad():
        expected = float(bert(**pair).logits[0, 0])
    assert reward("model", model=bert, processing_class=pairs)(["x" * 50], ["yy"]) == pytest.approx(
        [expected], abs=1e-5
    )


def test_steps_beyond_the_limit_have_no_reward(caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = token_classifier("Qwen2"), byte_tokenizer(template=False)
    texts, steps = ["aa\nbbb\nc", "a\nb"], [["aa", "bbb", "c"], ["a", "b"]]
    of = {n: reward("model", model=model, processing_class=tokenizer, max_length=n) for n in (6, 20)}
    whole = of[20](["p", "p"], texts, steps=steps)
    assert not caplog.text
    for _ in range(2):
        cut = of[6](["p", "p"], texts, steps=steps)
    # "bb\nc" and the end token are left: each end is where it was, with less before it
    assert cut[0][0] is None and cut[0][1] is not None and cut[0][2] is not None and cut[1] == pytest.approx(whole[1])
    assert caplog.text.count("steps of 1 of 2 completions are cut off by its limit of 6 tokens: they get no") == 1
    with torch.no_grad():
        ids = [*tokenizer("bbb\nc")["input_ids"], 1][-6:]
        logits = model(input_ids=torch.tensor([ids])).logits[0, :, 0].sigmoid()
    assert cut[0][1:] == pytest.approx([float(logits[3]), float(logits[5])], abs=1e-5)


def test_a_classifier_among_other_rewards(tmp_path: Path) -> None:
    path = saved(tmp_path / "org" / "reward model", classifier("Qwen2"), byte_tokenizer())
    rewards = Rewards([{"model": path, "batch_size": 2}, path, "format"])
    scores = rewards(CHATS, REPLIES, [[1]] * 3, {})
    assert rewards.names == ["reward model", "reward model_2", "format"]
    assert scores.components["reward model"] == pytest.approx(scores.components["reward model_2"], abs=1e-5)
    assert scores.metrics["reward model/truncated"] == 0
    model = classifier("Qwen2")
    model.config._name_or_path = path
    assert Rewards([model])(CHATS, REPLIES, [[1]] * 3, {}).totals == pytest.approx(
        scores.components["reward model"], abs=1e-5
    )


def test_template_options(tmp_path: Path) -> None:
    path = saved(tmp_path / "rm", classifier("Qwen2"), byte_tokenizer())
    plain, suffixed = reward("model", model=path), reward("model", model=path, chat_template_kwargs={"suffix": "!"})
    assert plain(CHATS, REPLIES) != suffixed(CHATS, REPLIES)


STRIPS = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'].split('</think>')[-1] | trim }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_template_that_leaves_out_thoughts_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = classifier("Qwen2"), byte_tokenizer()
    function = reward("model", model=model, processing_class=tokenizer)
    function(CHATS, ["<think>so</think> 4\n", "thus</think>4", "4"])
    assert not caplog.text
    tokenizer.chat_template = STRIPS
    earlier = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "<think>x</think>1"}, *CHATS[0]]
    function([earlier], ["4"])
    assert not caplog.text  # what the template does with earlier turns is its own matter
    a, b = (function(CHATS[:1], [f"<think>{why}</think>4"])[0] for why in ("so", "not so"))
    assert a == b and caplog.text.count("leaves out a part of the completion that starts '<think>so</think>4'") == 1
    assert "chat_template_kwargs" in caplog.text
    steps = reward("model", model=token_classifier("Qwen2"), processing_class=tokenizer)
    a, b = (steps(CHATS[:1], [f"<think>{why}</think>4"], steps=[[why]])[0] for why in ("so", "no"))
    assert a != b and caplog.text.count("leaves out") == 1  # steps are read as the policy writes them


def test_what_is_no_reward_model(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    with pytest.raises(UserError, match=r"'[^']*two' has 2 labels: a reward model has one"):
        resolve(saved(tmp_path / "two", classifier("Qwen2", num_labels=2), tokenizer))
    config = transformers.Qwen2Config(**SHAPE, num_labels=1)
    base = saved(tmp_path / "base", transformers.Qwen2ForCausalLM(config), tokenizer)
    with pytest.raises(UserError, match=r"no trained sequence classifier: its weights lack score\.weight"):
        resolve(base)
    with pytest.raises(UserError, match=r"reward model './none' could not be loaded"):
        resolve({"model": "./none"})
    classifier("Qwen2").save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match=r"the tokenizer of the reward model '.*bare' has no vocabulary"):
        resolve(str(tmp_path / "bare"))
    with pytest.raises(UserError, match="batch_size is 0"):
        reward("model", model=base, batch_size=0)
    with pytest.raises(UserError, match=r"it has no option 'batchsize': did you mean 'batch_size'\?"):
        resolve({"model": base, "batchsize": 3})


def test_pickled_weights_are_read_only_when_told(tmp_path: Path) -> None:
    model = classifier("Qwen2")
    path = saved(tmp_path / "rm", model, byte_tokenizer())
    expected = resolve(path)[1](CHATS, REPLIES)
    torch.save(model.state_dict(), tmp_path / "rm" / "pytorch_model.bin")
    (tmp_path / "rm" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"could not be loaded: .*safetensors.*allow_pickle: true"):
        resolve(path)
    assert resolve({"model": path, "allow_pickle": True})[1](CHATS, REPLIES) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("limit", "truncated", "lost"), [(8, False, 0), (7, True, 1), (None, False, 0)])
def test_a_pair_of_texts_that_fits_exactly_is_not_cut(limit: int | None, truncated: bool, lost: int) -> None:
    """<cls> a b <sep>, three characters and <sep> are 8 tokens; with 7 the last step's text is cut off."""
    scorer = Scorer(token_classifier("Bert"), byte_tokenizer(bert=True, template=False), limit)
    found = scorer.encode_steps("ab", "c\nd", ["c", "d"])
    assert (found.truncated, found.lost, found.whole) == (truncated, lost, 8 * truncated)
    assert found.length == 8 - truncated
