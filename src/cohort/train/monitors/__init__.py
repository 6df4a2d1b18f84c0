"""Monitors: warnings while a run goes on. They change nothing that is learned.

Enter at `health.py`, which says when a run does not learn: no gradient (`flat.py`), updates that move too far
(`movement.py`), truncation, entropy; and reward functions that are never above 0, saturated or dominating the sum
(`rewards.py`). `reward_models.py` compares the scores of reward models with their validation sets,
`overoptimization.py` compares the reward that is learned from with a gold reward and can stop the run."""
