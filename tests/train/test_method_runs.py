"""Each method from end to end: it resumes exactly, keeps what it made once, and refuses what it cannot use."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import cohort
from cohort import DPOConfig, DPOTrainer, GRPOConfig, PPOConfig, PPOTrainer, RFTConfig, RFTTrainer, Trainer, UserError
from cohort.config import METHOD_CONFIGS, RewardConfig, read_run
from cohort.data.chains import build_tokenizer, make_chains
from cohort.evaluation.evaluate import Evaluation
from cohort.rollouts.encoding import Prompt
from cohort.train.output import folders, record
from cohort.train.output.record import SAMPLES, Recorder
from cohort.train.reward_models.trainer import RewardTrainer
from cohort.train.run import train_from_config
from cohort.types import Completion, Row
from helpers import StopAfter, byte_tokenizer, classifier, digits, numbers, rows_of, seeds, small_model

DEMONSTRATIONS, TRAIN, HELD_OUT = make_chains(2, 40, 8, seed=0)
WRONG = [{"role": "assistant", "content": "<answer>0</answer>"}]
PAIRS = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": WRONG} for row in DEMONSTRATIONS]

QUICK: dict[str, Any] = {
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 6,
    "max_completion_length": 6,
    "max_steps": 6,
    "use_cpu": True,
    "bf16": False,
    "lr_scheduler_type": "cosine",
}
SAMPLED = {"num_generations": 4}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "rft": ("rft", {**SAMPLED, "reward_threshold": 0.2}),
    "online_rft": ("online_rft", {**SAMPLED, "reward_threshold": 0.2}),
    "dpo": ("dpo", {}),
    "dpo best-worst": ("dpo", {**SAMPLED, "dpo_pairs": "best-worst"}),
    "dpo random": ("dpo", {**SAMPLED, "dpo_pairs": "random", "finetuning_type": "lora"}),
    "ppo": ("ppo", {"num_mini_batches": 2, "num_ppo_epochs": 2, "critic_learning_rate": 2e-2}),
    "ppo shared": ("ppo", {"critic": "shared", "num_generations": 2, "num_ppo_epochs": 1}),
    "gpg": ("gpg", SAMPLED),
    "remax": ("remax", {"num_generations": 2}),
    "maxrl": ("maxrl", SAMPLED),
    "reinforce++_baseline": ("reinforce++_baseline", {**SAMPLED, "num_iterations": 2}),
    "grpo steered entropy": (
        "grpo",
        {**SAMPLED, "use_adaptive_entropy": True, "entropy_target": 2.95, "entropy_coef_delta": 0.5, "beta": 0.0},
    ),
    "ppo vapo": (
        "ppo",
        {
            "lam_alpha": 0.5,
            "critic_lam": 1.0,
            "positive_nll_coef": 0.1,
            "reward_threshold": 0.2,
            "cliprange_high": 0.28,
        },
    ),
    "dpo ipo": ("dpo", {"loss_type": "ipo"}),
    "ppo lora": ("ppo", {"finetuning_type": "lora", "num_ppo_epochs": 3}),
}


def run(folder: Path, method: str, rewards: Any = digits, **values: Any) -> Trainer:
    given = {"train_dataset": PAIRS if method == "dpo" and "dpo_pairs" not in values else TRAIN}
    for key in ("train_dataset", "eval_dataset", "callbacks"):
        if key in values:
            given[key] = values.pop(key)
    config = METHOD_CONFIGS[method](**{**QUICK, **values}, output_dir=str(folder))
    model = small_model(vocab_size=22)
    return Trainer(model, rewards, config, processing_class=build_tokenizer(), method=method, **given)


@pytest.mark.parametrize("kind", KINDS)
def test_resume_gives_the_curve_of_an_undisturbed_run(tmp_path: Path, kind: str) -> None:
    """Step 3 lies inside a sampled batch where PPO passes over one several times."""
    method, settings = KINDS[kind]
    whole = run(tmp_path / "whole", method, **settings)
    whole.train()
    run(tmp_path / "cut", method, save_steps=3, callbacks=[StopAfter(5)], **settings).train()
    assert folders.newest(tmp_path / "cut") == tmp_path / "cut" / "checkpoint-3"
    again = run(tmp_path / "cut", method, **settings)
    again.train(resume_from_checkpoint=True)
    assert numbers(rows_of(tmp_path / "cut")) == numbers(rows_of(tmp_path / "whole"))
    assert rows_of(tmp_path / "whole")[-1]["grad_norm"] > 0
    for a, b in zip(again.policy.parameters, whole.policy.parameters, strict=True):
        assert torch.equal(a, b)
    for ours, theirs in zip(again.loop.companions, whole.loop.companions, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters, theirs.parameters, strict=True))


LOSSES: dict[str, dict[str, Any]] = {
    **{name: {"loss_type": name} for name in ("luspo", "sapo", "gmpo", "vespo", "dppo_tv", "dppo_kl", "kl_cov")},
    "clip_cov": {"loss_type": "clip_cov", "clip_cov_lb": 0.0, "clip_cov_ratio": 0.1},
    "gspo-token": {"importance_sampling_level": "sequence_token"},
    "off-policy mask": {"off_policy_mask_threshold": 0.001},
    "icepop": {
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "token_mask",
        "vllm_importance_sampling_clip_min": 0.5,
        "vllm_importance_sampling_clip_max": 5.0,
    },
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains_and_resumes_within_a_batch(tmp_path: Path, name: str) -> None:
    settings = {**SAMPLED, **LOSSES[name], "num_iterations": 2, "max_steps": 2}
    whole = run(tmp_path / "whole", "grpo", **settings)
    start = [parameter.detach().clone() for parameter in whole.policy.parameters]
    whole.train()
    run(tmp_path / "cut", "grpo", save_steps=1, callbacks=[StopAfter(1)], **settings).train()
    again = run(tmp_path / "cut", "grpo", **settings)
    again.train(resume_from_checkpoint=True)
    assert numbers(rows_of(tmp_path / "cut")) == numbers(rows_of(tmp_path / "whole"))
    assert not all(torch.equal(a, b) for a, b in zip(start, whole.policy.parameters, strict=True))
    for a, b in zip(again.policy.parameters, whole.policy.parameters, strict=True):
        assert torch.equal(a, b)


def test_the_entropy_weight_is_steered_to_its_target(tmp_path: Path) -> None:
    """Each step's weight follows the entropy of the step before; above the target there is no bonus."""
    settings: dict[str, Any] = {"beta": 0.0, "entropy_coef": 0.1, "entropy_coef_delta": 0.05, "max_steps": 4, **SAMPLED}
    run(tmp_path / "low", "grpo", use_adaptive_entropy=True, entropy_target=0.0, **settings).train()
    assert [row["entropy_coef"] for row in rows_of(tmp_path / "low")] == pytest.approx([0.05, 0.0, 0.0, 0.0])
    run(tmp_path / "none", "grpo", beta=0.0, max_steps=4, **SAMPLED).train()
    plain, without = ([row["loss"] for row in rows_of(tmp_path / name)] for name in ("none", "low"))
    assert plain == without, "the entropy was never at or below the target: no bonus"
    trainer = run(
        tmp_path / "high", "grpo", use_adaptive_entropy=True, entropy_target=9.0, entropy_coef_max=0.2, **settings
    )
    trainer.train()
    rows = rows_of(tmp_path / "high")
    assert [row["entropy_coef"] for row in rows] == pytest.approx([0.15, 0.2, 0.2, 0.2])
    assert rows[0]["loss"] == plain[0], "the first step has no bonus: nothing was measured before"
    assert rows[1]["loss"] < plain[1] - 0.1 * rows[1]["entropy"], "the second has one of weight 0.15"


