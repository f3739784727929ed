"""A kept-alive connection on the event loop. TLS, where there is any, is the loop's own.

Without TLS the kernel moves the body of a request from its file to the socket by itself (sendfile(2)), in a thread,
since the file may lie on a slow disk.
"""

import asyncio
import os
import select
import threading
from typing import NamedTuple, cast

import anyio

from smpd.fetch.exchange import Answer, Exchange
from smpd.fetch.patience import Patience, acknowledged_and_received
from smpd.fetch.remote import first_error, read_source, short_source, unwritable
from smpd.links.fetching import Deadlines

_SCRATCH_BYTES = 16 << 10  # small, because what comes of a body along with its head is copied
_PIECE_BYTES = 512 << 10  # of a body that goes through TLS
_LOOK_MS = 50  # how often a thread whose socket takes nothing looks whether it is still wanted


class Body(NamedTuple):
    """What follows the head of a request: a part of a file, whose descriptor stays the caller's."""

    fd: int
    start: int
    length: int


class Connection(asyncio.BufferedProtocol):
    """At most one exchange at a time; bytes of a wanted body are received where they belong."""

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._loop = asyncio.get_running_loop()
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._exchange: Exchange | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._full = False
        self._secure = False
        self._received = 0
        self._asked_at = 0.0
        self.answered_s = 0.0  # how long after its head was sent the last exchange's answer began
        self._patience = Patience(deadlines)
        self._watch_s = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self.open = True

    # ── what the loop calls ────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is connected, and TLS has verified the server."""
        self._transport = cast("asyncio.Transport", transport)
        self._secure = transport.get_extra_info("sslcontext") is not None
        if not self._secure:
            self._transport.set_write_buffer_limits(0)  # so that we know when a head is gone, and its body may follow

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to receive into."""
        # Never empty: the loops take an empty buffer for an error, even after the body's last byte.
        exchange = self._exchange
        return exchange.room if exchange is not None and exchange.in_body else self._scratch

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have come."""
        exchange = self._exchange
        if exchange is None or exchange.done:
            self.abort()  # bytes that nobody asked for: whatever they are, they are no answer to the next request
            return
        self._received += nbytes
        if exchange.in_body:
            exchange.advance(nbytes)
        else:
            self.answered_s = self.answered_s or self._loop.time() - self._asked_at
            exchange.feed(bytes(self._scratch[:nbytes]))
        if exchange.done:
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed, by whoever."""
        self.open = False
        if self._exchange is not None:
            self._exchange.lost()
        self._wake()

    def pause_writing(self) -> None:
        """No more can be sent for now."""
        self._full = True

    def resume_writing(self) -> None:
        """More can be sent."""
        self._full = False
        self._wake()

    # ── what the pool calls ────────────────────────────────────────────────────────────────────────────

    async def run(
        self, exchange: Exchange, head: bytes, body: Body | bytes | None = None, answer_s: float = 0.0
    ) -> Answer:
        """Send a request and wait for the end of its answer. Afterwards ``open`` says whether to keep this.

        Args:
            body: what follows the head. An answer that comes before its end ends it.
            answer_s: how long the answer may take once all was sent, where that is not ``stall_s``.
        """
        assert self._transport is not None
        self._exchange = exchange
        try:
            if not self.open:  # closed since it was taken: nobody else will say so
                exchange.lost()
                return exchange.result()
            self._be_patient()
            self._transport.write(head)
            self._asked_at, self.answered_s = self._loop.time(), 0.0
            sent = body is None or await self._send(exchange, body)
            if answer_s:
                self._be_patient(answer_s)
            while not exchange.done:
                await self._woken()
            if not (sent and exchange.clean):
                self.abort()
            return exchange.result()
        except BaseException:  # whoever asked has gone, also where the answer came whole: nobody will give this back
            self.abort()
            raise
        finally:
            self._exchange = None

    async def _send(self, exchange: Exchange, body: Body | bytes) -> bool:
        """Send a body; whether all of it is gone."""
        if isinstance(body, bytes):
            return await self._write(exchange, body)
        if not self._secure:
            return await self._send_by_kernel(exchange, body)
        end = body.start + body.length
        for start in range(body.start, end, _PIECE_BYTES):
            piece = await read_source(body.fd, min(_PIECE_BYTES, end - start), start)
            if exchange.done or not await self._write(exchange, piece):
                return False
        return True

    async def _write(self, exchange: Exchange, piece: bytes) -> bool:
        assert self._transport is not None
        self._transport.write(piece)
        while self._full and not exchange.done:
            await self._woken()
        return not self._full

    async def _send_by_kernel(self, exchange: Exchange, body: Body) -> bool:
        assert self._transport is not None
        while self._full and not exchange.done:
            await self._woken()
        unwanted = threading.Event()

        async def watch() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                unwanted.set()

        # Of our own, since the loop closes the connection's when the server does, and its number may then be reused.
        out = os.dup(self._transport.get_extra_info("socket").fileno())
        try:
            with first_error():
                async with anyio.create_task_group() as group:
                    group.start_soon(watch)  # the thread is waited for, also when this is cancelled
                    sent = await anyio.to_thread.run_sync(self._pour, exchange, body, out, unwanted)
                    group.cancel_scope.cancel()
        finally:
            os.close(out)
        return sent

    def _pour(self, exchange: Exchange, body: Body, out: int, unwanted: threading.Event) -> bool:
        """In a thread: send the body until it is gone, or the server has answered or is gone."""
        writable = select.poll()
        writable.register(out, select.POLLOUT)
        at, end = body.start, body.start + body.length
        while at < end and not exchange.done and not unwanted.is_set():
            try:
                count = os.sendfile(out, body.fd, at, end - at)
            except BlockingIOError:
                writable.poll(_LOOK_MS)
                continue
            except ConnectionError:
                return False  # the loop notices, too, and says what it means
            except OSError as error:
                raise unwritable(error, "the data to upload") from error
            if not count:
                raise short_source()
            at += count
        return at == end

    async def _woken(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def _moved(self) -> int:
        assert self._transport is not None
        acknowledged, _ = acknowledged_and_received(self._transport.get_extra_info("socket"))
        return acknowledged + self._received

    def _be_patient(self, seconds: float = 0.0) -> None:
        """Begin to wait for progress. One timer looks after many exchanges, since setting one up each time costs."""
        self._patience.begin(self._loop.time(), self._moved, seconds)
        tick_s = self._patience.tick_s
        if self._watch is not None and tick_s < self._watch_s:
            self._watch.cancel()
            self._watch = None
        if self._watch is None:
            self._watch, self._watch_s = self._loop.call_later(tick_s, self._look), tick_s

    def _look(self) -> None:
        self._watch = None
        if self._exchange is None or self._exchange.done:
            return
        if why := self._patience.look(self._loop.time(), self._moved):
            self._exchange.stalled(why)
            self._wake()
        else:
            self._watch_s = self._patience.tick_s
            self._watch = self._loop.call_later(self._watch_s, self._look)

    def abort(self) -> None:
        """Close at once."""
        self.open = False
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._transport is not None:
            self._transport.abort()

    @property
    def facts(self) -> dict[str, str]:
        """What TLS agreed on."""
        assert self._transport is not None
        cipher = self._transport.get_extra_info("cipher")
        return {"tls": cipher[1], "cipher": cipher[0]} if cipher else {"tls": "none"}
