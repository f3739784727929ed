"""What servers send: heads and refusals of HTTP, listings, SFTP."""

import contextlib
import struct
from collections.abc import Callable

Parse = Callable[[bytes], None]


def head() -> Parse:
    """The head of an answer: what our expression takes, h11 takes and means the same by it; an exchange never raises."""
    import h11

    from smp_proto.errors import SmpError
    from smpd.fetch.exchange import Exchange, Suffix, Unspoken, Wanted, parse_head

    def by_h11(data: bytes) -> tuple[int, dict[str, str], int]:
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]))
        parser.send(h11.EndOfMessage())
        parser.receive_data(data)
        event = parser.next_event()
        assert isinstance(event, h11.Response), event
        fields = {name.decode(): value.decode() for name, value in event.headers}
        return event.status_code, fields, len(data) - len(parser.trailing_data[0])

    def parse(data: bytes) -> None:
        if found := parse_head(data):
            answer, length = found
            status, fields, taken = by_h11(data)
            assert (answer.status, answer.headers) == (status, fields)
            assert length == taken
        room = bytearray(64)
        for wanted in (Wanted("p", 100, "tag", 0, 10), Suffix("p", 64), None):
            exchange = Exchange(wanted, memoryview(room))
            step = 1 + len(data) // 2
            for start in range(0, len(data), step):
                if not exchange.done and not exchange.in_body:
                    exchange.feed(data[start : start + step])
            exchange.lost()
            assert exchange.done
            assert len(exchange._refusal) <= (64 << 10) + len(data)
            with contextlib.suppress(SmpError, Unspoken):
                exchange.result()

    return parse


def refusal() -> Parse:
    """Status, code and Retry-After of a refusal, with a line for each."""
    from smpd.fetch.refusals import RETRY_AFTER_MAX_S
    from smpd.fetch.refusals import refusal as parse_refusal

    def parse(data: bytes) -> None:
        status = int.from_bytes(data[:2], "big") % 600
        code, _, after = data[2:].decode("latin-1").partition("\n")
        error = parse_refusal(status, code, {"retry-after": after}, "bucket b at h", "p" if status % 2 else "")
        assert 0.0 <= error.details.get("retry_after", 0.0) <= RETRY_AFTER_MAX_S

    return parse


def listing() -> Parse:
    """A page of a listing."""
    from smpd.fetch.listing import parse_page

    def parse(data: bytes) -> None:
        if page := parse_page(data):
            assert all(isinstance(each.key, str) and isinstance(each.size, int) for each in page.objects)

    return parse


def listing_time() -> Parse:
    """A time in a listing."""
    from smpd.fetch.bucket import timestamp

    def parse(data: bytes) -> None:
        timestamp(data.decode("utf-8", "replace")).timestamp()

    return parse


def notification() -> Parse:
    """A message of a queue, and what it names."""
    from smpd.fetch.events import keys_of, paths_of
    from smpd.fetch.remote import check_path

    def parse(data: bytes) -> None:
        for path in paths_of(keys_of(data.decode("utf-8", "replace"), "scans") or [], "root/", "in/"):
            assert path.startswith("in/")
            check_path(path)

    return parse


def pin() -> Parse:
    """A pin, and an ETag."""
    from smpd.fetch.pins import bare_etag, parse_pin

    def parse(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        bare_etag(text)
        parse_pin(text)

    return parse


def sftp_fields() -> Parse:
    """The bodies of replies: the first byte says which."""
    from smpd.fetch import sftp_wire as w

    readers = [w.attributes_of, w.handle_of, w.read_limit, w.refusal, lambda reply: w.tells_limits(reply.body)]
    kinds = [w.ATTRS, w.HANDLE, w.EXTENDED_REPLY, w.STATUS, w.VERSION]

    def parse(data: bytes) -> None:
        number = data[0] % len(readers) if data else 0
        readers[number](w.Reply(kinds[number], data[1:]))

    return parse


def sftp_stream() -> Parse:
    """A server's stream, in pieces, while a range is read and other things are asked; only the range's place is written."""
    import asyncssh

    from smpd.fetch import sftp_wire as w

    def parse(data: bytes) -> None:
        guard = bytearray(b"g" * 8 + bytes(96) + b"g" * 8)
        requests = w.Requests(lambda _: None)
        requests.greet(lambda body: None)
        requests.ask(w.FSTAT, w.string(b"h"), lambda reply: None)
        ended: list[asyncssh.SFTPError | None] = []
        w.RangeRead(requests, b"h", 0, memoryview(guard)[8:104], 32, ended.append)
        step = 1 + (data[0] if data else 0)
        try:
            for start in range(1, len(data), step):
                requests.feed(data[start : start + step])
                assert len(requests._head) <= 4 + w._REPLY_MAX_BYTES
        finally:
            assert guard[:8] == guard[104:] == b"g" * 8
            assert len(ended) <= 1

    return parse


def data_reply(number: int, body: bytes) -> bytes:
    """A DATA reply; for seeds."""
    return struct.pack(">IBII", len(body) + 9, 103, number, len(body)) + body
