"""The system calls that a worker may not make, as a classic BPF program for seccomp(2).

The program allows what it does not name, since CUDA, ROCm and torch need more calls than anyone has listed, except
that numbers newer than those read through here do not exist (ENOSYS). Layout of the data it reads: ``struct
seccomp_data`` in linux/seccomp.h; number u32 at 0, architecture u32 at 4, arguments u64 from 16.
"""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Mapping, Sequence

LAST_KNOWN = 462  # mseal; the numbers from 424 on are the same on both architectures

_LOAD, _JEQ, _JGT, _JSET, _AND, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x54, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF_0000, 0x8000_0000, 0x0005_0000
_NUMBER, _ARCH, _ARG0, _ARG1, _ARG2, _ARG3 = 0, 4, 16, 24, 32, 40
_CLONE_THREAD = 0x10000
_SET_MODE_FILTER, _GET_ACTION_AVAIL, _TSYNC = 1, 2, 1

AUDIT_ARCH = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
SECCOMP = {"x86_64": 317, "aarch64": 277}

# name: (x86_64, aarch64 or None where that architecture has no such call)
REFUSED: dict[str, tuple[int, int | None]] = {
    # The network, and sockets that others listen on (smpd's own control socket among them).
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    # Other processes.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "tkill": (200, 130),
    # Of another session it would be taken for what a command left behind, and reaped as that (smpd.host.orphans).
    "setsid": (112, 157),
    # New processes.
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    # Shared objects outside the file system.
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "semctl": (66, 191),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    # What others do with their files, which Landlock does not hide: names, and when they are used.
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27),
    "lookup_dcookie": (212, 18),
    # Every file system of the machine at once.
    "sync": (162, 81),
    "syncfs": (306, 267),
    # Memory that nobody else can look into.
    "memfd_secret": (447, 447),
    # Large, seldom needed parts of the kernel.
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    # Namespaces, mounts and handles, which lead round Landlock.
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "statmount": (457, 457),
    "listmount": (458, 458),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    # What Landlock does not cover of a file, or not in each version.
    "truncate": (76, 45),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    # The machine.
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "acct": (163, 89),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "personality": (135, 92),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "vhangup": (153, 58),
}
_SOCKET, _SOCKETPAIR, _CLONE, _CLONE3, _PRLIMIT64 = (41, 198), (53, 199), (56, 220), (435, 435), (302, 261)
_IO_URING = (425, 426, 427)  # setup, enter, register, on both
# By their first argument, of this process only: sched_setparam, sched_setscheduler, sched_setaffinity, sched_setattr.
# The kernel lets them change any process of the same user, so smpd could be starved.
_OF_OWN = ((142, 118), (144, 119), (203, 122), (314, 274))
# By their second, and with this first argument: setpriority (PRIO_PROCESS), ioprio_set (IOPRIO_WHO_PROCESS).
_OF_OWN_KIND = (((141, 140), 0), ((251, 30), 1))
# What these may not be told, by the number of the argument that says it.
_PRCTL, _FCNTL, _IOCTL, _MMAP = (157, 167), (72, 25), (16, 29), (9, 222)
# To outlive smpd (PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER), to leave a core or be traced (PR_SET_DUMPABLE,
# PR_SET_PTRACER), to look like another program (PR_SET_MM).
_PRCTL_REFUSED = (1, 36, 4, 0x5961_6D61, 35)
# Another process as the owner of a descriptor is sent any signal, SIGKILL too: F_SETOWN, F_SETOWN_EX, F_SETSIG.
# F_SETLEASE and F_NOTIFY tell of, and hold up, others' use of files.
_FCNTL_REFUSED = (8, 15, 10, 1024, 1026)
# FIOSETOWN and SIOCSPGRP do as F_SETOWN; TIOCSTI and TIOCLINUX type into a terminal, TIOCSETD, TIOCSPGRP and TIOCSCTTY
# take it over.
_IOCTL_REFUSED = (0x8901, 0x8902, 0x5412, 0x541C, 0x5423, 0x5410, 0x540E)
# Each and the argument that has its flags; those of openat2 lie in memory, which no filter sees.
_OPEN, _OPENAT, _OPENAT2 = (2, None), (257, 56), (437, 437)
_MAP_SHARED, _MAP_ANONYMOUS, _MAP_GROWSDOWN = 0x01, 0x20, 0x100
# What a network needs of REFUSED, once the families are limited.
_CLIENT = ("socket", "connect")
_WATCHES = ("inotify_init1", "inotify_add_watch")
_SIGNALS = ((62, 129), (234, 131), (129, 138), (297, 240))  # kill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo


