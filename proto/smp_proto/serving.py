"""The side of a connection that answers: each request as a task of its own, ended once."""

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import msgspec

from smp_proto.aio import End, Exchange
from smp_proto.channel import Channel, encode
from smp_proto.errors import DaemonError, SmpError
from smp_proto.memory import wipe_bytes
from smp_proto.wire import BODY_MAX_BYTES, Frame, FrameType

_STREAMS_MAX = 256
_FAULT = SmpError("internal", "a fault in SMP", hint="see the daemon's log; please report it")
Handler = Callable[[bytes, list[int], Exchange], Awaitable[Any]]
_Open = dict[int, tuple[anyio.CancelScope, Exchange]]
_STOPPING = encode(End(error=DaemonError("daemon_down", "the daemon is stopping", hint="ask it again").body()))
_CANCELLED = encode(End(error=SmpError("cancelled", "the request was cancelled").body()))


async def _answer(reply: Awaitable[Any], unexpected: Callable[[Exception], None]) -> bytes:
    """Await a handler and return the body of END. An SmpError out of a task group counts as that error."""
    try:
        try:
            body = encode(End(ok=msgspec.Raw(encode(await reply))))
        except SmpError as error:
            body = encode(End(error=error.body()))
        except ExceptionGroup as errors:
            known = _first_known(errors)
            if known is None:
                raise
            body = encode(End(error=known.body()))
        if len(body) > BODY_MAX_BYTES:
            raise ValueError(f"a reply of {len(body)} bytes does not fit a frame")
        return body
    except (anyio.BrokenResourceError, anyio.EndOfStream):
        return _CANCELLED
    except Exception as error:  # noqa: BLE001 - one request's fault must not end the others
        unexpected(error)
        return encode(End(error=_FAULT.body()))


def _first_known(errors: BaseExceptionGroup[BaseException]) -> SmpError | None:
    known, rest = errors.split(SmpError)
    if known is None or rest is not None:
        return None
    first = known.exceptions[0]
    return _first_known(first) if isinstance(first, BaseExceptionGroup) else first


async def serve(
    channel: Channel,
    handler: Handler,
    *,
    unexpected: Callable[[Exception], None],
    streams_max: int = _STREAMS_MAX,
) -> None:
    """Answer requests until the peer closes; each runs as a task and ends with exactly one END.

    Args:
        handler: gets the request's body, its descriptors (to close) and the exchange; returns the reply. The body is
            overwritten afterwards, since it may have held a secret: nothing that stays may look into it, as
            :class:`msgspec.Raw` does.
        unexpected: is told of an exception that is no SmpError; the peer gets ``internal``.
        streams_max: how many requests one peer may have open.

    Raises:
        DaemonError: ``protocol``; the caller closes the channel.
    """
    scopes: _Open = {}
    cut_short = _STOPPING

    async def answer(frame: Frame, fds: list[int], scope: anyio.CancelScope, exchange: Exchange) -> None:
        end = b""
        try:
            with scope:
                end = await _answer(handler(frame.body, fds, exchange), unexpected)
            if scope.cancelled_caught:
                end = _CANCELLED
        finally:
            exchange.close()
            channel.count_unread(-1, frame)
            wipe_bytes(frame.body)
            with contextlib.suppress(anyio.BrokenResourceError):
                await channel.send_anyway(FrameType.END, frame.stream, end or cut_short)
            # Only now may the number be used again, and only now is this request no longer counted as open:
            # a peer that asks and never reads would otherwise pile up replies without limit.
            del scopes[frame.stream]

    try:
        async with anyio.create_task_group() as group:

            def begin(frame: Frame, fds: list[int]) -> None:
                scope, exchange = anyio.CancelScope(), Exchange(channel, frame.stream)
                scopes[frame.stream] = scope, exchange
                group.start_soon(answer, frame, fds, scope, exchange)

            try:
                await _route(channel, scopes, streams_max, begin)
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                pass
            except DaemonError as error:
                cut_short = encode(End(error=error.body()))
                raise
            group.cancel_scope.cancel()
    except BaseExceptionGroup as errors:
        violation, rest = errors.split(DaemonError)
        if rest is not None:
            raise
        assert violation is not None
        raise violation.exceptions[0] from None


async def _route(channel: Channel, scopes: _Open, streams_max: int, begin: Callable[[Frame, list[int]], None]) -> None:
    """Hand each frame to what it belongs to, until the peer closes."""
    while True:
        frame, fds = await channel.receive()
        known = scopes.get(frame.stream)
        if frame.type is FrameType.REQUEST and known is None and len(scopes) < streams_max:
            try:
                channel.count_unread(1, frame)  # its body is held for as long as it is answered
            except DaemonError:
                channel.discard(fds)
                raise
            begin(frame, fds)
        elif frame.type is FrameType.DATA and known is not None:
            known[1].deliver(frame, fds)
        elif frame.type is FrameType.CANCEL:
            if known is not None:
                known[0].cancel()
        elif frame.type is FrameType.DATA:
            channel.discard(fds)  # it crossed our END
        else:
            channel.discard(fds)
            raise DaemonError(
                "protocol",
                f"{frame.type.name} refused on stream {frame.stream}, {len(scopes)} of {streams_max} open",
            )
