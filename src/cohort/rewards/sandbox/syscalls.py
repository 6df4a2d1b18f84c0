"""The system calls that a confined program may not make, as a seccomp filter.

Numbers are from the kernel's arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h (aarch64).
Calls that are not listed are allowed: reading and writing open files, memory, time, threads, and opening files, which
Landlock and namespaces restrict.
"""

from __future__ import annotations

import os
import struct
import sys

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine -> (column of DENIED, AUDIT_ARCH of linux/audit.h)."""

DENIED: dict[str, tuple[int | None, int | None]] = {
    # processes
    "fork": (57, None),
    "vfork": (58, None),
    "execveat": (322, 281),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "clone3": (435, 435),
    # signals and other processes
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "get_robust_list": (274, 100),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    # network
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    # namespaces, mounts and the machine
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "personality": (135, 92),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "nfsservctl": (180, 42),
    # identity and limits
    "setuid": (105, 146),
    "setgid": (106, 144),
    "setreuid": (113, 145),
    "setregid": (114, 143),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "setgroups": (116, 159),
    "setfsuid": (122, 151),
    "setfsgid": (123, 152),
    "capset": (126, 91),
    "setrlimit": (160, 164),
    # wide kernel interfaces
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "lookup_dcookie": (212, 18),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27),
    "io_setup": (206, 0),
    "io_submit": (209, 2),
    # memory that no limit counts or that outlives the process
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    # file attributes, which Landlock leaves alone
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    "truncate": (76, 45),
    "fallocate": (285, 47),  # it takes gigabytes of a disk between two looks at a program's folder
    "mknod": (133, None),
    "mknodat": (259, 33),
    "flock": (73, 32),
}

CLONE, EXECVE, FCNTL, IOCTL, PRCTL, PRLIMIT64 = (56, 220), (59, 221), (72, 25), (16, 29), (157, 167), (302, 261)
CLONE_THREAD = 0x10000
PR_SET_PDEATHSIG = 1

SIGNAL_OWNERS = (8, 10, 15)
"""fcntl's F_SETOWN, F_SETSIG, F_SETOWN_EX: a file that signals another process when it is written to."""
DENIED_IOCTLS = (0x5412, 0x541C, 0x8901, 0x8902)
"""TIOCSTI and TIOCLINUX type into a terminal; FIOSETOWN and SIOCSPGRP do what F_SETOWN does."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_X32 = 0x40000000


def architecture() -> tuple[int, int] | None:
    """This process's entry of ARCHITECTURES; None on other architectures."""
    return ARCHITECTURES.get(os.uname().machine) if sys.maxsize > 1 << 32 else None


def seccomp_filter(execute: bool, machine: tuple[int, int]) -> bytes:
    """A classic BPF program (linux/seccomp.h); execute: execve is allowed."""
    column, audit = machine
    program = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if column == 0:
        program += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    for name, numbers in DENIED.items():
        number = numbers[column]
        if number is not None:
            # A filter cannot read clone3's flags (they are in memory). Told that it does not exist, glibc uses clone.
            program += [
                (_EQUAL, 0, 1, number),
                (_RETURN, 0, 0, _ERRNO | (_ENOSYS if name == "clone3" else _EPERM)),
            ]
    if not execute:
        program += [(_EQUAL, 0, 1, EXECVE[column]), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    program += _argument_rule(CLONE[column], 0, [(_ANY_BIT, 1, 0, CLONE_THREAD)])
    program += _argument_rule(FCNTL[column], 1, [(_EQUAL, 0, 1, value) for value in SIGNAL_OWNERS])
    program += _argument_rule(IOCTL[column], 1, [(_EQUAL, 0, 1, value) for value in DENIED_IOCTLS])
    program += _argument_rule(PRCTL[column], 0, [(_EQUAL, 0, 1, PR_SET_PDEATHSIG)])
    # A call that sets a limit passes a pointer that is not null; either half of it may be nonzero.
    program += _argument_rule(PRLIMIT64[column], 2, [(_EQUAL, 1, 0, 0)])
    program += _argument_rule(PRLIMIT64[column], 2, [(_EQUAL, 1, 0, 0)], high=True)
    program.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _argument_rule(
    number: int, argument: int, tests: list[tuple[int, int, int, int]], high: bool = False
) -> list[tuple[int, int, int, int]]:
    """Instructions that deny one call where a test of an argument's half falls through; the number stays loaded."""
    checks = [step for test in tests for step in (test, (_RETURN, 0, 0, _ERRNO | _EPERM))]
    place = _ARGUMENTS + 8 * argument + (4 if high else 0)
    body = [(_LOAD, 0, 0, place), *checks, (_LOAD, 0, 0, _NUMBER)]
    return [(_EQUAL, 0, len(body), number), *body]
