"""Frames and descriptors over one connected Unix stream socket, and the encoding of message bodies.

This is the lowest layer that does I/O; streams and their rules are in :mod:`smp_proto.aio`.
"""

import array
import asyncio
import contextlib
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import msgspec

from smp_proto.errors import DaemonError
from smp_proto.memory import wipe_bytes
from smp_proto.structs import decoder
from smp_proto.wire import FDS_MAX, Frame, FrameDecoder, FrameType, encode_frame

STALL_S = 30.0
UNREAD_BYTES_MAX = 32 << 20
CLIENT_UNREAD_BYTES_MAX = 4 << 20  # of what a client sends: requests and names of files, no content
UNREAD_FDS_MAX = 256
UNREAD_MESSAGES_MAX = 4096
_RECEIVE_BYTES = 1 << 16
_INT_BYTES = array.array("i").itemsize
_RIGHTS_BYTES = socket.CMSG_SPACE(253 * _INT_BYTES)  # the most that one message brings (SCM_MAX_FD, unix(7))
T = TypeVar("T")


def encode(body: Any) -> bytes:
    """Encode one message body (msgpack, maps)."""
    return msgspec.msgpack.encode(body)


def decode(body: bytes | msgspec.Raw, kind: type[T]) -> T:
    """Decode one message body.

    Raises:
        DaemonError: ``protocol`` when the body is not a ``kind``.
    """
    try:
        decoded: T = decoder(kind).decode(body)
        return decoded
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise DaemonError(
            "protocol", f"a message does not fit the protocol: {error}", hint="update the older side"
        ) from error


