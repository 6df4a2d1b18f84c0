"""Steps among token ids, and runs with process supervision and dynamic sampling from end to end."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from cohort import UserError
from cohort.config import METHOD_CONFIGS, GRPOConfig, GRPOProcessConfig, read_run
from cohort.data.chains import build_tokenizer, make_chains
from cohort.rewards.steps import by_pattern, by_separator, cut
from cohort.rollouts.collect import has_equal_rewards
from cohort.rollouts.encoding import token_ends
from cohort.train.trainer import Trainer
from cohort.types import Group
from helpers import StopAfter, numbers, rows_of, small_model

DEMONSTRATIONS, TRAIN, _ = make_chains(3, 30, 0, seed=0)
PIECES = [
    "é",
    "😀",
    "a = 1",
    "\n",
    "\n\n",
    ". ",
    "héllo wörld",
    "数字",
    " ",
    "\n\n\n",
    "x+y",
    "\t",
    "step 2:",
    "<|end|>",
]


@pytest.fixture(scope="module")
def bpe() -> Any:
    """A byte-level BPE tokenizer whose merges run across line ends, with too few tokens for every character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["a = 1\nb = 2\n\nso 3. é\n", "step 1:\nstep 2:\n", "x\n\ny = é"] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def slow_ends(ids: list[int], text_ends: list[int], tokenizer: Any) -> list[int]:
    """By bytes: the token that holds the last byte of each step's text."""
    # what each token adds to the byte string; special tokens add nothing
    table = {c: b for b, c in byte_characters().items()}
    special = set(tokenizer.all_special_ids)
    sizes = [0 if i in special else len([table[c] for c in tokenizer.convert_ids_to_tokens(i)]) for i in ids]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    found = []
    for end in text_ends[:-1]:
        wanted, total = len(text[:end].encode()), 0
        for t, size in enumerate(sizes):
            total += size
            if total >= wanted:
                found.append(t)
                break
    return [*found, len(ids) - 1]


