"""`cohort compare`: methods trained from the same start with the same number of sampled completions.

Enter at `config.read_comparison` (imports no torch) and `runs.run_comparison`. `measure` evaluates a trained model,
`folder` decides whether a run is finished or resumes; the tables and plots are `report.comparison`'s. Only the command
line imports from here.
"""
