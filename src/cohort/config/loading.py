"""How a model is loaded: the dtype of its weights, and arguments of from_pretrained as plain values."""

from __future__ import annotations

from typing import Any

from cohort.types import did_you_mean

DTYPES = ("float32", "bfloat16", "float16", "auto")


def with_dtype(kwargs: dict[str, Any]) -> dict[str, Any]:
    """from_pretrained's arguments with `dtype`, by that name or its older one, as one of DTYPES. Raises ValueError for
    another."""
    given = {key: kwargs[key] for key in ("dtype", "torch_dtype") if kwargs.get(key) is not None}
    names = {str(dtype).removeprefix("torch.") for dtype in given.values()}
    if len(names) > 1:
        raise ValueError("dtype and torch_dtype are one setting under two names, and differ: give dtype alone")
    for name in names:
        if name not in DTYPES:
            raise ValueError(f"dtype {name!r}" + did_you_mean(name, DTYPES, f": use one of {', '.join(DTYPES)}"))
    others = {key: value for key, value in kwargs.items() if key not in ("dtype", "torch_dtype")}
    return others | ({"dtype": names.pop()} if names else {})


def plain(value: Any) -> Any:
    """The value for JSON or YAML: an object with settings as their mapping, another by its name."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value).removeprefix("torch.")
