"""manifest.json of a checkpoint: the sizes and SHA-256 of its files, and what the run was made with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def write(folder: Path, facts: dict[str, Any]) -> None:
    """Write the manifest of all files that are in the folder. `facts`: what the run was made with (train/facts.py)."""
    files = {str(path.relative_to(folder)): _described(path) for path in _files(folder)}
    text = json.dumps({"files": files, "run": facts}, sort_keys=True, ensure_ascii=False, indent=1)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    with open(folder / MANIFEST, "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(f"{digest}\n{text}\n")


def facts_of(folder: Path) -> dict[str, Any]:
    """What the checkpoint's run was made with; empty for a checkpoint of an earlier version, which has no manifest."""
    if not (folder / MANIFEST).is_file():
        return {}
    facts: dict[str, Any] = _read(folder)["run"]
    return facts


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint; empty where it is whole. Reads all of its files."""
    if not (folder / "state.json").is_file():
        return "it has no state.json"
    if not (folder / MANIFEST).is_file():
        return "" if _predates_manifests(folder) else "it has no manifest.json"
    try:
        files = _read(folder)["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest.json is damaged ({error})"
    for name, described in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != described["size"]:
            return f"{name} has {size:,} bytes instead of {described['size']:,}"
        if _sha256(path) != described["sha256"]:
            return f"{name} was changed, or is another checkpoint's: its SHA-256 is not the manifest's"
    return ""


def _predates_manifests(folder: Path) -> bool:
    """Whether the state says no more of the format than before there were manifests."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(state, dict) and not state.get("has_manifest", False)


def _read(folder: Path) -> dict[str, Any]:
    digest, _, text = (folder / MANIFEST).read_bytes().partition(b"\n")
    if hashlib.sha256(text.removesuffix(b"\n")).hexdigest().encode() != digest:
        raise ValueError("its first line is not the SHA-256 of the others")
    record: dict[str, Any] = json.loads(text.decode("utf-8", "surrogatepass"))
    return record


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def _described(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