def test_remax_compares_with_the_greedy_completion(tmp_path: Path) -> None:
    trainer = run(tmp_path, "remax", num_generations=2, max_steps=1)
    source = trainer.loop.source
    groups = source.batch(0, trainer.state).groups
    greedy = trainer.engine.generate(
        [group.prompt_ids for group in groups],
        1,
        replace(source.sampling, temperature=0.0),
        seeds([group.prompt_ids for group in groups]),
    ).completions
    for group, (completion,) in zip(groups, greedy, strict=True):
        baseline = digits([[{"content": completion.text}]])[0]
        for reward, advantages in zip(group.rewards, group.advantages, strict=True):
            assert advantages.tolist() == pytest.approx([reward - baseline] * len(advantages))


def test_a_checkpoint_of_another_method_is_told(tmp_path: Path) -> None:
    run(tmp_path, "online_rft", num_generations=2, max_steps=1, save_steps=1).train()
    with pytest.raises(UserError, match='method: "online_rft" -> "ppo"\n  num_generations: 2 -> 1\n'):
        run(tmp_path, "ppo").train(resume_from_checkpoint=True)
    with pytest.raises(UserError, match="has no critic: it is another method's checkpoint"):
        run(tmp_path, "ppo", resume_changes="allow").train(resume_from_checkpoint=True)


