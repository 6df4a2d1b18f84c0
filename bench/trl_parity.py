"""One batch, two libraries: the loss and the gradient of every parameter in TRL's GRPOTrainer and here.

    python bench/trl_parity.py

builds `.venv-trl` beside the project (TRL at the version of trl_environment.py, and this project) and compares in it,
on a small random Qwen2 in float32: same prompts, completions of unequal length, rewards, old and reference
log-probabilities; and TRL's DPOTrainer on pairs of them. TRL pads, repeats the prompt and differentiates; the step
here packs the group, splits it into micro-batches and forms the gradient in closed form. A line for each setting gives
relative differences; the exit code is 1 if one is above 1e-4.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from parity_settings import LENGTHS, MAX_COMPLETION_LENGTH, PROMPTS, SAME, Settings, grid
from trl_environment import outside, quiet, run_inside

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Batch:
    """Completions in order, prompt after prompt; old log-probabilities are the model's with noise."""

    prompts: list[Tensor]
    completions: list[list[Tensor]]
    rewards_PG: Tensor
    old: list[list[Tensor]]
    reference: list[list[Tensor]]
    model_path: str


@dataclass(frozen=True)
class Result:
    loss: float
    grads: dict[str, Tensor]
    advantages: Tensor


def make_batch(folder: str) -> Batch:
    """A random model, saved in `folder`, and a batch whose old log-probabilities exceed both clip bounds."""
    import torch

    from cohort.data.chains import build_model, build_tokenizer

    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    generator = torch.Generator().manual_seed(1)
    # No pad token among the samples: its embedding gets no gradient in TRL's model, but does here.
    special = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    usable = torch.tensor([i for i in range(len(tokenizer)) if i not in special])

    def tokens(n: int) -> Tensor:
        return usable[torch.randint(len(usable), (n,), generator=generator)]

    prompts = [tokens(n) for n in PROMPTS]
    completions = [[tokens(n) for n in lengths] for lengths in LENGTHS]
    for ids in (ids for group in completions for ids in group if len(ids) < MAX_COMPLETION_LENGTH):
        ids[-1] = tokenizer.eos_token_id

    def noisy(scale: float) -> list[list[Tensor]]:
        return [
            [own + scale * torch.randn(own.shape, generator=generator) for own in logprobs(model, prompt, group)]
            for prompt, group in zip(prompts, completions, strict=True)
        ]

    rewards_PG = torch.tensor([[1.0, 0.0, 0.5, 0.0], [0.1, 0.1, 2.0, 0.0], [1.0, 0.9, 0.0, 0.3]])
    return Batch(prompts, completions, rewards_PG, noisy(0.5), noisy(0.4), folder)


def logprobs(model: Any, prompt: Tensor, completions: list[Tensor]) -> list[Tensor]:
    """Log-probabilities of each completion by the model's forward pass, one row at a time."""
    import torch

    rows = []
    for ids in completions:
        with torch.no_grad():
            logits = model(input_ids=torch.cat([prompt, ids])[None]).logits[0, len(prompt) - 1 : -1]
        rows.append((logits / SAME["temperature"]).log_softmax(-1).gather(1, ids[:, None])[:, 0])
    return rows


