"""Confining the current process before it runs untrusted code: resource limits, Landlock, capabilities, seccomp.

A newly started process calls `confine` before it has threads. Nothing of this can be undone, and none of it needs
privileges.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys

from .syscalls import architecture, seccomp_filter

THREADS = 64

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_SIGKILL = 9

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_READ_FILE, _READ_DIR, _EXECUTE, _WRITE_FILE, _TRUNCATE = 1 << 2, 1 << 3, 1 << 0, 1 << 1, 1 << 14
_FILE_ACCESS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Landlock version -> number of file access rights it knows (linux/landlock.h); newer versions use the last entry."""
_NET_RIGHTS, _SCOPES = 0b11, 0b11

_libc = ctypes.CDLL(None, use_errno=True)


def confine(
    cpu_seconds: int,
    memory: int,
    file_size: int,
    tasks: int,
    layers: tuple[str, ...],
    readable: tuple[str, ...],
    writable: tuple[str, ...],
    execute: bool = False,
) -> None:
    """Remove the rights that untrusted code must not have.

    memory and file_size: bytes. tasks: how many run on this machine, ours included. layers: of "landlock" and
    "seccomp", those to use. readable and writable: paths. execute: other programs may be started in place of this one.
    Raises OSError where a layer that was asked for does not hold.
    """
    _limit("CPU", cpu_seconds)
    _limit("AS", memory)
    _limit("FSIZE", file_size)
    _limit("CORE", 0)
    _limit("NOFILE", 64)
    _limit("NPROC", THREADS if _own_user() else tasks + THREADS)
    _limit("MEMLOCK", 0)
    if sys.platform != "linux":
        return
    _limit("MSGQUEUE", 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if "landlock" in layers:
        _landlock(readable, writable, execute)
    _drop_capabilities()
    # The parent enforces the time limit, so this process must end with it.
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    if "seccomp" in layers:
        _seccomp(execute)


def _limit(name: str, value: int) -> None:
    limit = getattr(resource, f"RLIMIT_{name}")
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))


def landlock_version() -> int:
    """The kernel's Landlock version; 0 if it has no Landlock."""
    version: int = _libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    return max(0, version)


def _own_user() -> bool:
    """As root, change the real user: the kernel does not apply the limit on processes to root."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    try:
        os.setresuid(0x70000000 + os.getpid(), 0, 0)
    except OSError:
        return False
    return True


def _drop_capabilities() -> None:
    header = struct.pack("=Ii", 0x20080522, 0)
    _checked("capset", _libc.capset(header, bytes(24)))


def _landlock(readable: tuple[str, ...], writable: tuple[str, ...], execute: bool) -> None:
    version = landlock_version()
    if not version:
        raise OSError("this kernel has no Landlock")
    known = (1 << _FS_RIGHTS.get(version, 16)) - 1
    attributes = struct.pack("=QQQ", known, _NET_RIGHTS if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = _libc.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(size), 0)
    _checked("landlock_create_ruleset", rules)
    reading = _READ_FILE | _READ_DIR | (_EXECUTE if execute else 0)
    # In a writable folder everything is allowed except creating devices and sockets, and executing files.
    writing = known & ~(1 << 6 | 1 << 9 | 1 << 11 | _EXECUTE)
    for path, access in [(path, reading) for path in readable] + [(path, writing | reading) for path in writable]:
        _allow(rules, path, access & known)
    _checked("landlock_restrict_self", _libc.syscall(_LANDLOCK_RESTRICT, rules, 0))
    os.close(rules)


def _allow(rules: int, path: str, access: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return
    try:
        if not os.path.isdir(path):
            access &= _FILE_ACCESS
        rule = struct.pack("=Qi", access, fd)
        _checked("landlock_add_rule", _libc.syscall(_LANDLOCK_ADD, rules, 1, rule, 0))
    finally:
        os.close(fd)


def _seccomp(execute: bool) -> None:
    machine = architecture()
    if machine is None:
        raise OSError(f"no seccomp filter is known for {os.uname().machine}")
    code = seccomp_filter(execute, machine)
    instructions = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(instructions))
    # ctypes takes bytes for a pointer; its stubs do not know that.
    address = ctypes.cast(program, ctypes.c_void_p).value  # type: ignore[arg-type]
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, address)


def _prctl(option: int, value: int, pointer: int | None = 0) -> None:
    # The kernel reads 64-bit registers; ctypes passes plain integers as 32 bits.
    arguments = [ctypes.c_ulong(argument or 0) for argument in (value, pointer, 0, 0)]
    _checked(f"prctl {option}", _libc.prctl(option, *arguments))


def _checked(what: str, result: int) -> None:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
