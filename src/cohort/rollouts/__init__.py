"""Rollouts: prompts in, rewarded groups of completions out.

Enter at `collect.py` (a batch of groups) and `engine.py` (the Engine interface and the engine of this process, whose
schedule is `decoding.py`). `row_engine.py` is the engine of models that cannot be packed, `sampling.py` samples tokens,
`encoding.py` makes token ids of prompts. Other rooms use Engine, local_engine, Generation, Sampling, Prompt,
encode_prompts and collect.
"""
