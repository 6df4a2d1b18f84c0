"""Iterative GRPO: what changes between the steps of a run (DeepSeekMath, arXiv 2402.03300, Algorithm 1).

Enter at `make.py`, which builds Iterations from the configuration, or at `iterations.py`, which the loop calls after
each step. `refit.py` trains the reward model on the policy's samples, `replay.py` keeps history for it."""
