"""Buckets, against rclone's S3 server and moto, through the real process."""

import contextlib
import random
from pathlib import Path

import anyio
import msgspec
import pytest
from fetch_link import Link, fetch_in_process, fetch_process
from hypothesis import given
from hypothesis import strategies as st
from servers import Served, admin, free_port, make_certificate, rclone_s3

from smp_proto.control import S3Config, S3Secret
from smp_proto.errors import SmpError, UsageError
from smpd.fetch import pins, upload
from smpd.fetch.refusals import RETRY_AFTER_MAX_S, retry_after

MIB = 1 << 20


def blob(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


async def parallel_reads(link: Link, path: str, data: bytes, length: int) -> None:
    """All ranges of an object at once, in random order, two to a slot, each in its place."""
    info = await link.stat(path)
    starts = list(range(0, len(data), length))
    random.Random(2).shuffle(starts)

    async def read(index: int, start: int) -> None:
        count = min(length, len(data) - start)
        got = await link.read(path, info.pin, start, count, slot=index // 2, at=length * (index % 2))
        assert data[start : start + count] == got

    async with anyio.create_task_group() as group:
        for index, start in enumerate(starts):
            group.start_soon(read, index, start)


@pytest.fixture(params=["rclone", "moto"])
def server(request: pytest.FixtureRequest) -> Served:
    """Both S3 servers."""
    found: Served = request.getfixturevalue(request.param)
    return found


async def test_what_is_written_is_read(server: Served) -> None:
    """An upload of three parts and a small one come back byte for byte, in parallel ranges, with their sizes."""
    data = blob(17 * MIB + 321)
    config = msgspec.structs.replace(server.config, prefix="some/where")
    async with fetch_process(config, server.secret, slots=5, slot_bytes=4 * MIB) as link:
        small = await link.write("a b/é+%41.bin", b"hello")
        assert (small.size, [5]) == (5, link.progress)
        large = await link.write("large", data)
        assert len(data) == large.size == link.progress[-1]
        assert link.progress == sorted(link.progress)
        assert len(link.progress) == 3
        assert large == await link.stat("large")
        await parallel_reads(link, "large", data, 2 * MIB)
        assert await link.read("a b/é+%41.bin", small.pin, 1, 3) == b"ell"
        assert await link.read("a b/é+%41.bin", small.pin, 0, 0) == b""
        empty = await link.write("empty", b"")
        assert empty.size == 0
        found = await link.list()
        assert [("a b/é+%41.bin", small.pin), ("empty", empty.pin), ("large", large.pin)] == [
            (info.path, info.pin) for info in found
        ]
        assert [info.path for info in await link.list(recursive=False)] == ["a b/", "empty", "large"]
        assert [info.path for info in await link.list("em")] == ["empty"]
        assert {"server", "endpoint", "tls"} <= set((await link.probe()).facts)
        for info in found:
            await link.delete(info.path)
        await link.delete("large")
        assert await link.list() == []


async def test_a_change_is_seen(server: Served) -> None:
    """Once an object is replaced, reads by the old pin are refused, also by a server that ignores If-Match."""
    async with fetch_process(server.config, server.secret) as link:
        old = await link.write("changing", b"first.")
        new = await link.write("changing", b"second")
        with pytest.raises(SmpError) as caught:
            await link.read("changing", old.pin, 0, 6)
        assert caught.value.code == "source_changed"
        assert await link.read("changing", new.pin, 0, 6) == b"second"
        await link.delete("changing")
        with pytest.raises(SmpError) as caught:
            await link.read("changing", new.pin, 0, 6)
        assert caught.value.code == "no_such_object"


async def test_what_is_not_there(server: Served) -> None:
    """A missing object and a missing bucket are told apart, for each act."""
    async with fetch_process(server.config, server.secret) as link:
        for path in ("none", "none/at/all"):
            with pytest.raises(SmpError) as caught:
                await link.stat(path)
            assert caught.value.code == "no_such_object"
    config = msgspec.structs.replace(server.config, bucket="nothing-here")
    async with fetch_process(config, server.secret) as link:
        for act in (link.stat("x"), link.probe(), link.list(), link.write("x", b"1"), link.read("x", "etag:1:a", 0, 1)):
            with pytest.raises(SmpError) as caught:
                await act
            assert caught.value.code == "no_such_bucket"


async def test_more_objects_than_a_page(tmp_path: Path) -> None:
    """A listing goes on over the server's pages, in the order of the bytes."""
    names = sorted(f"{number}" for number in range(1203))
    with rclone_s3(tmp_path) as served:
        (tmp_path / "scans/many").mkdir()
        for name in names:
            (tmp_path / "scans/many" / name).write_bytes(b"x")
        async with fetch_process(msgspec.structs.replace(served.config, prefix="many/"), served.secret) as link:
            assert names == [info.path for info in await link.list()]
            assert [name for name in names if name.startswith("10")] == [info.path for info in await link.list("10")]


async def test_refused_credentials(rclone: Served) -> None:
    """A wrong secret and an unknown key are refused as such, by every act, and nothing says what they were."""
    assert isinstance(rclone.secret, S3Secret)
    for secret in (S3Secret(rclone.secret.access_key, "wrong" * 8), S3Secret("AKIAXXXXXXXXXXXXXXXX", "wrong" * 8)):
        async with fetch_in_process(rclone.config, secret) as link:
            for act in (link.probe(), link.stat("x"), link.write("x", b"1"), link.read("x", "etag:1:a", 0, 1)):
                with pytest.raises(SmpError) as caught:
                    await act
                assert caught.value.code == "remote_auth"
                assert "wrongwrong" not in repr(caught.value.body())


async def test_servers_that_are_not_there() -> None:
    """A refused connection and an unknown host are unreachable, for the client and for the range reader."""
    for endpoint, why in ((f"http://127.0.0.1:{free_port()}", "refuses"), ("http://host.invalid", "host name")):
        async with fetch_in_process(S3Config("b", endpoint=endpoint, addressing="path"), S3Secret("k", "s")) as link:
            for act in (link.stat("x"), link.read("x", "etag:1:a", 0, 1)):
                with pytest.raises(SmpError, match=why) as caught:
                    await act
                assert (caught.value.code, caught.value.retryable) == ("remote_unreachable", True)


async def test_tls_is_verified(tmp_path: Path) -> None:
    """A certificate of an unknown authority is refused by client and range reader; given with ca_pem, both work."""
    cert, key = make_certificate(tmp_path)
    extra = ("--cert", str(cert), "--key", str(key))
    with rclone_s3(tmp_path / "data", *extra, scheme="https") as served:
        async with fetch_process(served.config, served.secret) as link:
            for act in (link.stat("x"), link.read("x", "etag:1:a", 0, 1), link.write("x", b"1"), link.probe()):
                with pytest.raises(SmpError) as caught:
                    await act
                assert (caught.value.code, caught.value.retryable) == ("remote_untrusted", False)
        config = msgspec.structs.replace(served.config, ca_pem="# Krankenhaus München\n" + cert.read_text())
        async with fetch_process(config, served.secret, slots=6) as link:
            data = blob(3 * MIB)
            await link.write("x", data)
            await parallel_reads(link, "x", data, MIB // 2)
            assert (await link.probe()).facts["tls"] == "TLSv1.3"
        config = msgspec.structs.replace(config, endpoint=config.endpoint.replace("127.0.0.1", "localhost"))
        async with fetch_process(config, served.secret) as link:
            with pytest.raises(SmpError) as caught:
                await link.read("x", "etag:1:a", 0, 1)
            assert caught.value.code == "remote_untrusted"


async def test_a_cancelled_upload_is_aborted(moto: Served) -> None:
    """Cancelling between parts leaves neither an upload nor an object behind."""
    client = admin(moto)
    async with fetch_process(moto.config, moto.secret, connections=1) as link:
        await link.write_and_cancel("cancelled", blob(24 * MIB))
    assert not client.list_multipart_uploads(Bucket="scans").get("Uploads")
    assert client.list_objects_v2(Bucket="scans", Prefix="cancelled")["KeyCount"] == 0


async def test_a_failed_upload_is_aborted(moto: Served) -> None:
    """A source shorter than announced fails the upload and leaves nothing behind."""
    async with fetch_process(moto.config, moto.secret) as link:
        with pytest.raises(SmpError) as caught:
            await link.write("short", blob(17 * MIB), size=18 * MIB)
        assert caught.value.code == "bad_request"
        with pytest.raises(SmpError) as caught:
            await link.write("short", b"1", size=2)
        assert caught.value.code == "bad_request"
    assert not admin(moto).list_multipart_uploads(Bucket="scans").get("Uploads")


async def test_odd_settings_are_refused(moto: Served) -> None:
    """An endpoint that is no URL, and certificates that are none, are bad_config at Setup."""
    for change in ({"endpoint": "s3.example.org"}, {"endpoint": "ftp://x"}, {"ca_pem": "no certificate"}):
        with pytest.raises(SmpError) as caught:
            async with fetch_process(msgspec.structs.replace(moto.config, **change), moto.secret):
                pass
        assert caught.value.code == "bad_config"


@given(st.integers(0, upload.OBJECT_MAX_BYTES))
def test_parts_are_few_and_large_enough(size: int) -> None:
    """Any object fits into the parts S3 allows: at most 10,000, of 5 MiB to 5 GiB."""
    length = upload.part_bytes(size)
    assert -(-size // length) <= upload.PARTS_MAX
    assert 5 * MIB <= length <= 5 << 30


@given(st.integers(0, 1 << 62), st.from_regex(r'[!#-~]{1,40}|"[!#-~]{1,40}"|W/"[!#-~]{1,40}"', fullmatch=True))
def test_a_pin_says_size_and_etag(size: int, etag: str) -> None:
    """Making a pin and taking it apart are inverse, quotes aside."""
    bare = etag[1:-1] if len(etag) > 2 and etag[0] == etag[-1] == '"' else etag
    assert (size, bare) == pins.parse_pin(pins.etag_pin(size, etag))


@given(st.text())
def test_other_pins_are_refused(pin: str) -> None:
    """A pin is parsed or refused as a bad request."""
    with contextlib.suppress(UsageError):
        size, etag = pins.parse_pin(pin)
        assert pin.startswith("etag:")
        assert size >= 0
        assert etag


@pytest.mark.parametrize("etag", ["", '""', 'a"b', "a b", "a\r\nX: y", "é", "x" * 300])
def test_an_unusable_etag_is_said_so(etag: str) -> None:
    """A server without proper ETags cannot pin an object."""
    with pytest.raises(SmpError, match="no ETag"):
        pins.etag_pin(1, etag)


@given(st.text() | st.integers().map(str) | st.datetimes().map(lambda t: t.strftime("%a, %d %b %Y %H:%M:%S GMT")))
def test_retry_after_is_seconds_within_bounds(value: str) -> None:
    """Whatever a server says, the wait is between none and an hour."""
    assert 0.0 <= retry_after(value) <= RETRY_AFTER_MAX_S


def test_retry_after_reads_both_forms() -> None:
    """Seconds and dates (RFC 9110 §10.2.3)."""
    assert retry_after("120") == 120.0
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert retry_after("Wed, 21 Oct 2099 07:28:00 GMT") == RETRY_AFTER_MAX_S