def trls(batch: Batch, settings: Settings) -> Result:
    """TRL's trainer on the batch's completions and rewards, with its own advantages, padding, loss and autograd."""
    import torch
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def reward(completions: list[str], **columns: Any) -> list[float]:
        return batch.rewards_PG.flatten().tolist()

    def length(completions: list[str], **columns: Any) -> list[float]:
        return [float(len(ids)) for group in batch.completions for ids in group]

    rewards = [reward, length] if settings.multi_objective_aggregation == "normalize_then_sum" else reward

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        pairs = [(p, ids) for p, group in zip(batch.prompts, batch.completions, strict=True) for ids in group]
        return {
            "prompt_ids": [prompt.tolist() for prompt, _ in pairs],
            "completion_ids": [ids.tolist() for _, ids in pairs],
            "logprobs": [[0.0] * len(ids) for _, ids in pairs],
        }

    args = GRPOConfig(
        output_dir=batch.model_path,
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
        gradient_accumulation_steps=1,
        **settings.trls(),
    )
    examples = [{"prompt": str(p)} for p, group in enumerate(batch.completions) for _ in group]
    trainer = GRPOTrainer(
        batch.model_path, rewards, args=args, train_dataset=Dataset.from_list(examples), rollout_func=rollout
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._generate_and_score_completions(examples)
    inputs.pop("sampling_per_token_logps", None)  # of the rollout above, which has none
    for key, wanted, values in (
        ("old_per_token_logps", settings.off_policy, batch.old),
        ("ref_per_token_logps", settings.beta > 0, batch.reference),
    ):
        inputs.pop(key, None)
        if wanted:
            flat = [logp for group in values for logp in group]
            inputs[key] = torch.nn.utils.rnn.pad_sequence(flat, batch_first=True)
    rows = len(inputs["advantages"]) // settings.steps_per_generation
    step = {key: value[:rows] if torch.is_tensor(value) and value.dim() else value for key, value in inputs.items()}
    if settings.use_adaptive_entropy:
        trainer._compute_loss(trainer.model, step)
    loss = trainer._compute_loss(trainer.model, step)
    loss.backward()
    return Result(float(loss.detach()), gradients(trainer.model), inputs["advantages"])


def ours(batch: Batch, settings: Settings) -> Result:
    """The gradient of our step, in micro-batches of at most 64 tokens."""
    import torch

    from cohort.config import GRPOConfig
    from cohort.methods.table import METHODS
    from cohort.policy.load import make_policy
    from cohort.train.step import Updater
    from cohort.train.weights import active_lengths
    from cohort.types import Completion, Group, Row

    config = GRPOConfig(use_cpu=True, bf16=False, token_budget=64, **settings.ours())
    policy = make_policy(batch.model_path, None, config)
    policy.model.train()
    method = METHODS["grpo"]
    groups = []
    for p, (prompt, sampled) in enumerate(zip(batch.prompts, batch.completions, strict=True)):
        completions = [
            Completion(ids, old, truncated=len(ids) == MAX_COMPLETION_LENGTH, version=policy.version)
            for ids, old in zip(sampled, batch.old[p], strict=True)
        ]
        groups.append(
            Group(
                prompt,
                completions,
                Row(""),
                rewards=batch.rewards_PG[p].tolist(),
                components={"reward": batch.rewards_PG[p].tolist(), "length": [float(len(ids)) for ids in sampled]},
                old_logprobs=batch.old[p] if settings.off_policy else None,
                reference_logprobs=batch.reference[p] if settings.beta else None,
            )
        )
    for group, advantages in zip(groups, method.credit(groups, config), strict=True):
        group.advantages = advantages
    updater = Updater(policy, method, config)
    generation_tokens = float(active_lengths(groups, config).sum()) / settings.steps_per_generation
    metrics = updater.gradient(groups[: settings.prompts], generation_tokens)
    if settings.use_adaptive_entropy:
        updater.entropy.adapt(metrics["entropy"])
        metrics = updater.gradient(groups, generation_tokens)
    if settings.off_policy and settings.prompts > 1 and settings.loss_type not in ("sapo", "vespo"):
        one_sided = settings.loss_type == "cispo"
        assert metrics["clip_ratio/high_mean"] > 0 and (one_sided or metrics["clip_ratio/low_mean"] > 0)
    flat = torch.stack([advantages[0] for group in groups for advantages in group.advantages])
    return Result(metrics["loss"], gradients(policy.model), flat)


PAIRS = [(0, 1), (2, 0), (0, 2)]
"""Of each prompt's completions, the chosen and the rejected one."""
DPO_SMOOTHING = {"robust": 0.1, "exo_pair": 0.1}
DPO_LOSSES = ("sigmoid", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "apo_zero",
              "apo_down", "sigmoid_norm")  # fmt: skip


def pairs_of(batch: Batch) -> list[tuple[Tensor, list[Tensor], list[Tensor]]]:
    """Prompt, chosen and rejected completion, and the reference's log-probabilities of both."""
    return [
        (prompt, [batch.completions[p][i] for i in pair], [batch.reference[p][i] for i in pair])
        for p, (prompt, pair) in enumerate(zip(batch.prompts, PAIRS, strict=True))
    ]


def trls_dpo(batch: Batch, loss_type: str) -> Result:
    """TRL's DPOTrainer on the pairs; there a log-probability is at temperature 1."""
    import torch
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    args = DPOConfig(
        output_dir=batch.model_path, use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False,
        loss_type=[loss_type], beta=0.3, label_smoothing=DPO_SMOOTHING.get(loss_type, 0.0),
    )  # fmt: skip
    rows = [{"prompt": "1", "chosen": "2", "rejected": "3"}]
    trainer = DPOTrainer(batch.model_path, args=args, train_dataset=Dataset.from_list(rows))
    trainer.precompute_ref_logps = True
    trainer.model.train()
    pairs = pairs_of(batch)
    whole = [torch.cat([prompt, both[side]]) for side in (0, 1) for prompt, both, _ in pairs]
    pad = torch.nn.utils.rnn.pad_sequence
    of_completion = [
        (torch.arange(len(prompt) + len(both[side])) >= len(prompt)).long()
        for side in (0, 1)
        for prompt, both, _ in pairs
    ]
    inputs = {
        "input_ids": pad(whole, batch_first=True),
        "attention_mask": pad([torch.ones_like(ids) for ids in whole], batch_first=True),
        "completion_mask": pad(of_completion, batch_first=True),
        "ref_chosen_logps": torch.stack([reference[0].sum() for *_, reference in pairs]),
        "ref_rejected_logps": torch.stack([reference[1].sum() for *_, reference in pairs]),
    }
    loss = trainer._compute_loss(trainer.model, inputs, return_outputs=False)
    loss.backward()
    return Result(float(loss.detach()), gradients(trainer.model), torch.ones(1))


def ours_dpo(batch: Batch, loss_type: str) -> Result:
    import torch

    from cohort.config import DPOConfig
    from cohort.methods.table import METHODS
    from cohort.policy.load import make_policy
    from cohort.train.step import Updater
    from cohort.types import Completion, Group, Row

    smoothing = DPO_SMOOTHING.get(loss_type, 0.0)
    config = DPOConfig(
        use_cpu=True, bf16=False, token_budget=64, beta=0.3, loss_type=loss_type, label_smoothing=smoothing
    )
    policy = make_policy(batch.model_path, None, config)
    policy.model.train()
    groups = [
        Group(prompt, [Completion(ids, torch.zeros(len(ids))) for ids in both], Row(""), reference_logprobs=reference)
        for prompt, both, reference in pairs_of(batch)
    ]
    method = METHODS["dpo"]
    for group, advantages in zip(groups, method.credit(groups, config), strict=True):
        group.advantages = advantages
    metrics = Updater(policy, method, config).gradient(groups, 0.0)
    return Result(metrics["loss"], gradients(policy.model), torch.ones(1))


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def differences(mine: Result, theirs: Result) -> tuple[float, float, float]:
    """Relative differences of advantages, loss and the worst parameter's gradient.

    On-policy losses cancel to about 0 and a few gradients nearly vanish: there the difference is taken relative to
    0.01 and to a thousandth of the whole gradient's norm.
    """
    assert mine.grads.keys() == theirs.grads.keys()
    whole = float(sum(grad.norm() ** 2 for grad in theirs.grads.values())) ** 0.5
    worst = max(
        float((mine.grads[name] - grad).norm()) / max(float(grad.norm()), 1e-3 * whole)
        for name, grad in theirs.grads.items()
    )
    advantages = float((mine.advantages - theirs.advantages).norm() / theirs.advantages.norm())
    return advantages, abs(mine.loss - theirs.loss) / max(abs(theirs.loss), 0.01), worst


def compare() -> int:
    worst = 0.0
    print("relative differences to TRL's")
    print(f"{'':48} {'loss':>10} {'advantages':>12} {'loss':>9} {'worst gradient':>16}")
    with tempfile.TemporaryDirectory() as folder:
        batch = make_batch(folder)
        grpo = [(str(settings), partial(ours, batch, settings), partial(trls, batch, settings)) for settings in grid()]
        dpo = [(f"dpo {name}", partial(ours_dpo, batch, name), partial(trls_dpo, batch, name)) for name in DPO_LOSSES]
        for name, mine, other in grpo + dpo:
            theirs = other()
            gaps = differences(mine(), theirs)
            worst = max(worst, *gaps)
            print(f"{name:48} {theirs.loss:10.6f} {gaps[0]:12.1e} {gaps[1]:9.1e} {gaps[2]:16.1e}", flush=True)
    print(f"largest difference {worst:.1e}, bound {TOLERANCE:.0e}: {'equal' if worst <= TOLERANCE else 'DIFFERENT'}")
    return int(not worst <= TOLERANCE)


def main() -> int:
    if outside():
        return run_inside(__file__)
    quiet()
    return compare()


if __name__ == "__main__":
    sys.exit(main())
