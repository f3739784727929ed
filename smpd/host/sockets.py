"""The control socket: handed over by systemd (sd_listen_fds(3)), or bound by us without taking another's place."""

import contextlib
import os
import socket
import stat
from collections.abc import Mapping

from smp_proto.errors import ResourceError, StateError, UsageError

_FIRST_FD = 3
_PROBE_S = 2.0
_BACKLOG = 128


def inherited_sockets(environ: Mapping[str, str] = os.environ) -> dict[str, list[socket.socket]]:
    """The listening Unix stream sockets meant for this process, by name (``unknown`` where they have none).

    Raises:
        UsageError: ``bad_config`` when a descriptor is something else, perhaps one of our own.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    count = environ.get("LISTEN_FDS", "")
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[socket.socket]] = {}
    for index in range(int(count) if count.isdecimal() else 0):
        sock = _listener(_FIRST_FD + index)
        found.setdefault((names[index] if index < len(names) else "") or "unknown", []).append(sock)
    return found


def _listener(fd: int) -> socket.socket:
    with contextlib.suppress(OSError):  # nothing, or no socket
        sock = socket.socket(fileno=fd)
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM and listening:
            sock.set_inheritable(False)
            return sock
        sock.detach()
    message = f"descriptor {fd}, which was handed over, is no listening Unix stream socket"
    raise UsageError("bad_config", message, hint="see smpd.socket")


def bind_socket(path: str, mode: int, group: int = -1) -> socket.socket:
    """Bind and listen at ``path``; a socket that nobody answers on is replaced.

    The folder must be ours alone to write (``ensure_dir``), and the state folder's lock be held: between the
    probe and the bind nobody else may start. The mode is right from the first instant on, by the umask.

    Args:
        path: where; at most 107 bytes.
        mode: permissions of the socket.
        group: numeric group to give it to; -1 leaves it.

    Raises:
        StateError: ``exists`` when a daemon answers there, or something other than a socket is in the way.
        ResourceError: ``disk_failed`` when it cannot be bound.
    """
    _clear(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o777 & ~(mode if group == -1 else mode & 0o700))
    try:
        sock.bind(path)
        if group != -1:
            os.chown(path, -1, group)
            os.chmod(path, mode)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise ResourceError(
            "disk_failed",
            f"cannot bind {path}: {error.strerror}",
            hint="check paths.socket and the rights of its folder",
        ) from error
    finally:
        os.umask(before)
    return sock


def _clear(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise StateError("exists", f"{path} is in the way and is no socket", hint="move it, or change paths.socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
        except OSError as error:  # a full backlog, or not ours to ask: somebody holds it
            reason = error.strerror or "no answer"
        else:
            reason = "it answers"
    raise StateError("exists", f"another daemon holds {path}: {reason}", hint="run: smpctl status")
