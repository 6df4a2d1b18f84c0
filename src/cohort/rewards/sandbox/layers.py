"""What this machine has to run untrusted code in, and the command lines that use it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cohort.types import UserError

INSTALL = (
    "Untrusted programs need bubblewrap (apt install bubblewrap, dnf install bubblewrap) where user namespaces are "
    "allowed, or a Linux kernel from 5.13 with Landlock and seccomp; `cohort doctor` says what this machine has"
)
FOLDER = Path(__file__).parent
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/localtime")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
TMP_SIZE = 64 << 20
"""Bytes of the private /tmp under bubblewrap."""
PROBE_SECONDS = 20.0


@dataclass(frozen=True)
class Limits:
    """What one process may use. Limits(cpu_seconds=4, memory=512 << 20)"""

    cpu_seconds: float = 4.0
    """Of processor time; twice as much, and a second, on the clock."""
    memory: int = 512 << 20
    """Bytes of address space."""
    file_size: int = 16 << 20
    """Bytes of one file, standard output included where it is read."""

    @property
    def wall_seconds(self) -> float:
        return 2 * self.cpu_seconds + 1


@dataclass(frozen=True)
class Layers:
    """Which layers hold: None for one that does, else why it does not."""

    bubblewrap: str | None
    landlock: str | None
    seccomp: str | None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, missing in vars(self).items() if missing is None)

    @property
    def safe(self) -> bool:
        """Whether what is there keeps a program from the network, the host's files and other processes."""
        if self.seccomp is None:
            return self.bubblewrap is None or self.landlock is None
        # Without seccomp only the limit on processes stops a fork bomb, and it does not bind root.
        return self.bubblewrap is None and os.geteuid() != 0

    def described(self) -> list[tuple[str, str]]:
        """(layer, "yes" or why not) of each."""
        return [(name, "yes" if missing is None else f"no: {missing}") for name, missing in vars(self).items()]


NONE = Layers("left out", "left out", "left out")


@lru_cache(maxsize=1)
def find_layers() -> Layers:
    """Try each layer once in a process of its own."""
    if sys.platform != "linux":
        missing = f"{sys.platform} has none"
        return Layers(missing, missing, missing)
    if shutil.which("bwrap") is None:
        bubblewrap: str | None = "bwrap is not installed"
    else:
        bubblewrap = _probe(Layers(None, "", ""), "open('/tmp/x', 'w').close(); assert not os.path.exists('/proc/1')")
    return Layers(
        bubblewrap,
        _probe(Layers("", None, ""), "refused(lambda: open('/proc/self/status'))"),
        _probe(Layers("", "", None), "refused(os.fork); import socket; refused(socket.socket)"),
    )


def _probe(layers: Layers, check: str) -> str | None:
    """None where the check passes under these layers alone, else the last line that the process wrote."""
    code = (
        "import os\n"
        "def refused(action):\n"
        "    try:\n        action()\n    except OSError:\n        return\n"
        "    raise SystemExit('it is there and does not hold')\n" + check
    )
    confined = confinement(layers, Limits())
    command = python(layers, f"from sandbox.kernel import confine; confine(**{confined!r})\n{code}")
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env={}, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return f"no answer within {PROBE_SECONDS:.0f} seconds"
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return None if done.returncode == 0 else (said[-1] if said else f"exit {done.returncode}")


def require(layers: Layers, allow_unsandboxed: bool) -> bool:
    """Whether the layers are safe. Raises UserError where they are not and that is not allowed."""
    if layers.safe or allow_unsandboxed:
        return layers.safe
    missing = "; ".join(f"{name}: {why}" for name, why in layers.described())
    raise UserError(
        f"this machine has no sandbox for untrusted programs ({missing}). {INSTALL}. "
        "allow_unsandboxed: true runs them with resource limits alone, as you, with your files and your network"
    )


def confinement(
    layers: Layers, limits: Limits, folder: str = "", paths: tuple[str, ...] = (), execute: bool = False
) -> dict[str, Any]:
    """`kernel.confine`'s arguments. folder: writable. paths: readable beside the system's."""
    writable = tuple(path for path in (folder, "/tmp" if layers.bubblewrap is None else "") if path)
    return {
        "cpu_seconds": max(1, round(limits.cpu_seconds + 0.5)),
        "memory": limits.memory,
        # Without a file system of its own a program writes no files, unless it was given a folder.
        "file_size": limits.file_size if writable else 0,
        "tasks": _tasks(),
        "layers": tuple(name for name in layers.names if name != "bubblewrap"),
        "readable": (*SYSTEM, *DEVICES, sys.base_prefix, str(FOLDER), *paths),
        "writable": (*writable, "/dev/null"),
        "execute": execute,
    }


def python(layers: Layers, code: str, folder: str = "", paths: tuple[str, ...] = ()) -> list[str]:
    """The command of a bare Python that finds `sandbox` beside the standard library, in bubblewrap where it holds."""
    start = f"import sys; sys.path.insert(0, {str(FOLDER.parent)!r})\n"
    command = [os.path.realpath(sys.executable), "-I", "-S", "-c", start + code]
    return [*_bubblewrap(folder, paths), *command] if layers.bubblewrap is None else command


def _bubblewrap(folder: str, paths: tuple[str, ...]) -> list[str]:
    command = [shutil.which("bwrap") or "bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--as-pid-1"]
    command += ["--cap-drop", "ALL", "--dev", "/dev", "--remount-ro", "/dev"]
    # Before the others: Python or this package may lie under /tmp.
    command += ["--size", str(TMP_SIZE), "--tmpfs", "/tmp"]
    for path in (*SYSTEM, sys.base_prefix, str(FOLDER), *paths):
        if os.path.islink(path) and not path.startswith("/etc"):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            command += ["--ro-bind", path, path]
    if folder:
        command += ["--bind", folder, folder]
    return [*command, "--remount-ro", "/", "--chdir", folder or "/tmp", "--"]


def _tasks() -> int:
    """Tasks that run on this machine: /proc/loadavg's `running/all`."""
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    except OSError:
        return 4096
