"""Accepts connections, agrees on a version, finds out who asks, and hands requests to their handlers.

A handler is called with the actor, the request and the exchange, after the role was checked. Closing a
connection cancels what is still being answered on it (a watch above all); jobs are no part of a connection and
go on. A handler whose act must not be left half done shields that part.
"""

import contextlib
import errno
import functools
import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import anyio
import anyio.abc
import anyio.lowlevel
import structlog

from smp_proto.aio import Channel, Exchange, decode, encode
from smp_proto.channel import CLIENT_UNREAD_BYTES_MAX
from smp_proto.control import AnyRequest, Hello, Request, Watch
from smp_proto.errors import DaemonError, DeniedError, SmpError
from smp_proto.serving import serve
from smp_proto.wire import PROTOCOL_MAX, PROTOCOL_MIN, FrameType, encode_frame
from smpd.config import Control
from smpd.control.accounts import UserDatabase
from smpd.control.actor import Actor, Peer, RoleGroups, actor_of, is_worker, peer_of
from smpd.control.limits import Limits, Sparing
from smpd.control.permissions import Permissions
from smpd.control.roles import RANK, REQUESTS, denied, require
from smpd.host.handed import Shares
from smpd.metrics.counting import Metrics

Handler = Callable[[Actor, Any, Exchange], Awaitable[Any]]
_REQUEST = cast("type[Request]", AnyRequest)
_HELLO_S = 5.0
_ACCEPT_PAUSE_S = 0.1
_REFUSED_S_MAX = 1.0
_log = structlog.get_logger(__name__)


class _Caller(NamedTuple):
    """Who is connected, and how the connection is ended."""

    peer: Peer
    actor: Actor
    scope: anyio.CancelScope


