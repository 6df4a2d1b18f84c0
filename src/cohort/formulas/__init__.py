"""Formulas of the papers as pure functions: tensors in, tensors out.

No configuration, logging, device moves or in-place changes; counts that divide are arguments. Enter at `credit.py`
(rewards to advantages), `gae.py` (the same with a critic), `coefficient.py` and `preference.py` (advantages to
gradients), `ratios.py` (importance ratios), `covariance.py` (tokens chosen by it), `divergence.py` (KL estimates),
`aggregation.py` (weights of tokens), `loss_types.py` (the table of loss variants), `reward_loss.py` (losses of
reward models) and `chance.py` (what measures of them show). Shape suffixes are in `cohort.types`.
"""