Sockets = Mapping[int, Sequence[int]]


def program(
    machine: str,
    pid: int,
    sockets: Sockets | None = None,
    *,
    shared_memory: bool = True,
    watches: bool = False,
    openat2: bool = True,
) -> bytes:
    """Return the filter, an array of ``struct sock_filter``.

    Args:
        machine: ``x86_64`` or ``aarch64``, as ``os.uname().machine`` has it.
        pid: this process, the only one that may be signalled.
        sockets: address families of the sockets that may be made and connected, and the types of each.
        shared_memory: let memory be mapped that no limit counts (MAP_SHARED with MAP_ANONYMOUS).
        watches: let folders be watched.
        openat2: let there be such a call: not where Landlock does not know of truncating.
    """
    let = (_CLIENT if sockets else ()) + (_WATCHES if watches else ())
    column = list(AUDIT_ARCH).index(machine)
    refuse = _op(_RETURN, _ERRNO | errno.EPERM)
    missing = _op(_RETURN, _ERRNO | errno.ENOSYS)
    allow = _op(_RETURN, _ALLOW)
    code = [_op(_LOAD, _ARCH), _op(_JEQ, AUDIT_ARCH[machine], 1, 0), _op(_RETURN, _KILL)]
    # The x32 interface sets bit 30 of the number, so it falls under this too.
    code += [_op(_LOAD, _NUMBER), _op(_JGT, LAST_KNOWN, 0, 1), missing]
    for name, numbers in REFUSED.items():
        number = numbers[column]
        if number is not None and name not in let:
            code += [_op(_JEQ, number, 0, 1), refuse]
    # glibc falls back to clone, whose flags a filter can read.
    code += [_op(_JEQ, _CLONE3[column], 0, 1), missing]
    code += _case(_CLONE[column], [_op(_LOAD, _ARG0), _op(_JSET, _CLONE_THREAD, 1, 0), refuse, allow])
    # A datagram pair could still send to any address; a stream or seqpacket pair cannot.
    pairs: Sockets = {socket.AF_UNIX: (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)}
    code += _case(_SOCKETPAIR[column], _of_family(pairs, refuse, allow))
    if sockets:
        code += _case(_SOCKET[column], _of_family(sockets, refuse, allow))
    for numbers in _SIGNALS:
        code += _case(numbers[column], [_op(_LOAD, _ARG0), _op(_JEQ, pid, 1, 0), refuse, allow])
    for numbers in (_PRLIMIT64, *_OF_OWN):
        code += _case(numbers[column], _own(_ARG0, pid, refuse, allow))
    for numbers, kind in _OF_OWN_KIND:
        code += _case(
            numbers[column], [_op(_LOAD, _ARG0), _op(_JEQ, kind, 1, 0), refuse, *_own(_ARG1, pid, refuse, allow)]
        )
    for numbers, flags in ((_OPEN, _ARG1), (_OPENAT, _ARG2)):
        number = numbers[column]
        if number is not None:
            code += _case(number, _opened(flags, refuse, allow))
    if not openat2:
        code += [_op(_JEQ, _OPENAT2[column], 0, 1), missing]
    code += _case(_PRCTL[column], _none_of(_ARG0, _PRCTL_REFUSED, refuse, allow))
    code += _case(_FCNTL[column], _none_of(_ARG1, _FCNTL_REFUSED, refuse, allow))
    code += _case(_IOCTL[column], _none_of(_ARG1, _IOCTL_REFUSED, refuse, allow))
    # A mapping that grows down is counted as a stack, which no limit of its first size holds.
    mapping = [_op(_LOAD, _ARG3), _op(_JSET, _MAP_GROWSDOWN, 0, 1), refuse]
    if not shared_memory:
        both = _MAP_SHARED | _MAP_ANONYMOUS
        mapping += [_op(_AND, both), _op(_JEQ, both, 0, 1), refuse]
    code += _case(_MMAP[column], [*mapping, allow])
    return b"".join([*code, allow])