class ControlServer:
    """The daemon's end of the control socket.

    Args:
        sockets: listening Unix stream sockets; closed when :meth:`serve` ends.
        handlers: one for each request of the protocol.
        config: groups and limits.
        version: of smpd, told in HELLO.
        boot_id: of this run of smpd, told in HELLO.
        groups: the numeric groups of the roles; looked up from ``config`` when None.
        permissions: what callers may use; everything when None.
        database: is asked who callers are.
        metrics: what is counted into.
        handed: the threads for what callers hand over.
        hello_s: how long a connection may take to say HELLO.

    Raises:
        ValueError: a request has no handler.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        handlers: Mapping[type[Request], Handler],
        config: Control,
        *,
        version: str,
        boot_id: str,
        groups: RoleGroups | None = None,
        permissions: Permissions | None = None,
        database: UserDatabase | None = None,
        metrics: Metrics | None = None,
        handed: Shares | None = None,
        hello_s: float = _HELLO_S,
    ) -> None:
        if missing := REQUESTS - handlers.keys():
            raise ValueError(f"no handler for {', '.join(sorted(kind.__name__ for kind in missing))}")
        self._sockets = sockets
        self._handlers = handlers
        self._config = config
        self._hello = Hello(PROTOCOL_MIN, PROTOCOL_MAX, version, boot_id)
        self._groups = groups or RoleGroups.lookup(config)
        self._permissions = permissions or Permissions({})
        self._database = database or UserDatabase()
        self._hello_s = hello_s
        self._limits = Limits(config)
        self._metrics = metrics or Metrics()
        self._handed = handed or Shares()
        self._sparing = Sparing()
        self._spare = _spare()
        self._welcomed: dict[Channel, _Caller] = {}
        self._rules = 0  # how often others were taken up

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return self._limits.connections

    async def configure(self, config: Control, groups: RoleGroups) -> None:
        """Take up other limits and groups, and permissions as they are now.

        Who has another role or other rights by them, or of whom that cannot be told, is disconnected: their next
        connection has these. Limits of one connection hold for those that come.
        """
        self._groups = groups
        self._config = self._limits.config = config
        self._rules += 1
        answers = True
        for caller in list(self._welcomed.values()):
            try:
                same = answers and await self._ask(caller.peer) == caller.actor
            except DaemonError:
                same = answers = False
            if not same:
                caller.scope.cancel()

    async def _ask(self, peer: Peer) -> Actor:
        return await self._database.ask(actor_of, peer, self._groups, self._permissions)

    async def serve(self) -> None:
        """Accept and answer until cancelled."""
        try:
            async with anyio.create_task_group() as group:
                for listener in self._sockets:
                    group.start_soon(self._accept, listener, group)
        finally:
            for listener in self._sockets:
                listener.close()
            if self._spare >= 0:
                os.close(self._spare)
                self._spare = -1

    async def _accept(self, listener: socket.socket, group: anyio.abc.TaskGroup) -> None:
        listener.setblocking(False)
        while True:
            await anyio.lowlevel.checkpoint()
            try:
                sock = listener.accept()[0]
            except (BlockingIOError, InterruptedError):
                await anyio.wait_readable(listener)
                continue
            except OSError as error:  # out of descriptors or memory
                _log.warning("accept failed", errno=error.errno)
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self._turn_away_spare(listener)
                await anyio.sleep(_ACCEPT_PAUSE_S)
                continue
            peer = peer_of(sock)
            try:
                self._limits.connect(peer.uid)
            except DaemonError as error:
                self._turn_away(sock, peer, error)
                continue
            self._metrics.set("smp_control_connections", self.connections)
            group.start_soon(self._connection, sock, peer)

    def _turn_away_spare(self, listener: socket.socket) -> None:
        """With no descriptor left, answer whoever waits by means of the spare one: better than silence."""
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
            with contextlib.suppress(OSError):
                sock = listener.accept()[0]
                self._turn_away(sock, peer_of(sock), _no_descriptors())
        with contextlib.suppress(OSError):  # somebody else was faster; the next round tries again
            self._spare = _spare()

    def _turn_away(self, sock: socket.socket, peer: Peer, error: DaemonError) -> None:
        """Say why at once, without waiting for anything this peer may or may not do."""
        self._complain("connection refused", peer.uid, code=error.code)
        channel = Channel(sock)
        channel.discard = self._handed.of(peer.uid).close
        with contextlib.suppress(OSError):
            sock.send(encode_frame(FrameType.HELLO, 0, self._greeting(None, error)))
        channel.close()

    def _complain(self, event: str, uid: int, **facts: object) -> None:
        """Log what a caller did wrong, but not as often as they do it."""
        held = self._sparing.hold(event, uid)
        if held is not None:
            _log.warning(event, uid=uid, **facts, **({"held_back": held} if held else {}))

    async def _connection(self, sock: socket.socket, peer: Peer) -> None:
        channel = Channel(sock, stall_s=self._config.stall_s, unread_bytes_max=CLIENT_UNREAD_BYTES_MAX)
        channel.descriptors = lambda: False  # nobody has a use for them yet, and a viewer has none at all
        share = self._handed.of(peer.uid)
        channel.discard = share.close
        try:
            with anyio.CancelScope() as scope:
                actor = await self._welcome(channel, peer, scope)
                if RANK[actor.role] >= RANK["operator"]:
                    channel.descriptors = share.takes
                await serve(
                    channel,
                    functools.partial(self._answer, actor),
                    unexpected=_report_fault,
                    streams_max=self._config.requests_max,
                )
        except SmpError as error:
            self._complain("connection dropped", peer.uid, pid=peer.pid, code=error.code, reason=error.message)
        except (anyio.EndOfStream, anyio.BrokenResourceError, TimeoutError):
            _log.debug("connection ended before HELLO", uid=peer.uid, pid=peer.pid)
        finally:
            channel.close()
            self._welcomed.pop(channel, None)
            self._limits.disconnect(peer.uid)
            self._metrics.set("smp_control_connections", self.connections)

    async def _welcome(self, channel: Channel, peer: Peer, scope: anyio.CancelScope) -> Actor:
        """Exchange HELLO.

        Raises:
            DaemonError: ``protocol``, ``protocol_version``, or ``busy``.
            DeniedError: ``forbidden`` when the peer has no role at all, or is a worker of ours.
        """
        with anyio.fail_after(self._hello_s):
            frame, fds = await channel.receive()
        channel.discard(fds)
        if frame.type is not FrameType.HELLO or fds:
            raise DaemonError("protocol", f"the first frame is {frame.type.name} and not HELLO")
        theirs = decode(frame.body, Hello)
        rules = -1
        while rules != self._rules:  # they may change while this is looked up
            rules = self._rules
            try:
                actor = await self._ask(peer)
            except DaemonError as silent:
                await channel.send(FrameType.HELLO, 0, self._greeting(None, silent))
                raise
        self._welcomed[channel] = _Caller(peer, actor, scope)
        error = await self._objection(actor, peer, theirs)
        await channel.send(FrameType.HELLO, 0, self._greeting(actor, error))
        if error is not None:
            raise error
        return actor

    async def _objection(self, actor: Actor, peer: Peer, theirs: Hello) -> SmpError | None:
        """Why this peer is not let in, if it is not."""
        try:
            ours = await anyio.to_thread.run_sync(is_worker, peer)
        except OSError as error:  # no descriptor to look with: who cannot be told from a worker has to come again
            _log.warning("a peer cannot be told from a worker", errno=error.errno)
            return _no_descriptors()
        if ours:
            return DeniedError("forbidden", "processes that smpd started may not ask it for anything")
        if theirs.protocol_min > PROTOCOL_MAX or theirs.protocol_max < PROTOCOL_MIN:
            return _no_overlap(theirs)
        if actor.role is None:
            return denied(f"{actor.label} has no role on this box", "viewer", self._config)
        return None

    def _greeting(self, actor: Actor | None, error: SmpError | None) -> bytes:
        hello = self._hello
        role = (actor.role if actor and not error else None) or ""
        body = error.body() if error else None
        return encode(Hello(hello.protocol_min, hello.protocol_max, hello.version, hello.boot_id, role, body))

    def _count(self, op: str, outcome: str, began: float) -> None:
        self._metrics.count("smp_control_requests_total", op, outcome)
        if op != "watch":
            self._metrics.observe("smp_control_request_seconds", time.monotonic() - began, op)

    async def _answer(self, actor: Actor, body: bytes, fds: list[int], exchange: Exchange) -> Any:
        if fds:
            exchange.channel.discard(fds)
            raise DaemonError("protocol", "descriptors came with a request; they travel with DATA")
        op = ""
        try:
            self._limits.request(actor.uid)
            request = decode(body, _REQUEST)
            op = str(request.__struct_config__.tag)
            require(actor, request, self._config)
        except SmpError as error:
            self._complain("request refused", actor.uid, code=error.code, op=op)
            self._metrics.count("smp_control_requests_total", op, error.code)
            if error.code == "rate_limited":  # its stream stays open for that long, so asking at once does not help
                await anyio.sleep(min(error.details["retry_after"], _REFUSED_S_MAX))
            raise
        began = time.monotonic()
        try:
            with self._limits.watch(actor.uid) if isinstance(request, Watch) else contextlib.nullcontext():
                answer = await self._handlers[type(request)](actor, request, exchange)
            self._count(op, "ok", began)
            return answer
        except SmpError as error:
            self._count(op, error.code, began)
            raise
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self._complain("request failed", actor.uid, errno=error.errno, op=op)
            raise _no_descriptors() from error


def _spare() -> int:
    return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


def _no_descriptors() -> DaemonError:
    return DaemonError("busy", "smpd has no file descriptor left", hint="try again later; see smpctl doctor")


def _no_overlap(theirs: Hello) -> DaemonError:
    older = "smpd" if theirs.protocol_min > PROTOCOL_MAX else "the client"
    return DaemonError(
        "protocol_version",
        f"the client speaks protocol {theirs.protocol_min} to {theirs.protocol_max}, "
        f"smpd {PROTOCOL_MIN} to {PROTOCOL_MAX}",
        hint=f"upgrade {older}",
    )


def _report_fault(error: Exception) -> None:
    _log.error("a handler failed", exc_info=error)
