"""Losses of reward models, and the gradient of a whole step, against the textbook forms under autograd."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cohort.config import ProcessRewardConfig, RewardConfig, RewardModelConfig
from cohort.data.rows import load_rows
from cohort.formulas.reward_loss import bradley_terry, cross_entropy, squared_error
from cohort.rewards import reward
from cohort.rewards.models.scorer import step_ends
from cohort.train.reward_models.model import make_reward_model
from cohort.train.reward_models.updater import RewardUpdater, micro_batches
from helpers import byte_tokenizer, classifier, token_classifier

QUICK: dict[str, Any] = {"use_cpu": True, "bf16": False, "max_grad_norm": 0.0}
PAIRS = [
    {"prompt": "2+2=", "chosen": "4", "rejected": "five and a bit", "margin": 0.5},
    {"prompt": "3+3=?", "chosen": "it is 6", "rejected": "7"},
    {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1.25},
]
LABELLED = [
    {"prompt": "2+2=", "completion": "4", "label": True},
    {"prompt": "2+2=", "completion": "five and a bit", "label": 0},
    {"prompt": "3+3=?", "completion": "6", "label": 0.75},
]
STEPPED = [
    {"prompt": "go", "completion": "1+1=2\n2+2=5", "labels": [1, 0]},
    {"prompt": "on", "completion": "9\n8\n7 and more", "labels": [0.25, 1.0, 0.5]},
]


def updater(config: RewardModelConfig, kind: str, architecture: str = "Qwen2", model: Any = None) -> RewardUpdater:
    bert = architecture == "Bert"
    model = model or classifier(architecture)
    return RewardUpdater(make_reward_model(model, byte_tokenizer(bert=bert, template=False), config), config, kind)


def test_worked_numbers() -> None:
    chosen, rejected = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0])
    plain = bradley_terry(chosen, rejected, torch.zeros(2))
    assert plain.tolist() == pytest.approx([math.log(1 + math.exp(-1)), math.log(2)])
    margin = bradley_terry(chosen, rejected, torch.tensor([1.0, 3.0]))
    assert margin.tolist() == pytest.approx([math.log(2), math.log(1 + math.exp(3))])
    centred = bradley_terry(chosen, rejected, torch.zeros(2), 0.01)
    assert (centred - plain).tolist() == pytest.approx([0.09, 0.0])
    assert squared_error(torch.tensor([3.0]), torch.tensor([1.0])).tolist() == [4.0]
    found = cross_entropy(torch.tensor([0.0, math.log(3), 200.0]), torch.tensor([1.0, 0.25, 1.0]))
    assert found.tolist() == pytest.approx([math.log(2), -0.25 * math.log(0.75) - 0.75 * math.log(0.25), 0.0])


def one_by_one(updater: RewardUpdater, prompt: str, text: str) -> Tensor:
    """The model's logit for one text alone."""
    tokenizer, model = updater.model.tokenizer, updater.model.model
    ids = tokenizer(prompt, text) if tokenizer.cls_token_id is not None else tokenizer(prompt + text)
    return model(**{key: torch.tensor([value]) for key, value in ids.items()}).logits[0, 0]


def expected_gradient(updater: RewardUpdater, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, updater.model.parameters, allow_unused=True))


def assert_same_gradient(updater: RewardUpdater, expected: list[Tensor]) -> None:
    for parameter, gradient in zip(updater.model.parameters, expected, strict=True):
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(
            found, torch.zeros_like(parameter) if gradient is None else gradient, atol=2e-5, rtol=1e-4
        )


