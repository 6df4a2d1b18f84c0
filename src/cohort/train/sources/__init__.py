"""Sources: where the batches of a run come from.

Enter at `table.py`, which builds the source that a method's row names from the `Parts` of a run; `source.py` is the
interface. Demonstrations come from the dataset, samples from the current policy, starting samples from the policy
before its first update, preferences are pairs. `attachments.py` adds to sampled groups what the credit needs."""