class Counted:
    """Counts the completions that a reward is asked for."""

    def __init__(self) -> None:
        self.asked = 0
        self.__name__ = "digits"

    def __call__(self, completions: list[Any], **_: Any) -> list[float]:
        self.asked += len(completions)
        return digits(completions)


def test_rft_keeps_distinct_correct_samples_and_reuses_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = {**SAMPLED, "reward_threshold": 0.2, "temperature": 0.3, "save_steps": 3, "reward_preflight": False}
    caplog.set_level(logging.INFO, "cohort")
    first = Counted()
    trainer = run(tmp_path, "rft", first, max_steps=3, **settings)
    trainer.train()
    assert first.asked == 160
    lines = [json.loads(line) for line in (tmp_path / SAMPLES).read_text().splitlines()]
    correct = [
        {c["text"].strip() for c in line["completions"] if sum(x.isdigit() for x in c["text"]) >= 2}
        for line in lines[1:]
    ]
    assert len(lines) == 41 and trainer.loop.source.size == sum(map(len, correct)) > 20
    assert trainer.loop.source.size < sum(c["reward"] >= 0.2 for line in lines[1:] for c in line["completions"])
    assert f"rft: {trainer.loop.source.size} of 160 samples kept" in caplog.text
    again = Counted()
    run(tmp_path, "rft", again, **settings).train(resume_from_checkpoint=True)
    assert again.asked == 0
    with pytest.raises(UserError, match=r"sampled with another temperature: resume with the settings"):
        changed = {**settings, "temperature": 0.5, "resume_changes": "allow"}
        run(tmp_path, "rft", **changed).train(resume_from_checkpoint=True)


def test_a_new_run_samples_anew_and_moves_the_earlier_samples_aside(tmp_path: Path) -> None:
    settings = {**SAMPLED, "reward_threshold": 0.2, "max_steps": 1}
    run(tmp_path, "rft", **settings).train()
    before = (tmp_path / SAMPLES).read_text()
    run(tmp_path, "rft", seed=7, **settings).train()
    assert (tmp_path / "earlier-1" / SAMPLES).read_text() == before != (tmp_path / SAMPLES).read_text()


