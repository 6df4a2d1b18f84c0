"""The one device of a model: which it is, and models that accelerate has split over several."""

from __future__ import annotations

import logging
from typing import Any

import torch

from cohort.types import UserError

log = logging.getLogger("cohort")

SPLITTING = ("auto", "balanced", "balanced_low_0", "sequential")
"""Values of from_pretrained's device_map that place a model's layers by the devices' free memory."""


def one_device(device_map: Any, device: torch.device, use_cpu: bool) -> torch.device:
    """The device that from_pretrained's device_map names; `device` where it leaves the choice open. Raises UserError
    for several."""
    if use_cpu or device_map in SPLITTING:
        log.info("device_map is %s: training has one device, and the whole model is on %s", device_map, device)
        return device
    names = set(device_map.values()) if isinstance(device_map, dict) else {device_map}
    try:
        devices = {torch.device("cuda", name) if isinstance(name, int) else torch.device(name) for name in names}
    except (RuntimeError, TypeError):  # of another name, such as disk
        devices = set()
    if len(devices) != 1:
        raise UserError(
            f"device_map splits the model over {', '.join(sorted(map(str, names)))}: training has one device. Leave "
            "device_map out, or name one device, such as cuda:1"
        )
    named = devices.pop()
    if named.type == "cuda" and (named.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device_map names {named}, and there are {torch.cuda.device_count()} CUDA devices here")
    return named


def release(model: Any) -> None:
    """Remove the hooks by which accelerate moves inputs between devices. Raises UserError for a model whose weights are
    offloaded."""
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        raise UserError(
            f"weights of this {type(model).__name__} are not in memory: device_map offloaded them, or they were never "
            "loaded. Load the model without device_map; where it does not fit, see `cohort plan`"
        )
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        from accelerate.hooks import remove_hook_from_module

        remove_hook_from_module(model, recurse=True)
    for module in model.modules():
        vars(module).pop("hf_device_map", None)  # else the model counts as split when it is saved


def device_of(model: Any, device: torch.device, use_cpu: bool) -> torch.device:
    """Where the model is trained: on the accelerator that it is on already, else on `device`."""
    places = {parameter.device for parameter in model.parameters()} - {torch.device("cpu")}
    if len(places) > 1:
        log.info("the model was split over %s: it is on %s now", ", ".join(sorted(map(str, places))), device)
    if use_cpu or len(places) != 1:
        return device
    place: torch.device = places.pop()
    if place.type == "cuda":
        torch.cuda.set_device(place)  # graphs and kernels of a run start on the current device
    return place
