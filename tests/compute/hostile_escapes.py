"""Ways out that a hostile processor tries, each by its name. Copied beside ``hostile.py``."""

import ctypes
import fcntl
import mmap
import os
import resource
import socket
import threading
from collections.abc import Callable
from typing import Any

X86 = os.uname().machine == "x86_64"
PARENT = os.getppid()
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def call(x86: int, arm: int, *arguments: Any) -> int:
    """A system call by its numbers."""
    result = libc.syscall(x86 if X86 else arm, *arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)


def prctl(*arguments: int) -> None:
    if libc.prctl(*arguments, *[0] * (5 - len(arguments))) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def end() -> int:
    """One end of a pair of sockets."""
    return socket.socketpair()[0].detach()


def mapped(flags: int, length: int = 1 << 20) -> int:
    """Memory by mmap(2), which is 9 or 222."""
    return call(9, 222, None, ctypes.c_size_t(length), 3, flags, -1, ctypes.c_size_t(0))


def grow(path_or_fd: int) -> None:
    os.ftruncate(path_or_fd, 1 << 20)


def write_memfd() -> None:
    fd = os.memfd_create("hoard")
    try:
        os.write(fd, b"x")
    finally:
        os.close(fd)


def many_files() -> int:
    held = []
    try:
        while len(held) < 5000:
            held.append(os.open("/dev/null", os.O_RDONLY))
        return len(held)
    finally:
        for fd in held:
            os.close(fd)