def test_line_separators_in_completions_do_not_cut_records(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.start(0)
    for step in (1, 2, 3):
        recorder._append("completions.jsonl", {"step": step, "completion": "a\u2028b\x85c"})
    Recorder(tmp_path).start(2)
    kept = (tmp_path / "completions.jsonl").read_text().rstrip("\n").split("\n")
    assert [json.loads(line)["step"] for line in kept] == [1, 2]


def test_an_evaluation_adds_a_bounded_number_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first prompts with all their completions, the same ones each time, and a line that says so once."""
    caplog.set_level(logging.INFO, "cohort")
    monkeypatch.setattr(record, "HELD_OUT_ROWS", 5)
    recorder = Recorder(tmp_path)
    recorder.start(0)
    completion = Completion(torch.tensor([5]), torch.zeros(1), text="x", truncated=False, version=0)
    prompts = [Prompt(Row(f"{i}?"), torch.tensor([3])) for i in range(4)]
    for step in (1, 2):
        recorder.held_out(step, Evaluation(prompts, [[completion] * 2] * 4, {"r": [0.0] * 8}, [0.0] * 8, 1.0))
    lines = (tmp_path / "held_out.jsonl").read_text().splitlines()
    rows = [(row["step"], row["problem"], row["sample"]) for row in map(json.loads, lines)]
    assert rows == [(step, p, i) for step in (1, 2) for p in (0, 1) for i in (0, 1)]
    assert caplog.text.count("held_out.jsonl gets the completions of the first 2 of 4 held-out prompts") == 1
    monkeypatch.setattr(record, "HELD_OUT_ROWS", 1)  # a prompt's completions stay together
    recorder.held_out(3, Evaluation(prompts, [[completion] * 2] * 4, {"r": [0.0] * 8}, [0.0] * 8, 1.0))
    assert len((tmp_path / "held_out.jsonl").read_text().splitlines()) == 8 + 2


def test_a_second_call_of_train_keeps_the_reference(tmp_path: Path) -> None:
    trainer = run(tmp_path, "dpo", save_steps=3, callbacks=[StopAfter(4)])
    trainer.train()
    reference = trainer.loop.source.pairs[0].reference_logprobs
    trainer.train(resume_from_checkpoint=True)
    assert trainer.loop.source.pairs[0].reference_logprobs is reference


def test_sampling_goes_on_where_it_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cohort.train.sources import starting_samples as offline

    monkeypatch.setattr(offline, "AT_A_TIME", 40)
    settings = {**SAMPLED, "reward_threshold": 0.2, "max_steps": 1, "reward_preflight": False}
    run(tmp_path, "rft", **settings).train()
    whole = (tmp_path / SAMPLES).read_text()
    lines = whole.splitlines(keepends=True)
    (tmp_path / SAMPLES).write_text("".join(lines[:24]) + lines[24][:50])  # 23 prompts, and half of one
    counted = Counted()
    run(tmp_path, "rft", counted, **settings).train(resume_from_checkpoint=True)
    assert counted.asked == 80
    assert [json.loads(x)["completions"] for x in (tmp_path / SAMPLES).read_text().splitlines()[1:]] == [
        json.loads(x)["completions"] for x in lines[1:]
    ]


def test_pairs_are_made_of_rewarded_samples(tmp_path: Path) -> None:
    for kind in ("best-worst", "random"):
        trainer = run(tmp_path / kind, "dpo", dpo_pairs=kind, **SAMPLED, max_steps=1)
        trainer.train()
        pairs = trainer.loop.source.pairs
        assert len(pairs) > 20 and all(pair.rewards[0] > pair.rewards[1] for pair in pairs)
        lines = [json.loads(x) for x in (tmp_path / kind / SAMPLES).read_text().splitlines()[1:]]
        rewards = {str(line["prompt"]): [c["reward"] for c in line["completions"]] for line in lines}
        extremes = [pair.rewards == [max(r := rewards[str(pair.row.prompt)]), min(r)] for pair in pairs]
        assert all(extremes) == (kind == "best-worst")


def test_dpo_starts_at_its_reference_and_measures_held_out_pairs(tmp_path: Path) -> None:
    # A pair a pass, for the reference as for the policy: beside others a pair's numbers round otherwise.
    settings = {"token_budget": 32, "eval_strategy": "steps", "eval_steps": 3, "eval_on_start": True}
    config = DPOConfig(**QUICK, **settings, output_dir=str(tmp_path))
    trainer = DPOTrainer(small_model(vocab_size=22), config, PAIRS[:32], PAIRS[32:], build_tokenizer())
    trainer.train()
    training = [row for row in rows_of(tmp_path) if "loss" in row]
    assert training[0]["loss"] == pytest.approx(0.693147, abs=1e-5) and training[0]["rewards/margins"] == 0
    assert training[-1]["rewards/accuracies"] == 1 and training[-1]["rewards/chosen"] != 0
    held_out = [row for row in rows_of(tmp_path) if "eval/loss" in row]
    assert [row["step"] for row in held_out] == [0, 3, 6]
    assert held_out[0]["eval/loss"] == pytest.approx(0.693147, abs=1e-5)
    assert held_out[-1]["eval/loss"] < 0.5 and held_out[-1]["eval/rewards/accuracies"] == 1
    assert trainer.evaluate()["eval_rewards/margins"] == pytest.approx(held_out[-1]["eval/rewards/margins"], rel=1e-6)


PLAIN = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
USER = [{"role": "user", "content": "1+1="}]
ANSWERS = {name: [{"role": "assistant", "content": text}] for name, text in (("chosen", "2"), ("rejected", "3"))}
FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "plain": (PLAIN, "1+1="),
    "conversational": ({"prompt": USER, **ANSWERS}, "<|user|>1+1=<|im_end|><|assistant|>"),
    "implicit prompt": (
        {name: [*USER, *answer] for name, answer in ANSWERS.items()},
        "<|user|>1+1=<|im_end|><|assistant|>",
    ),
    "prompt as text beside conversations": (
        {"prompt": "1+1=", **{name: [*USER, *answer] for name, answer in ANSWERS.items()}},
        "<|user|>1+1=<|im_end|><|assistant|>",
    ),
    "alpaca": ({"instruction": "1", "input": "+1=", "chosen": "2", "rejected": "3"}, "1\n+1="),
}


@pytest.mark.parametrize("form", FORMS)
def test_preference_rows_as_others_write_them(form: str, tmp_path: Path) -> None:
    row, prompt = FORMS[form]
    trainer = run(tmp_path, "dpo", train_dataset=[row, row])
    trainer.loop.source.prepare(tmp_path, False)
    (pair, _), tokenizer = trainer.loop.source.pairs, build_tokenizer()
    assert tokenizer.decode(pair.prompt_ids) == prompt
    assert [tokenizer.decode(c.ids) for c in pair.completions] == ["2<|im_end|>", "3<|im_end|>"]
    assert [a.tolist() for a in pair.advantages] == [[1, 1], [-1, -1]]


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("dpo", {"train_dataset": TRAIN}, "row 1: dpo needs `chosen` and `rejected`; this file has `prompt`, `answer`: "
     "make pairs with `dpo_pairs: best-worst`"),
    ("dpo", {"dpo_pairs": "random", "rewards": None}, "dpo learns from rewarded samples and reward_funcs is empty"),
    ("dpo", {"train_dataset": [{**PLAIN, "chosen": 2}]}, "row 1: `chosen` is int '2'; it must be text or a list"),
    ("dpo", {"train_dataset": [{**PLAIN, "chosen": ANSWERS["chosen"], "rejected": ANSWERS["rejected"]}]},
     "`system_prompt: ''` makes the prompt a chat message too"),
    ("dpo", {"dpo_pairs": "random", **SAMPLED, "rewards": lambda completions, **_: [1.0] * len(completions)},
     "in none of the 40 groups sampled from the starting model do rewards differ"),
    ("rft", {"rewards": None}, "rft learns from rewarded samples and reward_funcs is empty"),
    ("rft", {**SAMPLED, "reward_threshold": 9}, "none of the 160 completions .* for rft .the best reward is 0.."),
    ("online_rft", {"rewards": []}, "online_rft learns from rewarded samples"),
    ("ppo", {"rewards": None}, "ppo learns from rewarded samples"),
    ("grpo", {"rewards": None, **SAMPLED}, "grpo learns from rewarded samples"),
    ("sft", {"rewards": None}, "row 1: no completion; sft learns from demonstrations"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "values", "message"), REFUSALS)
def test_data_that_a_method_cannot_use_is_refused_with_the_remedy(
    method: str, values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path, method, **values).train()


def test_keys_that_would_do_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"temperature is 0\.7 and would do nothing"):
        DPOConfig(temperature=0.7)
    with pytest.raises(ValueError, match="num_generations is 1: a pair takes at least 2"):
        DPOConfig(dpo_pairs="random", num_generations=1)
    assert DPOConfig(dpo_pairs="random", temperature=0.7).temperature == 0.7


def test_rft_can_leave_out_what_was_cut_off(tmp_path: Path) -> None:
    """Some of a random model's completions end within 30 tokens, most are cut off."""
    for masked in (False, True):
        trainer = run(tmp_path, "rft", reward_threshold=0, mask_truncated_completions=masked, max_completion_length=30)
        trainer.loop.source.prepare(tmp_path, reuse=masked)
        kept = [group.completions[0].truncated for group in trainer.loop.source.kept]
        assert kept and any(kept) != masked


def test_methods_and_their_configurations_must_agree(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown method 'pp' .*: did you mean 'ppo'"):
        Trainer("model", digits, method="pp")
    with pytest.raises(UserError, match="method dpo takes a DPOConfig, and args is a GRPOConfig"):
        Trainer("model", digits, GRPOConfig(), method="dpo")
    assert all(getattr(cohort, name) is not None for name in cohort.__all__)


def test_ppo_logs_its_critic_and_its_kl(tmp_path: Path) -> None:
    trainer = PPOTrainer(
        small_model(vocab_size=22),
        digits,
        PPOConfig(**QUICK, output_dir=str(tmp_path), num_ppo_epochs=2),
        TRAIN,
        processing_class=build_tokenizer(),
    )
    trainer.train()
    rows = rows_of(tmp_path)
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-4) and rows[-1]["objective/kl"] != 0
    assert rows[0]["critic/explained_variance"] == 0 and rows[0]["ratio/max"] == 1
    assert all(row["critic/loss"] > 0 and row["critic/grad_norm"] > 0 for row in rows)
    assert "reward_std" not in rows[0]  # one completion of each prompt


def test_a_configuration_file_names_the_method(tmp_path: Path) -> None:
    small_model(vocab_size=22).save_pretrained(tmp_path / "m")
    build_tokenizer().save_pretrained(tmp_path / "m")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TRAIN))
    config = tmp_path / "run.yaml"
    config.write_text(
        f"method: rft\nmodel: {tmp_path / 'm'}\ndataset: {tmp_path / 'rows.jsonl'}\nreward_funcs: format\n"
        "reward_threshold: 0\nnum_generations: 2\nmax_completion_length: 6\nmax_steps: 2\n"
        f"output_dir: {tmp_path / 'out'}\n"
    )
    train_from_config(*read_run(config))
    assert len(rows_of(tmp_path / "out")) == 2
    assert read_run(config)[0].method == "rft" and isinstance(read_run(config)[1], RFTConfig)
    assert RFTTrainer.row == "rft"
    with pytest.raises(UserError, match="unknown key `kl_coef`"):
        read_run(config, ["kl_coef=1"])


