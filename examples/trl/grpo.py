"""GRPO with rewards chosen on the command line; rows have `prompt` and `solution`.

python examples/trl/grpo.py --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct --dataset_name trl-lib/DeepMath-103K \\
    --output_dir output/grpo --reward_funcs accuracy think_format --num_generations 8 --report_to tensorboard
python examples/trl/grpo.py --config run.yaml --learning_rate 1e-5         # flags replace the values of the file
"""

from dataclasses import dataclass, field

from datasets import load_dataset
from transformers import TrainerCallback

from cohort import (
    GRPOConfig,
    GRPOTrainer,
    ModelConfig,
    ScriptArguments,
    TrlParser,
    get_peft_config,
    get_quantization_config,
)
from cohort.rewards import accuracy_reward, get_soft_overlong_punishment, think_format_reward

REWARDS = {
    "accuracy": accuracy_reward,
    "think_format": think_format_reward,
    "overlong": get_soft_overlong_punishment(max_completion_len=1280, soft_punish_cache=256),
}


@dataclass
class RewardArguments(ScriptArguments):
    reward_funcs: list[str] = field(
        default_factory=lambda: ["accuracy"], metadata={"help": "Names of REWARDS, or reward models."}
    )


class Progress(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and "reward" in logs:
            print(f"step {state.global_step} of {state.max_steps}: reward {logs['reward']:.3f}")


def main(script_args, training_args, model_args):
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    dataset = load_dataset(script_args.dataset_name, name=script_args.dataset_config)
    evaluates = training_args.eval_strategy != "no"
    trainer = GRPOTrainer(
        model=model_args.model_name_or_path,
        reward_funcs=[REWARDS.get(name, name) for name in script_args.reward_funcs],
        args=training_args,
        train_dataset=dataset[script_args.dataset_train_split],
        eval_dataset=dataset[script_args.dataset_test_split] if evaluates else None,
        peft_config=get_peft_config(model_args),
        quantization_config=get_quantization_config(model_args),
        callbacks=[Progress],
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    if evaluates:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    trainer.save_model(training_args.output_dir)
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)


if __name__ == "__main__":
    parser = TrlParser((RewardArguments, GRPOConfig, ModelConfig))
    main(*parser.parse_args_and_config())