def terminal() -> str:
    """A descriptor that leads to anything but the link, the rings, pipes, event queues and /dev/null."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    # Of /proc and /sys, the entries that the rules of Landlock are about.
    good = ("socket:", "anon_inode:", "/memfd:", "/dev/null", "pipe:", "/proc/", "/sys/", "/dev/nvidia")
    strangers = [each for each in found if not each.startswith(good)]
    if not strangers:
        raise PermissionError
    return repr(strangers)


def in_a_thread(act: Callable[[], Any]) -> Any:
    ended: list[BaseException | Any] = []

    def work() -> None:
        try:
            ended.append(act())
        except BaseException as error:  # noqa: BLE001 - it is the answer
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(ended[0], BaseException):
        raise ended[0]
    return ended[0]


def task(name: str) -> str:
    return f"/proc/self/task/{threading.get_native_id()}/{name}"


# ruff: noqa: SIM115 - an act that succeeds has failed the test
#: Each must raise PermissionError, but for those of OTHERWISE.
ACTS: dict[str, Callable[[], Any]] = {
    # What others do, and who is there.
    "sockets_of_all": lambda: open("/proc/self/net/unix").read(),
    "connections_of_all": lambda: open(task("net/tcp")).read(),
    "mounts": lambda: open("/proc/self/mountinfo").read(),
    "processes_of_all": lambda: os.listdir("/proc"),
    "environment_of_the_parent": lambda: open(f"/proc/{PARENT}/environ").read(),
    "arguments_of_init": lambda: open("/proc/1/cmdline").read(),
    "descriptors_of_the_parent": lambda: os.listdir(f"/proc/{PARENT}/fd"),
    "program_of_the_parent": lambda: os.readlink(f"/proc/{PARENT}/exe"),
    "watch_names": lambda: call(254, 27, call(294, 26, 0), b"/", 0x100),
    "watch_files": lambda: call(300, 262, 0, 0),
    # Files by another way.
    "root_by_a_link": lambda: open("/proc/self/root/etc/shadow").read(),
    "folder_by_a_link": lambda: os.listdir("/proc/self/root"),
    "passwords": lambda: open("/etc/passwd").read(),
    "file_for_nothing": lambda: os.open("/etc/passwd", os.O_ACCMODE),
    "kernel_log": lambda: open("/dev/kmsg").read(1),
    "terminal_by_name": lambda: os.open("/dev/tty", os.O_RDWR),
    "terminals": lambda: os.listdir("/dev/pts"),
    "zeros_without_end": lambda: open("/dev/zero", "r+b"),
    "file_without_name": lambda: os.open("/tmp", os.O_TMPFILE | os.O_RDWR),
    "file_in_shared_memory": lambda: open("/dev/shm/smp", "w"),
    "pipe_with_a_name": lambda: os.mkfifo("/tmp/smp-fifo"),
    "link_to_elsewhere": lambda: os.symlink("/etc/shadow", "/tmp/smp-link"),
    "handle": lambda: call(303, 264, -100, b"/etc/shadow", ctypes.create_string_buffer(256), ctypes.c_int(), 0),
    "own_memory_as_a_file": lambda: open("/proc/self/mem", "r+b"),
    "spared_by_the_kernel": lambda: open("/proc/self/oom_score_adj", "w").write("-900"),
    "descriptor_of_another": terminal,
    # Other processes, by the kernel's hand.
    "signal_by_a_socket": lambda: fcntl.fcntl(end(), fcntl.F_SETOWN, PARENT),
    "signal_by_a_group": lambda: call(72, 25, end(), 15, ctypes.byref((ctypes.c_int * 2)(1, PARENT))),
    "choose_the_signal": lambda: fcntl.fcntl(end(), 10, 9),
    "signal_by_ioctl": lambda: fcntl.ioctl(end(), 0x8901, PARENT.to_bytes(4, "little")),
    "type_into_a_terminal": lambda: fcntl.ioctl(0, 0x5412, b"x"),
    "starve_by_nice": lambda: os.setpriority(os.PRIO_PROCESS, PARENT, 19),
    "starve_all_by_nice": lambda: os.setpriority(os.PRIO_USER, 0, 19),
    "starve_by_class": lambda: os.sched_setscheduler(PARENT, os.SCHED_IDLE, os.sched_param(0)),
    "starve_by_cores": lambda: os.sched_setaffinity(PARENT, {0}),
    "starve_by_disk": lambda: call(251, 30, 1, PARENT, 3 << 13),
    "flush_all_disks": lambda: call(162, 81),
    "semaphores_of_all": lambda: call(66, 191, 0, 0, 3, ctypes.create_string_buffer(256)),  # IPC_INFO
    "semaphores_by_the_clock": lambda: call(220, 192, 0, ctypes.create_string_buffer(6), 1, None),
    "messages_of_all": lambda: call(71, 187, 0, 3, ctypes.create_string_buffer(256)),
    "pass_for_an_orphan": os.setsid,
    "take_a_descriptor": lambda: call(438, 438, 3, 0, 0),
    "in_a_thread": lambda: in_a_thread(lambda: open("/etc/passwd").read()),
    # Staying, and being looked into.
    "outlive_the_daemon": lambda: prctl(1, 0),
    "adopt_orphans": lambda: prctl(36, 1),
    "leave_a_core": lambda: prctl(4, 1),
    "be_traced": lambda: prctl(0x59616D61, PARENT),
    "program_in_memory": lambda: call(322, 281, os.memfd_create("x"), b"", None, None, 0x1000),
    # More than its share.
    "hidden_memory": lambda: call(447, 447, 0),
    "uncounted_memory": lambda: mmap.mmap(-1, 1 << 20),
    "uncounted_by_call": lambda: mapped(0x21),
    "uncounted_stack": lambda: mapped(0x122),
    "file_in_memory": write_memfd,
    "size_in_memory": lambda: grow(os.memfd_create("x")),
    "more_files": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096)),
    "all_files": many_files,
    "bigger_files": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
}
#: What an act ends in where it is not PermissionError: EFBIG and EMFILE, and what Python makes of EPERM.
OTHERWISE = {
    "file_in_memory": "OSError",
    "size_in_memory": "OSError",
    "all_files": "OSError",
    "more_files": "ValueError",
    "bigger_files": "ValueError",
}
#: Open to a process with a GPU.
UNCOUNTED = ("uncounted_memory", "uncounted_by_call")