class Channel:
    """Frames over a connected Unix stream socket, which it owns.

    Args:
        sock: the connected socket.
        stall_s: seconds after which a peer that reads nothing is given up and the connection shut down.
        unread_bytes_max: what a peer can make us hold of what it sent.

    Attributes:
        descriptors: whether the peer may hand any over now. Else they stay where they are, and are never ours: to
            close one asks its file system (FLUSH of FUSE, of NFS), which may answer never.
        takes_unwanted: what may not be handed over is taken and discarded instead. That saves a look before each read,
            and is for a peer that is done with after the first time.
        discard: closes those that nobody took, and this socket, if something is still in it; later, where that may wait
            for what the peer sent: a socket waits for its own peer, as long as it was told to (SO_LINGER).
    """

    def __init__(
        self, sock: socket.socket, *, stall_s: float = STALL_S, unread_bytes_max: int = UNREAD_BYTES_MAX
    ) -> None:
        sock.setblocking(False)
        # Urgent data is data like any other: apart, it would be dropped unseen, and with it what it brought.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        self.socket = sock
        self.descriptors: Callable[[], bool] = lambda: True
        self.takes_unwanted = False
        self.discard: Callable[[Sequence[int]], None] = close_all
        self._stall_s = stall_s
        self._decoder = FrameDecoder()
        self._ready: deque[Frame] = deque()
        self._fds: deque[int] = deque()
        self._send_lock = anyio.Lock()
        self._reads = 0  # since the others had their turn
        self._waiter: asyncio.Future[None] | None = None
        self._watching: asyncio.AbstractEventLoop | None = None
        self._unread = [0, 0, 0]
        self._unread_max = (UNREAD_MESSAGES_MAX, unread_bytes_max, UNREAD_FDS_MAX)

    async def send(
        self, frame_type: FrameType, stream: int, body: bytes = b"", fds: Sequence[int] = (), *, secret: bool = False
    ) -> None:
        """Send one frame; the descriptors stay open here. What is ``secret`` is overwritten, ``body`` too.

        Raises:
            anyio.BrokenResourceError: the peer is gone, or has read nothing for ``stall_s``.
        """
        frame = encode_frame(frame_type, stream, body, len(fds))
        try:
            await self._send_frame(memoryview(frame), fds)
        finally:
            if secret:
                wipe_bytes(frame)
                wipe_bytes(body)

    async def send_many(self, frame_type: FrameType, stream: int, bodies: Sequence[bytes]) -> None:
        """Send several frames without descriptors in one go, so that the peer wakes up once. Raises as :meth:`send`."""
        await self._send_frame(memoryview(b"".join(encode_frame(frame_type, stream, body) for body in bodies)), [])

    async def send_anyway(self, frame_type: FrameType, stream: int, body: bytes) -> None:
        """Send one frame without descriptors, whoever is cancelled. Raises as :meth:`send`."""
        data = memoryview(encode_frame(frame_type, stream, body))
        if not self._send_lock.locked():
            data, _ = self._send_some(data, [])
        if data:
            with anyio.CancelScope(shield=True):
                await self._send_rest(data, [])

    async def _send_frame(self, data: memoryview, fds: Sequence[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        await anyio.lowlevel.checkpoint_if_cancelled()
        begun = not self._send_lock.locked()  # nobody is in the middle of a frame: nearly all go out whole, at once
        if begun:
            data, rights = self._send_some(data, rights)
            if not data:
                return
        # Shielded: half a frame would garble every later one. One that was begun finds the lock free.
        with anyio.CancelScope(shield=begun):
            await self._send_rest(data, rights)

    async def _send_rest(self, data: memoryview, rights: list[Any]) -> None:
        async with self._send_lock:
            with anyio.CancelScope(shield=True):
                while data:
                    left, rights = self._send_some(data, rights)
                    if len(left) == len(data):
                        await self._writable()
                    data = left

    def _send_some(self, data: memoryview, rights: list[Any]) -> tuple[memoryview, list[Any]]:
        """Send what the socket takes; returns what is left."""
        try:
            sent = self.socket.sendmsg([data], rights)
        except (BlockingIOError, InterruptedError):
            return data, rights
        except (OSError, ValueError) as error:
            raise anyio.BrokenResourceError from error
        return data[sent:], []

    async def _writable(self) -> None:
        try:
            with anyio.fail_after(self._stall_s):
                await anyio.wait_writable(self.socket)
        except (TimeoutError, anyio.ClosedResourceError) as error:
            # What was sent may end inside a frame, so nothing can follow it; our own reader is to notice, too.
            self.shutdown()
            raise anyio.BrokenResourceError from error

    async def receive(self) -> tuple[Frame, list[int]]:
        """Return the next frame and its descriptors, which the caller must close.

        Raises:
            anyio.EndOfStream: the peer closed between frames.
            anyio.BrokenResourceError: the connection broke inside one.
            DaemonError: ``protocol``.
        """
        while not self._ready:
            if self._reads > 1:  # a peer that never pauses must not keep the event loop from everyone else
                self._reads = 0
                await anyio.lowlevel.checkpoint()
            try:
                self._read()
                self._reads += 1
            except (BlockingIOError, InterruptedError):
                self._reads = 0
                await self._arrival()
        frame = self._ready.popleft()
        return frame, [self._fds.popleft() for _ in range(frame.fds)]

    def _read(self) -> None:
        """Take what has come. Raises as :meth:`receive`, and what says that nothing has."""
        try:
            data, ancillary, flags = self._receive()
        except (BlockingIOError, InterruptedError):
            raise
        except (OSError, ValueError) as error:
            raise anyio.BrokenResourceError from error
        self._take_descriptors(ancillary)
        if self.takes_unwanted and self._fds and not self.descriptors():
            unwanted = list(self._fds)
            self._fds.clear()
            self.discard(unwanted)
            raise DaemonError("protocol", "descriptors came that are not taken")
        if not data:
            raise anyio.BrokenResourceError if self._decoder.partial else anyio.EndOfStream
        self._decoder.feed(data)
        wipe_bytes(data)  # it may hold a secret, which the heap would keep until something else comes there
        self._ready.extend(self._decoder.frames())
        self._check_descriptors(flags)

    def _receive(self) -> tuple[bytes, list[tuple[int, int, bytes]], int]:
        """What is there. Where no descriptors are taken some are only seen, and nothing is read then.

        There is room for more than may come: the kernel closes what it drops at once, in this thread, however long
        that takes.
        """
        length, room = _RECEIVE_BYTES, _RIGHTS_BYTES
        if not (self.takes_unwanted or self.descriptors()):
            seen, _, flags, _ = self.socket.recvmsg(length, 0, socket.MSG_PEEK)
            length, room = len(seen), 0
            wipe_bytes(seen)
            if flags & socket.MSG_CTRUNC:
                self._check_descriptors(flags)
            if not length:
                return b"", [], 0
        data, ancillary, flags, _ = self.socket.recvmsg(length, room, socket.MSG_CMSG_CLOEXEC)
        return data, ancillary, flags

    async def _arrival(self) -> None:
        """Wait until something comes, and take it.

        The socket stays with the loop from one wait to the next: to hand it over and take it back takes four times as
        long as all else of a wait.
        """
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        if self._watching is None:
            loop.add_reader(self.socket.fileno(), self._came)
            self._watching = loop
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _came(self) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done():  # nobody waits for it: it stays with the kernel, which holds the peer back
            self._unwatch()
            return
        try:
            self._read()
        except (BlockingIOError, InterruptedError):
            return
        except Exception as error:  # noqa: BLE001 - it is of whoever waits
            waiter.set_exception(error)
        else:
            waiter.set_result(None)

    def _unwatch(self) -> None:
        if self._watching is not None:
            self._watching.remove_reader(self.socket.fileno())
            self._watching = None

    def _take_descriptors(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % _INT_BYTES])
                self._fds.extend(fds)

    def _check_descriptors(self, flags: int) -> None:
        """Each whole frame must have brought what it announced.

        The kernel ends a read after the bytes that descriptors came with (unix(7)), so any to spare can only
        belong to a frame of which a part is here.
        """
        spare = len(self._fds) - sum(frame.fds for frame in self._ready)
        if flags & socket.MSG_CTRUNC or not 0 <= spare <= FDS_MAX or (spare and not self._decoder.partial):
            self._ready.clear()
            if flags & socket.MSG_CTRUNC and not self.descriptors():
                hint = "what was handed over before has to be closed first: see whether the disk it is on answers"
                raise DaemonError("protocol", "descriptors came that are not taken", hint=hint)
            raise DaemonError("protocol", "a frame brought more or fewer descriptors than it announced")

    def count_unread(self, sign: int, frame: Frame) -> None:
        """Keep the account of what was received and is still held, which bounds what a peer can make us hold.

        Raises:
            DaemonError: ``protocol`` when the peer sends faster than is read, which no SMP peer does.
        """
        held, most = self._unread, self._unread_max
        held[0] += sign
        held[1] += sign * len(frame.body)
        held[2] += sign * frame.fds
        if sign > 0 and (held[0] > most[0] or held[1] > most[1] or held[2] > most[2]):
            raise DaemonError("protocol", "too many unread messages, bytes or descriptors on one connection")

    def shutdown(self) -> None:
        """End the conversation both ways, so that whoever waits on this socket, on either side, notices."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket and every descriptor not yet handed out."""
        anyio.notify_closing(self.socket)
        self._unwatch()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(anyio.BrokenResourceError())
        fds = list(self._fds)
        self._fds.clear()
        self.shutdown()  # from here on nothing more comes
        if self._holds_more():
            fds.append(self.socket.detach())
        self.socket.close()
        self.discard(fds)

    def _holds_more(self) -> bool:
        """Whether something is unread in the socket, which may have brought descriptors: they are closed with it."""
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK))
        except OSError:  # it was never connected, or the peer is gone
            return False


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that nobody took."""
    for fd in fds:
        os.close(fd)


def close_aside(fds: Sequence[int]) -> None:
    """The same in a thread of its own, which nobody waits for."""
    if fds:
        try:
            threading.Thread(target=close_all, args=(fds,), name="closing", daemon=True).start()
        except RuntimeError:  # there is none to be had
            close_all(fds)
