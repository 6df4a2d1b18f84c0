"""Folders that untrusted programs write in: their size while a program runs, and their removal after it."""

from __future__ import annotations

import errno
import logging
import os
import stat
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

log = logging.getLogger("cohort")

ENTRY = 16 << 10
"""What a file or folder counts beside its content in bytes, so that the number of entries has a limit too."""

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
"""Flags of os.open for a folder that is no link."""

_warned = threading.Event()


@contextmanager
def scratch() -> Iterator[str]:
    """A new folder that a program may write in; afterwards it is removed, whatever the program left in it."""
    folder = tempfile.mkdtemp(prefix="cohort-")
    # If we are root, the program runs as another user: see kernel._own_user.
    os.chmod(folder, 0o777)
    try:
        yield folder
    finally:
        remove(folder)


def remove(folder: str) -> None:
    """Remove the folder. What cannot be removed is reported in one warning for the whole run; nothing is raised."""
    problem: OSError | None = None
    for wait in (0.0, 0.05, 0.2):
        # Without a sandbox, a process that the program left may write a little longer.
        time.sleep(wait)
        try:
            problem = _emptied(folder)
            os.rmdir(folder)
            return
        except OSError as error:
            problem = problem or error
    if not _warned.is_set():
        _warned.set()
        log.warning(
            "unit_tests: %s, which a program left, cannot be removed: %s. Later ones are not reported", folder, problem
        )


def _emptied(folder: str) -> OSError | None:
    """Remove what is in the folder; the first problem, if there is one.

    Folders inside are moved to the top before they are removed: their depth takes neither recursion, nor open
    descriptors, nor paths longer than the system allows.
    """
    with suppress(OSError):
        os.chmod(folder, 0o700)
    problem: OSError | None = None
    left: set[str] = set()
    top = os.open(folder, FOLDER)
    try:
        while names := set(os.listdir(top)) - left:
            for name in names:
                try:
                    _remove_entry(top, name)
                except OSError as error:
                    problem = problem or error
                    left.add(name)
    finally:
        os.close(top)
    return problem


def _remove_entry(top: int, name: str) -> None:
    """Remove an entry of the folder `top`; the folders in it go to `top`."""
    if not _opened_up(name, top):
        os.unlink(name, dir_fd=top)
        return
    inside = os.open(name, FOLDER, dir_fd=top)
    try:
        for child in os.listdir(inside):
            if _opened_up(child, inside):
                os.rename(child, uuid.uuid4().hex, src_dir_fd=inside, dst_dir_fd=top)
            else:
                os.unlink(child, dir_fd=inside)
    finally:
        os.close(inside)
    os.rmdir(name, dir_fd=top)


def _opened_up(name: str, parent: int) -> bool:
    """Whether the entry is a folder. It is then readable and writable, which moving it needs too."""
    if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
        return False
    with suppress(PermissionError):
        os.chmod(name, 0o700, dir_fd=parent)
    return True


def size(folder: str, process: int, enough: int) -> int:
    """Bytes of the folder's files and of deleted files that the process has open; counted until there are `enough`.

    A folder whose path is too long to be listed counts as `enough`.
    """
    total = _deleted(process)
    folders = [folder]
    while folders and total < enough:
        path = folders.pop()
        try:
            entries = _entries(path)
        except OSError as error:
            total += enough if error.errno == errno.ENAMETOOLONG else 0
            continue
        for name, found in entries:
            total += _bytes_of(found) + ENTRY
            if stat.S_ISDIR(found.st_mode):
                folders.append(f"{path}/{name}")
    return total


def _entries(folder: str) -> list[tuple[str, os.stat_result]]:
    try:
        opened = os.open(folder, FOLDER)
    except PermissionError:
        os.chmod(folder, 0o700)
        opened = os.open(folder, FOLDER)
    entries = []
    try:
        # Relative to its folder, an entry is found at once, however long the path is.
        for entry in os.scandir(opened):
            with suppress(FileNotFoundError):
                entries.append((entry.name, entry.stat(follow_symlinks=False)))
    finally:
        os.close(opened)
    return entries


def _deleted(process: int) -> int:
    total = 0
    with suppress(OSError):
        for name in os.listdir(f"/proc/{process}/fd"):
            with suppress(OSError):
                found = os.stat(f"/proc/{process}/fd/{name}")
                # Descriptor 0 is the given input, a deleted file of ours.
                total += _bytes_of(found) if stat.S_ISREG(found.st_mode) and not found.st_nlink and name != "0" else 0
    return total


def _bytes_of(found: os.stat_result) -> int:
    return max(found.st_size, found.st_blocks * 512) if stat.S_ISREG(found.st_mode) else 0