def without_io_uring() -> bytes:
    """Return a filter for which io_uring does not exist: for libuv, which aborts if a ring it has is refused later."""
    code = [_op(_LOAD, _NUMBER)]
    for number in _IO_URING:
        code += _case(number, [_op(_RETURN, _ERRNO | errno.ENOSYS)])
    return b"".join([*code, _op(_RETURN, _ALLOW)])


def _op(code: int, k: int, jump_true: int = 0, jump_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, jump_true, jump_false, k)


def _case(value: int, body: list[bytes]) -> list[bytes]:
    return [_op(_JEQ, value, 0, len(body)), *body]


def _own(argument: int, pid: int, refuse: bytes, allow: bytes) -> list[bytes]:
    """Decide by an argument that is 0 or this process."""
    return [_op(_LOAD, argument), _op(_JEQ, 0, 2, 0), _op(_JEQ, pid, 1, 0), refuse, allow]


def _none_of(argument: int, values: Sequence[int], refuse: bytes, allow: bytes) -> list[bytes]:
    """Decide by an argument that must be none of these."""
    checks = [_op(_JEQ, value, len(values) - at, 0) for at, value in enumerate(values)]
    return [_op(_LOAD, argument), *checks, allow, refuse]


def _opened(argument: int, refuse: bytes, allow: bytes) -> list[bytes]:
    """Decide by the flags of a file: none is opened neither to read nor to write, nor emptied by who only reads it.

    Landlock asks for no right to do the first, and before its third version neither for one to empty a file.
    """
    return [
        *(_op(_LOAD, argument), _op(_AND, os.O_ACCMODE), _op(_JEQ, os.O_ACCMODE, 3, 0), _op(_JEQ, os.O_RDONLY, 0, 3)),
        *(_op(_LOAD, argument), _op(_JSET, os.O_TRUNC, 0, 1), refuse, allow),
    ]


def _of_family(sockets: Sockets, refuse: bytes, allow: bytes) -> list[bytes]:
    """Decide by the first two arguments: family, and type (whose upper bits are flags)."""
    body = [_op(_LOAD, _ARG0)]
    for family, types in sockets.items():
        checks = [_op(_JEQ, kind, len(types) - at, 0) for at, kind in enumerate(types)]
        body += _case(family, [_op(_LOAD, _ARG1), _op(_AND, 0xF), *checks, refuse, allow])
    return [*body, refuse]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def available(libc: ctypes.CDLL, machine: str) -> bool:
    """Whether the kernel can refuse a call with an error number."""
    action = ctypes.c_uint32(_ERRNO)
    return machine in SECCOMP and libc.syscall(SECCOMP[machine], _GET_ACTION_AVAIL, 0, ctypes.byref(action)) == 0


def install(libc: ctypes.CDLL, machine: str, code: bytes) -> None:
    """Put a filter on all threads of this process (TSYNC), for ever, beside those that are there.

    Raises:
        OSError: the kernel refused it.
    """
    filters = _Program(len(code) // 8, code)
    result = libc.syscall(SECCOMP[machine], _SET_MODE_FILTER, _TSYNC, ctypes.byref(filters))
    if result > 0:
        raise OSError(errno.ESRCH, f"thread {result} cannot be covered")
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
