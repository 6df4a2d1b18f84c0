"""What a run writes: records of metrics and completions, checkpoints, the model with its card, uploads, trackers.

Enter at `record.py` and `checkpoint.py`. `export.py` is for the command line; `card.py` and `hub.py` are for trainers.
"""
