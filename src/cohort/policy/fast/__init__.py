"""Faster code for what the model's own code can do too. `policy/paths.py` says which of it a policy takes.

Enter at `layers.py` (decoder layers with hand-written gradients) and `decoder.py` (a decoding step). `activations.py`
keeps what sampling computed for the first update, `products.py` chooses between libraries on the CPU, `cuda_graph.py`
records decoding steps on a GPU. Other rooms use ActivationStore.
"""
