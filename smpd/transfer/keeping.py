"""A compute process of another user, started and killed through its keeper (``smpd.compute.keeper``).

Who is believed: whoever listens must be root, that is systemd, or our own user. What we rely on of the process is
the kernel's word: which one it is, whose, and when it is gone, by the pidfd and /proc.
"""

import contextlib
import os
import re
import socket

import anyio

from smp_proto.channel import close_all
from smp_proto.errors import ResourceError, SmpError, UsageError
from smpd.links.starting import START, STARTED, peer_uid

_ANSWER_S = 60.0


class Kept:
    """The process; what :class:`~smpd.transfer.workers.Worker` needs of ``anyio.abc.Process``."""

    returncode: int | None = None  # its keeper's to know

    def __init__(self, connection: socket.socket, pidfd: int, pid: int) -> None:
        self._connection = connection
        self._pidfd = pidfd
        self.pid = pid

    def kill(self) -> None:
        """Have it killed."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    async def wait(self) -> None:
        """Wait until it is gone."""
        await anyio.wait_readable(self._pidfd)

    async def aclose(self) -> None:
        """Wait until it is gone, which no deadline may cut short: it shares our rings. Then let go of it."""
        await self.wait()
        self._connection.close()
        os.close(self._pidfd)


async def start_kept(path: str, label: str) -> tuple[socket.socket, Kept]:
    """Have a compute process started by the keeper at ``path``; return our end of its link.

    Raises:
        ResourceError: ``worker_died``, nobody there starts one.
        UsageError: ``bad_config``, whoever is there is not to be used.
        OSError: there are no descriptors left.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    ours: socket.socket | None = None
    held: list[int] = []
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            _ask(connection, path, theirs)
        try:
            with anyio.fail_after(_ANSWER_S):
                await anyio.wait_readable(connection)
            data, held, _, _ = socket.recv_fds(connection, 1, 1)
        except OSError:  # a timeout, too
            data = b""
        if data != STARTED or len(held) != 1:
            raise _none(f"the keeper at {path} started no process for {label}", "see: journalctl -u 'smpd-compute@*'")
        os.set_inheritable(held[0], False)
        pid = await anyio.to_thread.run_sync(_another_user_s, held[0], path)
        return ours, Kept(connection, held[0], pid)
    except BaseException:
        close_all(held)
        connection.close()
        if ours is not None:
            ours.close()
        raise


def _ask(connection: socket.socket, path: str, theirs: socket.socket) -> None:
    connection.setblocking(False)
    try:
        connection.connect(path)
        uid = peer_uid(connection)
        if uid in (0, os.geteuid()):
            socket.send_fds(connection, [START], [theirs.fileno()])
    except OSError as error:
        raise _none(
            f"no compute process can be had at {path}: {error.strerror}",
            'run: systemctl enable --now smpd-compute.socket; or set compute.start = "spawn"',
        ) from error
    if uid not in (0, os.geteuid()):
        raise _unfit(f"user {uid} listens at {path}", "it must be systemd's: see systemd/README.md")


def _another_user_s(pidfd: int, path: str) -> int:
    """The process id behind a pidfd, once it is clear that its memory can be watched, and that it is another user's.

    A process of our own user, or of root, would be an administrator at the control socket: there only workers that we
    started are told from people.
    """
    try:
        with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as info:
            pid = int(re.findall(r"^Pid:\s*(-?\d+)", info.read(), re.MULTILINE)[0])
        if pid < 0:
            raise _none(f"the compute process from {path} ended at once", "see: journalctl -u 'smpd-compute@*'")
        with open(f"/proc/{pid}/status", encoding="utf-8") as status:
            uids = {int(uid) for uid in re.findall(r"^Uid:\s*(.*)$", status.read(), re.MULTILINE)[0].split()}
    except OSError as error:
        raise _unfit(
            f"the compute process from {path} cannot be seen in /proc, so its memory cannot be watched",
            "mount /proc without hidepid, and set no ProtectProc for smpd",
        ) from error
    if uids & {0, os.geteuid()}:
        raise _unfit(
            f"the compute process from {path} runs as user {min(uids)}",
            "give it a user of its own, neither root nor smpd's",
        )
    return pid


def _none(message: str, hint: str) -> SmpError:
    return ResourceError("worker_died", message, hint=hint)


def _unfit(message: str, hint: str) -> SmpError:
    return UsageError("bad_config", message, hint=hint)
