"""The webhook: what is read of its configuration, and what a real fetch process sends, to whom, and takes for success."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hook_server import HookServer
from hypothesis import given
from hypothesis import strategies as st
from servers import make_certificate

from smp_proto.errors import DaemonError, RemoteError, ResourceError, UsageError
from smpd.links import fetching
from smpd.links.webhook import check_url, parse_header, parse_url
from smpd.transfer.webhook import Webhook
from smpd.transfer.workers import start_worker
from smpd.walls.sandbox import WALLS, Kernel

SECRET = "Bearer 3f1c-not-to-be-seen"
BODY = b'{"box":"b","events":[],"version":1,"test":true}'
KERNEL = Kernel.probe()
MODE = "required" if KERNEL.landlock_abi and KERNEL.seccomp else "auto"


@pytest.fixture
def server() -> Iterator[HookServer]:
    with HookServer() as found:
        yield found.listen()


def webhook(url: str, header_file: str = "", ca_file: str = "") -> Webhook:
    return Webhook(url, header_file, ca_file, 60.0, MODE, fetching.Deadlines())


async def test_tls_is_verified(tmp_path: Path) -> None:
    """An unknown authority and another name are refused before anything is sent; with ca_file it is taken."""
    cert, key = make_certificate(tmp_path)
    header = tmp_path / "header"
    header.write_text(f"Authorization: {SECRET}\n")
    header.chmod(0o600)
    with HookServer((str(cert), str(key))) as server:
        server.listen()
        url = f"https://127.0.0.1:{server.port}/told/x?a=b"
        with pytest.raises(ResourceError, match=r"the webhook at 127\.0\.0\.1 .* is not trusted") as caught:
            await webhook(url, str(header)).run(BODY)
        assert (caught.value.code, "notify.ca_file" in caught.value.hint) == ("notify_failed", True)
        with pytest.raises(ResourceError, match="is not trusted"):
            await webhook(url.replace("127.0.0.1", "localhost"), str(header), str(cert)).run(BODY)
        assert server.posted.empty()
        await webhook(url, str(header), str(cert)).run(BODY)
        path, headers, body = server.next()
        assert (path, body, server.posted.empty()) == ("/told/x?a=b", BODY, True)
        assert headers["Authorization"] == SECRET
        assert headers["Content-Type"] == "application/json"
        assert headers["Host"] == f"127.0.0.1:{server.port}"


async def test_only_2xx_is_success(server: HookServer) -> None:
    """Everything else is an error with its status; no redirect is followed, and of an answer only so much is taken."""
    async with start_worker("fetch", "test") as worker:
        with pytest.raises(DaemonError, match="SetupWebhook comes first"):
            await worker.caller.call(fetching.Post(BODY), type(None), timeout=60)
        setup = fetching.SetupWebhook(f"http://127.0.0.1:{server.port}", "X-Token: t", sandbox=MODE)
        walls = await worker.caller.call(setup, fetching.Walls, timeout=60)
        if MODE == "required":
            assert walls.sandbox == dict.fromkeys(WALLS, "on")
        for status, fields, said, error in (
            (200, {}, b"ok", ""),
            (302, {"Location": f"http://127.0.0.1:{server.port}/elsewhere"}, b"", "status 302: redirects are not"),
            (503, {}, SECRET.encode(), "status 503"),
            (401, {}, b"", "status 401"),
            (200, {}, bytes(1 << 20), "longer than 65536 bytes"),
            (204, {}, b"", ""),
        ):
            server.answer = lambda status=status, fields=fields, said=said: (status, fields, said)
            if error:
                with pytest.raises(RemoteError, match=error) as caught:
                    await worker.caller.call(fetching.Post(BODY), type(None), timeout=60)
                assert SECRET not in str(caught.value.body())
            else:
                await worker.caller.call(fetching.Post(BODY), type(None), timeout=60)
            path, headers, body = server.next()
            assert (path, headers["X-Token"], body) == ("/", "t", BODY)
        assert server.posted.empty()
        with pytest.raises(DaemonError, match="Setup comes once"):
            await worker.caller.call(setup, fetching.Walls, timeout=60)
        with pytest.raises(DaemonError, match="Setup comes first"):
            await worker.caller.call(fetching.Stat("x"), type(None), timeout=60)


async def test_a_server_that_is_silent_is_left_at_the_deadline(tmp_path: Path) -> None:
    """And a header that cannot be sent is refused before there is a process, without being shown."""
    with HookServer() as server:
        server._server.server_activate()  # connections are taken by the kernel, and nobody reads them
        hook = webhook(f"http://127.0.0.1:{server.port}/")
        with pytest.raises(ResourceError, match=r"did not take it within 0\.6 s"):
            await hook._replace(timeout_s=0.6).run(BODY)
        header = tmp_path / "header"
        header.write_text(f"Authorization: {SECRET}\nX: y\n")
        header.chmod(0o600)
        with pytest.raises(ResourceError, match="does not hold one header line") as caught:
            await hook._replace(header_file=str(header)).run(BODY)
        assert SECRET not in str(caught.value.body())


def test_no_repr_shows_the_header() -> None:
    """Of the one message that has it."""
    assert SECRET not in repr(fetching.SetupWebhook("https://h/", f"Authorization: {SECRET}"))


HOSTS = st.text("a0.-", max_size=20).map("h".__add__) | st.just("[::1]") | st.just("[2001:db8::5]")
TARGETS = (
    st.just("") | st.text("aZ0._~%/-=&?", max_size=20).map("/".__add__) | st.text("a=&/?", max_size=9).map("?".__add__)
)


@given(st.sampled_from(["http", "https"]), HOSTS, st.none() | st.integers(1, 65535), TARGETS)
def test_a_url_is_taken_apart_as_the_standard_library_does(
    scheme: str, host: str, port: int | None, target: str
) -> None:
    """Host, port and what is sent."""
    url = f"{scheme}://{host}{'' if port is None else f':{port}'}{target}"
    address, parts = parse_url(url), urlsplit(url)
    assert (address.host, address.secure) == (parts.hostname, scheme == "https")
    assert address.port == (port or (443 if address.secure else 80))
    assert address.target == target if target.startswith("/") else f"/{target}"


@given(st.text(max_size=60) | st.text("htps:/@[]?#%a1. \r\n", max_size=40).map("https://".__add__))
def test_no_url_smuggles(url: str) -> None:
    """Any text is refused, or has nothing in it that ends a line or names a user."""
    try:
        address = parse_url(url)
    except UsageError as error:
        assert error.code == "bad_config"
    else:
        assert not set("\r\n \0@#") & set(address.host)
        assert not set("\r\n \0#") & set(address.target)


@given(st.binary(max_size=60) | st.text("Aa: \t\r\n\x00", max_size=20).map(lambda text: f"X-T: {text}".encode()))
def test_a_header_is_one_line(line: bytes) -> None:
    """Any bytes are refused, or are one field that is ours to send."""
    try:
        header = parse_header(line)
    except UsageError as error:
        assert error.code == "bad_config"
    else:
        name, _, value = header.partition(": ")
        assert name
        assert value == value.strip()
        assert header.isascii()
        assert header.isprintable()


@pytest.mark.parametrize(
    "line", [b"", b"Authorization", b"A: b\r\nC: d", b"Host: x", b"content-LENGTH: 5", b"A b: c", b"A:"]
)
def test_headers_that_are_refused(line: bytes) -> None:
    with pytest.raises(UsageError):
        parse_header(line)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "[::1]", "localhost", "LocalHost"])
def test_http_is_for_this_machine(host: str) -> None:
    """Elsewhere it takes a word more."""
    check_url(f"http://{host}:8080/", plain_http=False)
    for other in ("http://10.0.0.1/", "http://localhost.example/", "http://[::2]/", "http://0.0.0.0/"):
        with pytest.raises(UsageError, match="over http"):
            check_url(other, plain_http=False)
        check_url(other, plain_http=True)
