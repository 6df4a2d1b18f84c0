"""A TRL-style script: letter-answer puzzles, six small rewards that are added up.

    python examples/trl/choice_reasoning.py --model Qwen/Qwen2.5-0.5B-Instruct

Only the import says that it is not TRL.
"""

import argparse
import random
import re

from datasets import Dataset

from cohort import GRPOConfig, GRPOTrainer

SYSTEM = """Answer with your reasoning and then the letter, in this form:
<reasoning>
...
</reasoning>
<answer>
\\boxed{B}
</answer>"""
KEYWORDS = ("row", "column", "unique", "digit", "missing", "repeat")


def make_puzzles(count, seed):
    """Rows of a 4 x 4 Latin square with one digit missing, four letters to choose from."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        row = rng.sample([1, 2, 3, 4], 4)
        hole = rng.randrange(4)
        choices = rng.sample([1, 2, 3, 4], 4)
        shown = " ".join("?" if i == hole else str(digit) for i, digit in enumerate(row))
        options = "  ".join(f"{letter}) {digit}" for letter, digit in zip("ABCD", choices, strict=True))
        question = f"Each row holds the digits 1 to 4 once. Which digit is missing in the row {shown}?\n{options}"
        rows.append(
            {
                "prompt": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
                "answer": "ABCD"[choices.index(row[hole])],
            }
        )
    return Dataset.from_list(rows)


def texts(completions):
    return [completion[0]["content"] for completion in completions]


def choice_reward(completions, answer, **kwargs):
    found = [re.search(r"<answer>\s*\\boxed\{([A-D])\}\s*</answer>", text) for text in texts(completions)]
    return [2.0 if match and match[1] == letter else 0.0 for match, letter in zip(found, answer, strict=True)]


def strict_format_reward(completions, **kwargs):
    pattern = r"<reasoning>\n[^<]*\n</reasoning>\n<answer>\n\\boxed\{[A-D]\}\n</answer>"
    return [1.0 if re.fullmatch(pattern, text.strip()) else 0.0 for text in texts(completions)]


def soft_format_reward(completions, **kwargs):
    pattern = r"</reasoning>\s*<answer>[^<]*[A-D][^<]*</answer>"
    return [0.5 if re.search(pattern, text) else 0.0 for text in texts(completions)]


def tag_count_reward(completions, **kwargs):
    tags = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")
    return [sum(0.125 for tag in tags if text.count(tag) == 1) for text in texts(completions)]


def length_reward(prompts, completions, **kwargs):
    words = [len(text.partition("</reasoning>")[0].split()) for text in texts(completions)]
    return [min(count, 60) / 120 for count in words]


def keyword_reward(completions, log_metric, **kwargs):
    counts = [sum(word in text.lower().split() for word in KEYWORDS) for text in texts(completions)]
    log_metric("keywords", sum(counts) / len(counts))
    return [min(0.1 * count, 0.5) for count in counts]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="Qwen/Qwen2.5-0.5B-Instruct")
    parser.add_argument("--output_dir", default="output/choice_reasoning")
    parser.add_argument("--max_steps", type=int, default=250)
    parser.add_argument("--max_completion_length", type=int, default=256)
    options = parser.parse_args()
    training_args = GRPOConfig(
        output_dir=options.output_dir,
        learning_rate=5e-6,
        adam_beta1=0.9,
        adam_beta2=0.99,
        weight_decay=0.1,
        warmup_ratio=0.1,
        lr_scheduler_type="cosine",
        optim="paged_adamw_8bit",
        logging_steps=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
        num_generations=8,
        max_prompt_length=256,
        max_completion_length=options.max_completion_length,
        max_steps=options.max_steps,
        save_steps=100,
        max_grad_norm=0.1,
        report_to="none",
    )
    trainer = GRPOTrainer(
        model=options.model,
        reward_funcs=[
            choice_reward,
            strict_format_reward,
            soft_format_reward,
            tag_count_reward,
            length_reward,
            keyword_reward,
        ],
        args=training_args,
        train_dataset=make_puzzles(400, seed=0),
    )
    trainer.train()


if __name__ == "__main__":
    main()
