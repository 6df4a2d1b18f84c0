"""Fitting reward models, in a run of their own or between the steps of another.

Enter at `trainer.py` (RewardTrainer) or `updater.py` (RewardUpdater, the step that fits a model). `model.py` loads a
model and gives it a head, `examples.py` makes token ids and targets from rows, `early_stopping.py` keeps the best
model."""
