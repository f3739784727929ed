"""A real fetch process whose remote, once set up, tries what it must not do: ``probe`` reports how each act ended."""

import ctypes
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import Any

from smpd.fetch import __main__, service
from smpd.walls.sandbox import Kernel

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_X86 = os.uname().machine == "x86_64"


def main(key: str, port: int, listener: str, kernel: Kernel | None = None) -> None:
    """Run the process.

    Args:
        key: a file that is not for this process.
        port: of a listener on loopback.
        listener: the path of a listening Unix socket.
    """
    make_remote = service.make_remote

    def make(*arguments: Any) -> Any:
        remote = make_remote(*arguments)

        async def probe() -> dict[str, str]:
            acts = files(key) | sockets(port, listener) | processes() | allowed(port)
            return {name: _tried(act) for name, act in acts.items()}

        remote.probe = probe
        return remote

    service.make_remote = make
    __main__.main(kernel)


def files(key: str) -> dict[str, Callable[[], Any]]:
    folder = os.path.dirname(key)
    return {
        "read": lambda: open(key).read(),
        "append": lambda: open(key, "a"),
        "create": lambda: open(key + ".new", "w"),
        "remove": lambda: os.unlink(key),
        "truncate": lambda: os.truncate(key, 0),
        "chmod": lambda: os.chmod(key, 0o777),
        "rename": lambda: os.rename(key, key + ".2"),
        "listing": lambda: os.listdir(folder),
        "shadow": lambda: open("/etc/shadow").read(),
        "home": lambda: os.listdir(os.path.expanduser(f"~{_user()}")),
        "private_keys": lambda: os.listdir("/etc/ssl/private"),
        "own_code": lambda: open(__file__, "a"),
        "parent_memory": lambda: open(f"/proc/{os.getppid()}/mem", "rb"),
        "in_a_thread": lambda: _in_thread(lambda: open(key).read()),
    }


def sockets(port: int, listener: str) -> dict[str, Callable[[], Any]]:
    return {
        "unix": lambda: socket.socket(socket.AF_UNIX).connect(listener),
        "unix_datagram": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
        "unix_pair_datagram": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
        "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
        "packet": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        "raw": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        "vsock": lambda: socket.socket(socket.AF_VSOCK),
        "serve": lambda: socket.create_server(("127.0.0.1", 0)),
        "pair_elsewhere": lambda: _pair(listener),
    }


def processes() -> dict[str, Callable[[], Any]]:
    parent = os.getppid()
    buffer = ctypes.create_string_buffer(256)
    return {
        "fork": os.fork,
        "execute": lambda: os.execv("/bin/true", ["true"]),
        "run": lambda: subprocess.run(["/bin/true"]),
        "clone": lambda: _call(56 if _X86 else 220, signal.SIGCHLD, 0, 0, 0, 0),
        "trace": lambda: _call(101 if _X86 else 117, 16, parent, 0, 0),
        "read_memory": lambda: _call(310 if _X86 else 270, parent, buffer, 1, buffer, 1, 0),
        "signal": lambda: os.kill(parent, 0),
        "signal_all": lambda: os.kill(-1, 0),
        "pidfd": lambda: os.pidfd_open(parent),
        "limit": lambda: _call(302 if _X86 else 261, parent, 7, None, buffer),
        "unshare": lambda: _call(272 if _X86 else 97, 0x10000000),
        "mount": lambda: _call(165 if _X86 else 40, b"x", b"/mnt", b"tmpfs", 0, 0),
        "bpf": lambda: _call(321 if _X86 else 280, 0, 0, 0),
        "keys": lambda: _call(250 if _X86 else 219, 0, -3, 0),
        "io_uring": lambda: _call(425, 4, buffer),
        "dumpable": lambda: _libc.prctl(3, 0, 0, 0, 0) or _refuse(),
    }


def allowed(port: int) -> dict[str, Callable[[], Any]]:
    """What it needs; not refused."""
    return {
        "may_connect": lambda: socket.create_connection(("127.0.0.1", port), 5).close(),
        "may_resolve": lambda: socket.getaddrinfo("localhost", port) and None,
        "may_resolve_usable": lambda: (
            socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG) and None
        ),
        "may_pair": lambda: socket.socketpair() and None,
        "may_read_code": lambda: open(__file__).close(),
        "may_signal_itself": lambda: os.kill(os.getpid(), 0),
    }


def _tried(act: Callable[[], Any]) -> str:
    try:
        return f"done: {act()!r}"[:200]
    except BaseException as error:  # noqa: BLE001 - SystemExit is an answer too
        return type(error).__name__


def _refuse() -> None:
    raise PermissionError


def _user() -> str:
    return "root" if os.getuid() == 0 else ""


def _call(*arguments: Any) -> int:
    if _libc.syscall(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return 0


def _pair(listener: str) -> None:
    one, other = socket.socketpair()
    other.close()
    one.connect(listener)


def _in_thread(act: Callable[[], Any]) -> Any:
    ended: list[str] = []
    thread = threading.Thread(target=lambda: ended.append(_tried(act)))
    thread.start()
    thread.join()
    if ended == ["PermissionError"]:
        raise PermissionError
    return ended
