"""Tables, plots and the live display, made from a run's files or from plain numbers. Imports no torch.

For one run: `plots.plot_training`, `live.LiveDisplay` (a training callback) and `metrics` (reads metrics.jsonl). For a
comparison: `comparison.write_comparison`. For a reward model: `judgement`. `tables`, `rewards` and `methods` make
tables for the terminal; `intervals` and `ranking` are the statistics; `drawing` is the style that all plots share.
"""
