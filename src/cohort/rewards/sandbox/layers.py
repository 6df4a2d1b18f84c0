"""Which layers of isolation this machine has, and the command lines that use them."""

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
    "allowed, or a Linux kernel from 5.13 with Landlock and seccomp; `cohort doctor` shows what this machine has"
)
FOLDER = Path(__file__).parent
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/localtime")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
TMP_SIZE = 64 << 20
"""Size of the private /tmp under bubblewrap in bytes; without it, of all files that a program may write."""
PROBE_SECONDS = 20.0


@dataclass(frozen=True)
class Limits:
    """Resource limits of one process. Limits(cpu_seconds=4, memory=512 << 20)"""

    cpu_seconds: float = 4.0
    """Processor time in seconds; the limit of elapsed time is twice that plus one second."""
    memory: int = 512 << 20
    """Address space in bytes."""
    file_size: int = 16 << 20
    """Size of one file in bytes; standard output counts as a file where it is read."""

    @property
    def wall_seconds(self) -> float:
        return 2 * self.cpu_seconds + 1


@dataclass(frozen=True)
class Layers:
    """Which layers work on this machine: None for one that works, else the reason why it does not."""

    bubblewrap: str | None
    landlock: str | None
    seccomp: str | None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, missing in vars(self).items() if missing is None)

    @property
    def safe(self) -> bool:
        """Whether the working layers keep a program from the network, the host's files and other processes."""
        if self.seccomp is None:
            return self.bubblewrap is None or self.landlock is None
        # Without seccomp only the limit on processes stops a fork bomb, and that limit does not apply to root.
        return self.bubblewrap is None and os.geteuid() != 0

    def described(self) -> list[tuple[str, str]]:
        """(layer, "yes" or the reason why not) of each layer."""
        return [(name, "yes" if missing is None else f"no: {missing}") for name, missing in vars(self).items()]


NONE = Layers("left out", "left out", "left out")


@lru_cache(maxsize=1)
def find_layers() -> Layers:
    """Try each layer once, in a separate process."""
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
    """None if the check passes under only these layers, else the last line that the process wrote."""
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
    """Whether the layers are safe. Raises UserError if they are not, unless unsandboxed programs are allowed."""
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
        # Without a private file system, a program may write files only in the folder that it was given.
        "file_size": limits.file_size if writable else 0,
        "tasks": _tasks(),
        "layers": tuple(name for name in layers.names if name != "bubblewrap"),
        "readable": (*SYSTEM, *DEVICES, sys.base_prefix, str(FOLDER), *paths),
        "writable": (*writable, "/dev/null"),
        "execute": execute,
    }


def python(layers: Layers, code: str, paths: tuple[str, ...] = ()) -> list[str]:
    """The command of a bare Python that can import `sandbox` and the standard library, under bubblewrap if it works."""
    # Last: no file beside the sandbox may hide a module of the standard library.
    start = f"import sys; sys.path.append({str(FOLDER.parent)!r})\n"
    command = [os.path.realpath(sys.executable), "-I", "-S", "-c", start + code]
    return [*_bubblewrap(paths), *command] if layers.bubblewrap is None else command


def _bubblewrap(paths: tuple[str, ...]) -> list[str]:
    command = [shutil.which("bwrap") or "bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--as-pid-1"]
    command += ["--cap-drop", "ALL", "--dev", "/dev", "--remount-ro", "/dev"]
    # This mount comes first, because Python or this package may be under /tmp.
    command += ["--size", str(TMP_SIZE), "--tmpfs", "/tmp"]
    for path in (*SYSTEM, sys.base_prefix, str(FOLDER), *paths):
        if os.path.islink(path) and not path.startswith("/etc"):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            command += ["--ro-bind", path, path]
    return [*command, "--remount-ro", "/", "--chdir", "/tmp", "--"]


def _tasks() -> int:
    """Tasks that run on this machine: /proc/loadavg's `running/all`."""
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    except OSError:
        return 4096