@pytest.mark.parametrize("method", ["dpo", "reward"])
def test_pairs_that_are_alike_for_the_model_are_told_and_left_out(
    method: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Here behind a length limit that cuts what differs off."""
    same = "2" * 12  # a policy's completion loses its end, a reward model's text its beginning
    rows = [
        {"prompt": "1+1=", "chosen": part + same, "rejected": other + same}
        if method == "reward"
        else {"prompt": "1+1=", "chosen": same + part, "rejected": same + other}
        for part, other in ("34", "56")
    ]
    rows.append({"prompt": "1+1=", "chosen": "2", "rejected": "3"})
    settings = {"max_steps": 1, "max_length": 10, "truncation": "cut", "use_cpu": True, "apply_chat_template": False}

    def trainer(rows: list[dict[str, str]]) -> Any:
        if method == "dpo":
            config: Any = DPOConfig(str(tmp_path), **settings)
            return Trainer(small_model(), None, config, rows, processing_class=build_tokenizer(), method="dpo")
        return RewardTrainer(
            classifier("Qwen2"),
            RewardConfig(str(tmp_path), **settings),
            rows,
            processing_class=byte_tokenizer(template=False),
        )

    trainer(rows).train()
    assert "chosen and rejected of 2 of 3 pairs (row 1, row 2) are alike, after the length limit" in caplog.text
    with pytest.raises(UserError, match=r"of all 2 pairs \(row 1, row 2, ...\) are alike"):
        trainer(rows[:2]).train()
