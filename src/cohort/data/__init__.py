"""Data: rows, chat templates and benchmarks; token ids of prompts and demonstrations.

Enter at `rows.load_rows` for any source of rows, or at `configured.configured_rows` for those of a configuration.
Other rooms also use `templates` (encoding), `order` (order of the data, derived seeds), `labels` and `preferences`
(rows for reward models and pairs), `benchmarks`, and `inspect` (`cohort data`). `dataset_info` and `chat_templates`
read LLaMA-Factory's data sets and templates. `chains` and `columns` generate small tasks for the demo, tests and
benchmarks.
"""
