"""Every metric that training and evaluation write to metrics.jsonl: what it is, and what to do about it.

Enter at `table.py`. `scripts/write_metrics.py` writes docs/metrics.md from it; a test compares the keys of short runs
with it."""
