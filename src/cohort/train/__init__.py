"""Training: from a configuration and data to a trained model.

Enter at `trainer.py` (every method, TRL's shape) or `run.py` (a YAML file), then `loop.py` (one loop for all methods)
and `step.py` (the only backward pass of a policy). `sources/` makes the batches, `iterations/` changes things between
steps, `monitors/` watches, `reward_models/` fits reward models, `output/` writes what a run leaves. Other rooms use
Trainer, the named trainers, RewardTrainer and train_from_config."""
