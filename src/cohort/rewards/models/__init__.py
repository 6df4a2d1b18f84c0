"""Reward models: sequence or token classifiers of transformers that score completions or steps.

Enter at `classifier.make_classifier`, which makes a reward function from a model's name, directory or object.
`scorer` tokenizes texts and runs the forward pass; `mlp_head` is a classifier with a small MLP as its head.

For other rooms: `classifier.load_classifier`, `load_tokenizer` and `require_one_label` (loading), `scorer.Scorer` and
`Encoded` (scoring and training), and `mlp_head.MLPHeadModel` and `MLPHeadConfig`. Importing `classifier` or `scorer`
does not import torch.
"""