@pytest.mark.parametrize("architecture", ["Qwen2", "Bert"])
@pytest.mark.parametrize("budget", [1, 10_000])
@pytest.mark.parametrize("centring", [None, 0.1])
def test_a_step_on_pairs_has_the_textbook_gradient(architecture: str, budget: int, centring: float | None) -> None:
    config = RewardConfig(token_budget=budget, center_rewards_coefficient=centring, **QUICK)
    fitted = updater(config, "preference", architecture)
    losses = []
    for row in PAIRS:
        a, b = (one_by_one(fitted, str(row["prompt"]), str(row[side])) for side in ("chosen", "rejected"))
        won = torch.exp(a) / (torch.exp(a) + torch.exp(b + float(row.get("margin", 0))))
        losses.append(-torch.log(won) + (centring or 0) * (a + b) ** 2)
    loss = sum(losses) / 3
    expected = expected_gradient(fitted, loss)
    found = fitted.gradient(fitted.examples(load_rows(PAIRS)))
    assert found["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
    assert_same_gradient(fitted, expected)


@pytest.mark.parametrize("architecture", ["Qwen2", "Bert"])
@pytest.mark.parametrize("kind", ["bce", "mse"])
@pytest.mark.parametrize("budget", [1, 10_000])
def test_a_step_on_labels_has_the_textbook_gradient(architecture: str, kind: str, budget: int) -> None:
    fitted = updater(RewardConfig(loss_type=kind, token_budget=budget, **QUICK), kind, architecture)
    losses = []
    for row in LABELLED:
        score, y = one_by_one(fitted, str(row["prompt"]), str(row["completion"])), float(row["label"])  # type: ignore[arg-type]
        p = 1 / (1 + torch.exp(-score))
        losses.append((score - y) ** 2 if kind == "mse" else -(y * torch.log(p) + (1 - y) * torch.log(1 - p)))
    loss = sum(losses) / 3
    expected = expected_gradient(fitted, loss)
    found = fitted.gradient(fitted.examples(load_rows(LABELLED)))
    assert found["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
    assert_same_gradient(fitted, expected)


def test_out_of_memory_halves_the_budget_and_the_step_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = updater(RewardConfig(loss_type="bce", token_budget=10_000, **QUICK), "bce")
    examples = fitted.examples(load_rows(LABELLED))
    found = fitted.gradient(examples)
    expected = [None if p.grad is None else p.grad.clone() for p in fitted.model.parameters]
    terms = fitted._terms

    def small_memory(batch: Any) -> Any:
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return terms(batch)

    monkeypatch.setattr(fitted, "_terms", small_memory)
    assert fitted.gradient(examples)["loss"] == pytest.approx(found["loss"], abs=1e-5)
    assert fitted.token_budget < 10_000
    assert_same_gradient(fitted, expected)


@pytest.mark.parametrize("architecture", ["Qwen2", "Bert"])
@pytest.mark.parametrize("budget", [1, 10_000])
def test_a_step_on_steps_has_the_textbook_gradient(architecture: str, budget: int) -> None:
    """Byte-level tokens: the token of a step's end is counted by hand."""
    config = ProcessRewardConfig(token_budget=budget, **QUICK)
    fitted = updater(config, "process", architecture, token_classifier(architecture))
    losses = []
    for row in STEPPED:
        prompt, text = str(row["prompt"]), str(row["completion"])
        bert = architecture == "Bert"
        ids = byte_tokenizer(bert=bert)(prompt, text) if bert else byte_tokenizer()(prompt + text + "<eos>")
        logits = fitted.model.model(**{key: torch.tensor([value]) for key, value in ids.items()}).logits[0, :, 0]
        start = len(prompt) + 2 * bert
        line_ends = [start + i for i, letter in enumerate(text) if letter == "\n"]
        for end, y in zip([*line_ends, len(ids["input_ids"]) - 1], row["labels"], strict=True):  # type: ignore[arg-type]
            p = 1 / (1 + torch.exp(-logits[end]))
            losses.append(-(y * torch.log(p) + (1 - y) * torch.log(1 - p)))
    loss = sum(losses) / 5
    expected = expected_gradient(fitted, loss)
    found = fitted.gradient(fitted.examples(load_rows(STEPPED)))
    assert found["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
    assert_same_gradient(fitted, expected)


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("kind", ["bce", "mse"])
@pytest.mark.parametrize("budget", [1, 10_000])
def test_a_step_on_every_token_has_the_textbook_gradient(head: str, kind: str, budget: int) -> None:
    """Each token of a completion has the text's label; a text cut off behind it would have that token's score."""
    from cohort.rewards.models.mlp_head import MLPHeadConfig, MLPHeadModel

    model = classifier("Qwen2")
    if head == "mlp":
        torch.manual_seed(1)
        model = MLPHeadModel(MLPHeadConfig(model.base_model.config, reads="last"), model.base_model)
    config = RewardConfig(loss_type=kind, token_budget=budget, every_token=True, **QUICK)
    fitted = updater(config, kind, model=model.eval())
    losses = []
    for row in LABELLED:
        prompt, text, y = str(row["prompt"]), str(row["completion"]), float(row["label"])  # type: ignore[arg-type]
        for end in range(1, len(text) + 1):
            ids = fitted.model.tokenizer(prompt + text[:end], return_tensors="pt")
            score = fitted.model.model(ids["input_ids"], attention_mask=ids["attention_mask"]).logits[0, 0]
            p = 1 / (1 + torch.exp(-score))
            losses.append((score - y) ** 2 if kind == "mse" else -(y * torch.log(p) + (1 - y) * torch.log(1 - p)))
    loss = sum(losses) / len(losses)
    expected = expected_gradient(fitted, loss)
    found = fitted.gradient(fitted.lessons(load_rows(LABELLED)))
    assert found["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
    assert_same_gradient(fitted, expected)
    # Judged is the text as a whole, as a run that is rewarded by the model sees it.
    assert [example.targets for example in fitted.examples(load_rows(LABELLED))] == [(1.0,), (0.0,), (0.75,)]


def test_a_small_network_as_head_reads_the_first_or_the_last_token() -> None:
    from cohort.rewards.models.mlp_head import MLPHeadConfig, MLPHeadModel

    for architecture, reads, place in (("Bert", "first", 0), ("Qwen2", "last", -1)):
        trunk = classifier(architecture).base_model
        torch.manual_seed(1)
        model = MLPHeadModel(MLPHeadConfig(trunk.config, reads=reads), trunk).eval()
        assert [type(layer).__name__ for layer in model.score] == ["Linear", "ReLU", "Dropout", "Linear"]
        assert [tuple(p.shape) for p in model.score.parameters()] == [(16, 32), (16,), (1, 16), (1,)]
        assert model.score[2].p == 0.1
        fitted = updater(RewardConfig(**QUICK), "bce", architecture, model)
        fitted.model.model.eval()
        model.requires_grad_(False)
        examples = fitted.examples(load_rows(LABELLED))
        scores = fitted.model.scorer.forward([example.texts[0] for example in examples])
        for score, example in zip(scores, examples, strict=True):
            inputs = {key: torch.tensor([value]) for key, value in example.texts[0].inputs.items()}
            hidden = trunk(**inputs).last_hidden_state[0, place]
            a, b, c, d = model.score.parameters()
            assert float(score) == pytest.approx(float(c[0] @ torch.relu(a @ hidden + b) + d), abs=1e-5)


def test_a_head_alone_reads_each_text_once_and_gets_the_same_gradient() -> None:
    from cohort.rewards.models.mlp_head import MLPHeadConfig, MLPHeadModel

    trunk = classifier("Bert").base_model
    torch.manual_seed(1)
    model = MLPHeadModel(MLPHeadConfig(trunk.config, reads="mean"), trunk)
    config = RewardConfig(finetuning_type="freeze", freeze_trainable_layers=0, **QUICK)
    fitted = updater(config, "preference", "Bert", model)
    fitted.model.model.eval()
    assert {id(p) for p in fitted.model.parameters} == {id(p) for p in model.score.parameters()}
    losses = []
    for row in PAIRS:
        score = []
        for side in ("chosen", "rejected"):
            ids = fitted.model.tokenizer(str(row["prompt"]), str(row[side]), return_tensors="pt")
            a, b, c, d = model.score.parameters()
            hidden = trunk(**ids).last_hidden_state[0].mean(0)
            score.append(c[0] @ torch.relu(a @ hidden + b) + d[0])
        losses.append(-torch.log(torch.sigmoid(score[0] - score[1] - float(row.get("margin", 0)))))
    loss = sum(losses) / 3
    expected = expected_gradient(fitted, loss)
    examples = fitted.lessons(load_rows(PAIRS))
    read = []
    trunk.register_forward_hook(lambda *_: read.append(1))
    for _ in range(3):
        assert fitted.gradient(examples)["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
        assert_same_gradient(fitted, expected)
    assert len(read) == 1
    # as a reward later: the whole model, every time
    scores = fitted.model.scorer.score([text for example in examples for text in example.texts], 2)
    assert [fitted._forward([text])[0].item() for e in examples for text in e.texts] == pytest.approx(
        [score for (score,) in scores], abs=1e-5
    )


def test_dropout_is_off_but_in_the_head_unless_told_otherwise() -> None:
    from cohort.rewards.models.mlp_head import MLPHeadConfig, MLPHeadModel

    def rates(**settings: Any) -> set[float]:
        trunk = classifier("Bert").base_model
        model = MLPHeadModel(MLPHeadConfig(trunk.config), trunk)
        model = updater(RewardConfig(**QUICK, **settings), "bce", "Bert", model).model.model
        return {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}

    assert rates() == {0.0, 0.1} and rates(disable_dropout=False) == {0.1}


def test_where_steps_end() -> None:
    assert step_ends("a=1\n b=2\n\n", ["a=1", "b=2"]) == [5, 10]
    assert step_ends("", [""]) == [0]
    fitted = updater(ProcessRewardConfig(**QUICK), "process", model=token_classifier("Qwen2"))
    scorer = fitted.model.scorer
    # é is two tokens: the step ends with the second
    assert scorer.encode_steps("p", "é\nx", ["é", "x"]).ends == [3, 5]
    chat = byte_tokenizer()
    scorer.tokenizer = chat
    prompt = [{"role": "user", "content": "?"}]
    found = scorer.encode_steps(prompt, [{"role": "assistant", "content": "a\nb"}], ["a", "b"])
    ids = chat("<user>?<eos>")["input_ids"] + chat("a\nb")["input_ids"] + [1]
    assert found.inputs["input_ids"] == ids and found.ends == [len(ids) - 3, len(ids) - 1]
    outcome = updater(RewardConfig(**QUICK), "bce").model.scorer
    outcome.tokenizer = chat
    # of a conversation the reply, with the end that the template puts behind it
    found = outcome.encode_tokens(prompt, [{"role": "assistant", "content": "a\nb"}])
    assert found.inputs == outcome.encode(prompt, "a\nb").inputs
    assert [found.inputs["input_ids"][i] for i in found.ends] == chat("a\nb<eos>")["input_ids"]
    assert outcome.encode_tokens("p", "").ends == [0]
    scorer.max_length = 3
    cut = scorer.encode_steps(prompt, "aaa\nb\ncc", ["aaa", "b", "cc"])
    assert cut.truncated and cut.ends == [2] and cut.steps == (2,) and len(cut.inputs["input_ids"]) == 3
    scorer.max_length = 5  # the line end of the second step is there
    assert scorer.encode_steps(prompt, "aaa\nb\ncc", ["aaa", "b", "cc"])[1:4] == ([1, 4], True, (1, 2))


@pytest.mark.parametrize("named", [None, 260])
def test_a_padding_token_beyond_the_embeddings_is_not_used(named: int | None) -> None:
    tokenizer = byte_tokenizer(template=False)
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    assert tokenizer.pad_token_id == 260  # the model has 260 embeddings
    model = classifier("Qwen2", pad_token_id=None)
    model.config.pad_token_id = named
    texts = ["b", "bbb"]
    with torch.no_grad():
        expected = [float(model(input_ids=torch.tensor([tokenizer("a" + t)["input_ids"]])).logits) for t in texts]
    found = reward("model", model=model, processing_class=tokenizer)(["a", "a"], texts)
    assert found == pytest.approx(expected, abs=1e-5)
    config = RewardConfig(**QUICK)
    fitted = RewardUpdater(make_reward_model(model, tokenizer, config), config, "bce")
    rows = [{"prompt": "a", "completion": text, "label": 1} for text in texts]
    loss = sum(math.log(1 + math.exp(-score)) for score in expected) / 2
    assert fitted.measure(fitted.examples(load_rows(rows)))["loss"] == pytest.approx(loss, abs=1e-5)
    assert model.config.pad_token_id == 1


def test_a_cut_moves_no_label() -> None:
    pairs = byte_tokenizer(bert=True, template=False)
    config = ProcessRewardConfig(max_length=10, **QUICK)
    bert = RewardUpdater(make_reward_model(token_classifier("Bert"), pairs, config), config, "process")
    # <cls> p <sep> a a \n b b \n <sep>: the third step, and of the next row the only one, is cut off
    rows = [
        {"prompt": "p", "completion": "aa\nbb\nccc", "labels": [1, 0.5, 0]},
        {"prompt": "p", "completion": "a" * 20, "labels": [1]},
        {"prompt": "p", "completion": "a\nbb", "labels": [0, 1]},
    ]
    first, lost, whole = bert.examples(load_rows(rows))
    assert first.texts[0].ends == [5, 8] and first.targets == (1.0, 0.5) and first.truncated
    assert lost.texts[0].ends == [] and lost.targets == () and lost.truncated
    assert whole.texts[0].ends == [4, 7] and whole.targets == (0.0, 1.0) and not whole.truncated
    scores = bert.model.scorer.score([lost.texts[0], first.texts[0]], 2)
    assert [len(of_text) for of_text in scores] == [0, 2]
    assert bert.model.scorer.score([lost.texts[0]], 1) == [[]]
    pairs.truncation_side = "left"  # <cls> p <sep> b b \n c c c <sep>
    assert bert.examples(load_rows(rows[:1]))[0].texts[0][1:4] == ([5, 9], True, (1, 2))

    tokens = updater(RewardConfig(every_token=True, max_length=6, **QUICK), "bce").model.scorer
    # of "pppp" and "aaa" the last 6 tokens are "ppp" and "aaa"
    assert tokens.encode_tokens("pppp", "aaa").ends == [3, 4, 5]
    assert tokens.encode_tokens("pppp", "a" * 9).ends == [0, 1, 2, 3, 4, 5]


def test_micro_batches_keep_within_the_budget_with_padding() -> None:
    fitted = updater(RewardConfig(**QUICK), "preference")
    examples = fitted.examples(load_rows(PAIRS))
    lengths = [[text.length for text in example.texts] for example in examples]
    assert lengths == [[5, 18], [12, 6], [2, 2]]
    assert [len(batch) for batch in micro_batches(examples, 72)] == [2, 1]
    assert [len(batch) for batch in micro_batches(examples, 71)] == [1, 2]
    assert [len(batch) for batch in micro_batches(examples, 1)] == [1, 1, 1]
