"""Which fast paths a policy takes, and why. `off` runs the model's own code on padded rows."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch

from cohort.policy.fast.products import onednn_is_better


class FastPath(NamedTuple):
    """FastPath(taken=False, reason="Gemma2DecoderLayer is not supported")"""

    taken: bool
    reason: str


@dataclass(frozen=True)
class FastPaths:
    """Every fast path, with whether it is taken and the condition that decided it."""

    packed: FastPath
    """A group is one stream without padding, its prompt once (packed/); else padded rows and transformers' generate."""
    layers: FastPath
    """Decoder layers with hand-written gradients (fast/layers.py); else the model's own."""
    decoder: FastPath
    """A decoding step with rearranged weights (fast/decoder.py); else the model's own layers."""
    reuse: FastPath
    """The first update takes the activations of sampling (fast/activations.py); else it runs the forward pass."""
    forks: FastPath
    """Completions that begin with the same tokens are decoded as one row; else each has a row."""
    cuda_graph: FastPath
    """A decoding step is recorded as a CUDA graph (fast/cuda_graph.py)."""
    flex_attention: FastPath
    """FlexAttention (packed/flex.py); else the attention of packed/tiles.py."""
    onednn: FastPath
    """float32 products by oneDNN (fast/products.py); else by PyTorch's default."""

    def without(self, reason: str, *names: str) -> FastPaths:
        """The same with these paths not taken."""
        return replace(self, **{name: FastPath(False, reason) for name in names})

    def lines(self) -> list[str]:
        """`name: yes|no, reason`, one line for each path."""
        paths = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return [f"{name}: {'yes' if path.taken else 'no'}, {path.reason}" for name, path in paths]

    def summary(self) -> str:
        """One line for the log: the paths that are taken, then why others are not."""
        paths = [(field.name, getattr(self, field.name)) for field in fields(self)]
        taken = ", ".join(name for name, path in paths if path.taken) or "none"
        reasons: dict[str, list[str]] = {}
        for name, path in paths:
            if not path.taken:
                reasons.setdefault(path.reason, []).append(name)
        return "; ".join([taken, *(f"not {', '.join(names)}: {reason}" for reason, names in reasons.items())])


NAMES = tuple(field.name for field in fields(FastPaths))
OWN_LAYERS = ("layers", "decoder", "reuse", "cuda_graph")
"""Paths that replace the model's own layers."""


FORKING = ("cpu",)
"""Devices on which `forks` is taken. On a GPU a change of the rows waits for the device, and rows cost little."""


def possible_paths(device: torch.device, why_not_layers: str) -> FastPaths:
    """The paths that the device and the model's architecture allow, before anything is compared. `why_not_layers`: why
    the model's layers cannot be replaced; empty where they can."""
    on_cpu, on_cuda = device.type == "cpu", device.type == "cuda"
    faster = on_cpu and onednn_is_better()
    paths = FastPaths(
        packed=FastPath(True, "equal to the model's own forward pass"),
        layers=FastPath(True, "a decoder of Llama's family"),
        decoder=FastPath(True, "a decoder of Llama's family"),
        reuse=FastPath(on_cpu, "on a CPU, where an update takes all samples at once" if on_cpu else "CPU only"),
        forks=FastPath(device.type in FORKING, "on a CPU" if on_cpu else "CPU only"),
        cuda_graph=FastPath(on_cuda, "on CUDA, compared with an eager step first" if on_cuda else "CUDA only"),
        flex_attention=FastPath(on_cuda, "on CUDA, compared with plain attention first" if on_cuda else "CUDA only"),
        onednn=FastPath(faster, "an AMD processor" if faster else "AMD processors only"),
    )
    return paths.without(why_not_layers, *OWN_LAYERS) if why_not_layers else paths
