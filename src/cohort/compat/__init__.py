"""Keys and arguments of TRL and LLaMA-Factory, read as ours.

The configurations call `trl.translate` (a TRL script's keys) and `llama_factory.translate` (a YAML file); trainers call
`trl_trainer.read_trl_arguments`. `trl_keys` and `llama_factory` hold the tables of keys, from which
`scripts/write_coming_from.py` writes the pages docs/coming-from-*.md.
"""