def byte_characters() -> dict[int, str]:
    """GPT-2's table of printable characters for bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


@pytest.mark.parametrize("seed", range(40))
def test_steps_end_in_the_token_with_their_last_byte(bpe: Any, seed: int) -> None:
    rng = random.Random(seed)
    ids: list[int] = []
    for _ in range(rng.randint(1, 12)):  # encoded apart, so that the ids are not those of the whole text
        ids += bpe(rng.choice(PIECES), add_special_tokens=False)["input_ids"]
    ids.append(bpe.eos_token_id)
    text = bpe.decode(ids, skip_special_tokens=True)
    for split in (by_separator("\n"), by_pattern(r"\. |\d|é")):
        ends = cut(text, split).ends
        assert token_ends(ids, text, ends, bpe) == slow_ends(ids, ends, bpe)


def test_a_merged_token_ends_the_step_it_completes(bpe: Any) -> None:
    ids = bpe("a = 1\nb = 2\n\nso 3", add_special_tokens=False)["input_ids"]
    tokens = bpe.convert_ids_to_tokens(ids)
    assert any("Ċ" in token and token.strip("Ċ") for token in tokens)  # a line end with text around it
    ends = token_ends(ids, "a = 1\nb = 2\n\nso 3", [6, 13, 17], bpe)
    joined = ["".join(tokens[: end + 1]) for end in ends]
    assert joined[0].startswith("aĠ=Ġ1Ċ") and joined[1].startswith("aĠ=Ġ1ĊbĠ=Ġ2ĊĊ") and ends[-1] == len(ids) - 1


def test_the_demos_tokens_and_invalid_bytes() -> None:
    tokenizer = build_tokenizer()
    text = "<think>7+5=2\n2-8=4</think><answer>4</answer>"
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    found = cut(text, by_separator("\n"))
    assert token_ends(ids, text, found.ends, tokenizer) == [6, len(ids) - 1]
    assert tokenizer.decode(ids[:7]) == "<think>7+5=2\n"
    assert token_ends([tokenizer.eos_token_id], "", [0], tokenizer) == [0]
    assert token_ends(ids, text, found.ends[:1], tokenizer) == [6]  # the last step has no reward


def test_half_characters_are_counted_once(bpe: Any) -> None:
    half = bpe.convert_tokens_to_ids(byte_characters()[0xC3])
    newline = bpe.convert_tokens_to_ids("Ċ")
    ids = [half, half, newline, half, bpe.eos_token_id]
    text = bpe.decode(ids, skip_special_tokens=True)
    assert text == "\ufffd\ufffd\n\ufffd"
    assert token_ends(ids, text, cut(text, by_separator("\n")).ends, bpe) == [2, 4]


def trainer(folder: Path, method: str, rewards: Any, model: Any = None, **values: Any) -> Trainer:
    settings = {
        "output_dir": str(folder),
        "learning_rate": 1e-3,
        "num_generations": 4,
        "per_device_train_batch_size": 12,
        "max_completion_length": 8,
        "max_steps": 4,
        "beta": 0.0,
        "use_cpu": True,
        "bf16": False,
        **values,
    }
    callbacks = settings.pop("callbacks", [])
    data = settings.pop("train_dataset", TRAIN)
    return Trainer(
        small_model(vocab_size=22) if model is None else model,
        rewards,
        METHOD_CONFIGS[method](**settings),
        data,
        processing_class=build_tokenizer(),
        callbacks=callbacks,
        method=method,
    )


def digits(steps: list[list[str]], **_: Any) -> list[list[float]]:
    return [[sum(c.isdigit() for c in text) / 10 for text in texts] for texts in steps]


def length(completions: list[Any], **_: Any) -> list[float]:
    return [len(completion[0]["content"]) / 10 for completion in completions]


def test_a_process_run_credits_steps_and_logs_outcomes_beside(tmp_path: Path) -> None:
    settings = {"step_pattern": "[+=-]", "log_completions": 4, "max_steps": 1, "reward_clip": None}
    run = trainer(tmp_path, "grpo_process", [digits, length], **settings)
    groups, metrics, *_ = run.loop.source.batch(0, run.state)
    assert isinstance(groups[0], Group) and groups[0].steps is not None
    for group in groups:
        scores = [x for steps in group.steps or [] for x in steps.rewards]
        mean, std = torch.tensor(scores).mean(), torch.tensor(scores).std()
        for steps, completion, advantages in zip(group.steps or [], group.completions, group.advantages, strict=True):
            assert steps.ends[-1] == len(completion.ids) - 1 and steps.ends == sorted(steps.ends)
            expected = [
                sum((r - mean) / (std + 1e-4) for r, end in zip(steps.rewards, steps.ends, strict=True) if end >= t)
                for t in range(len(completion.ids))
            ]
            torch.testing.assert_close(advantages, torch.tensor(expected), atol=1e-5, rtol=1e-4)
        assert group.rewards == group.components["length"]
    count = [len(steps.rewards) for group in groups for steps in group.steps or []]
    assert metrics["steps/count"] == sum(count) / len(count) > 1
    assert metrics["reward"] == pytest.approx(metrics["rewards/length/mean"])
    run.train()
    first = json.loads((tmp_path / "completions.jsonl").read_text().splitlines()[0])
    assert first["step_rewards"] and first["length"] == first["reward"]


@pytest.mark.parametrize(
    ("method", "rewards", "settings"),
    [
        ("grpo_process", digits, {"num_iterations": 2, "step_pattern": "[+=-]"}),
        ("grpo", length, {"dynamic_sampling": True, "steps_per_generation": 2}),
        ("reinforce++", length, {"beta": 0.1, "num_generations": 1}),
    ],
)
def test_resume_gives_the_curve_of_an_undisturbed_run(
    tmp_path: Path, method: str, rewards: Any, settings: dict[str, Any]
) -> None:
    whole = trainer(tmp_path / "whole", method, rewards, **settings)
    whole.train()
    trainer(tmp_path / "cut", method, rewards, save_steps=1, callbacks=[StopAfter(3)], **settings).train()
    again = trainer(tmp_path / "cut", method, rewards, **settings)
    again.train(resume_from_checkpoint=True)
    assert numbers(rows_of(tmp_path / "cut")) == numbers(rows_of(tmp_path / "whole"))


def rare(completions: list[Any], **_: Any) -> list[float]:
    return [float(completion[0]["content"].startswith("7")) for completion in completions]


def test_dynamic_sampling_fills_the_batch_with_groups_that_differ(tmp_path: Path) -> None:
    plain = trainer(tmp_path, "grpo", rare)
    before, *_ = plain.loop.source.batch(0, plain.state)
    silent = sum(has_equal_rewards(group) for group in before)
    assert 0 < silent <= 3
    run = trainer(tmp_path, "grpo", rare, dynamic_sampling=True, max_sampling_rounds=50)
    groups, metrics, *_ = run.loop.source.batch(0, run.state)
    assert len(groups) == 3 and not any(has_equal_rewards(group) for group in groups)
    assert metrics["sampling/frac_kept_groups"] == 1 and metrics["sampling/rounds"] > 1
    assert len({str(group.row.prompt) for group in groups}) == 3
    assert 0 < metrics["frac_reward_zero_std"] < 1  # of all that was sampled
    kept = [group for group in before if not has_equal_rewards(group)]
    assert [str(g.row.prompt) for g in groups[: len(kept)]] == [str(g.row.prompt) for g in kept]


def test_dynamic_sampling_stops_at_its_bound_and_at_the_datas_end(tmp_path: Path) -> None:
    def same(completions: list[Any], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    for settings, rounds in (({"max_sampling_rounds": 3}, 3), ({"train_dataset": TRAIN[:5]}, 2)):
        run = trainer(tmp_path, "grpo", same, dynamic_sampling=True, **settings)
        groups, metrics, *_ = run.loop.source.batch(0, run.state)
        assert len(groups) == 3 and metrics["sampling/frac_kept_groups"] == 0 and metrics["sampling/rounds"] == rounds
    run = trainer(tmp_path, "grpo_process", lambda steps: [[1.0] * len(s) for s in steps], dynamic_sampling=True)
    assert all(has_equal_rewards(group) for group in run.loop.source.batch(0, run.state)[0])


def test_completions_without_rewarded_steps_have_no_advantage(tmp_path: Path) -> None:
    def some(prompts: list[Any], steps: list[list[str]], **_: Any) -> list[list[float | None]]:
        first = prompts[0]
        return [
            [float(j) if prompt == first and i % 2 == 0 else None for j, _ in enumerate(texts)]
            for i, (prompt, texts) in enumerate(zip(prompts, steps, strict=True))
        ]

    run = trainer(tmp_path, "grpo_process", [some, length], step_pattern="[0-9]")
    groups, metrics, *_ = run.loop.source.batch(0, run.state)
    judged = [[bool(a.any()) for a in group.advantages] for group in groups]
    assert any(judged[0][::2]) and not any(judged[0][1::2]) and not any(any(row) for row in judged[1:])
    assert metrics["steps/count"] > 0 and "steps/reward" in metrics


def test_what_would_do_nothing_is_refused(tmp_path: Path) -> None:
    for values, message in (
        ({"delta": 1.1}, "above the clip"),
        ({"delta": 2.0, "loss_type": "cispo"}, "loss_type: cispo does not read it"),
        ({"max_sampling_rounds": 3}, "dynamic_sampling is off"),
        ({"vllm_importance_sampling_clip_max": 3.0}, "correction is off"),
        (
            {"multi_objective_aggregation": "normalize_then_sum", "scale_rewards": "none"},
            "normalize_then_sum scales by itself",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            GRPOConfig(**values)
    with pytest.raises(ValueError, match="scale_rewards is 'none' and would do nothing"):
        METHOD_CONFIGS["rloo"](scale_rewards="none")
    with pytest.raises(ValueError, match="pass_k is 9, more than num_generations, 8"):
        METHOD_CONFIGS["pass_at_k"](num_generations=8, pass_k=9)
    assert METHOD_CONFIGS["reinforce++"](num_generations=1).num_generations == 1
    with pytest.raises(UserError, match="none of the rewards length scores steps"):
        trainer(tmp_path, "grpo_process", length)
    with pytest.raises(UserError, match="Step rewards are for method: grpo_process"):
        trainer(tmp_path, "grpo", "chain_steps").train()


@pytest.mark.parametrize("method", ["grpo_process", "rloo", "opo", "pass_at_k", "reinforce++"])
def test_rows_are_reached_by_configuration_and_their_written_settings_read_again(tmp_path: Path, method: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"method: {method}\nmodel: m\ndataset: d.jsonl\nreward_funcs: chain_steps, accuracy\n")
    run, config = read_run(path)
    assert run.method == method and type(config) is METHOD_CONFIGS[method]
    assert type(config)(**config.model_dump()) == config


def test_process_supervision_learns_where_only_the_working_can_be_right(tmp_path: Path) -> None:
    """From a random model: the first lines' reward rises before any answer is right."""
    config = {"learning_rate": 3e-3, "max_steps": 30, "per_device_train_batch_size": 64, "num_generations": 8}
    chain = [{"prompt": [{"role": "user", "content": "1+1="}], "answer": "2"}]

    def starts(prompts: list[Any], steps: list[list[str]], **_: Any) -> list[list[float]]:
        return [[float(text[:1] in "12") for text in texts] for texts in steps]

    run = trainer(
        tmp_path,
        "grpo_process",
        starts,
        train_dataset=chain * 8,
        step_pattern="[+=-]",
        lr_scheduler_type="constant",
        **config,
    )
    run.train()
    rewards = [row["steps/reward"] for row in rows_of(tmp_path)]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.3
    assert isinstance(run.args, GRPOProcessConfig)
