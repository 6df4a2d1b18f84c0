"""The policy: a transformers causal language model with packed forward passes, its head, its reference and its critic.

Enter at `model.py` (Policy) and `load.py` (make_policy). `packed/` is the stream that groups are packed into, `fast/`
holds optional replacements of the model's own code, `paths.py` says which of them a policy takes and `parity.py`
compares them with the model before a run. Other rooms use Policy, make_policy, Part, micro_batches, Reference, Critic
and `memory.py`.
"""
