"""Both clients against the stand-in: what they send, what they take, and how they go on."""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest
from client.standin import ITEM_ID, JOB_ID, StandIn, entry, job, rude, standin
from descriptors import descriptors

from smp_proto import aio
from smp_proto import control as c
from smp_proto.aio import Exchange
from smp_proto.errors import DaemonError, DeniedError, IntegrityError, NotFoundError, SmpError, StateError, UsageError
from smp_proto.wire import PROTOCOL_MAX, PROTOCOL_MIN, FrameType, encode_frame
from smpctl import AsyncClient, Client, LocalFile, collect, job_of
from smpctl.address import candidates, connect
from smpctl.connection import End
from smpctl.handing import FILES_AHEAD, Handing
from smpctl.watching import Cursor


def test_both_clients_have_the_same_methods() -> None:
    """AsyncClient is Client, awaited: the same public names with the same arguments."""
    import inspect

    def public(kind: type) -> dict[str, list[str]]:
        names = [name for name in dir(kind) if not name.startswith("_") and name != "close"]
        return {name: list(inspect.signature(getattr(kind, name)).parameters) for name in names}

    assert public(AsyncClient) == public(Client)


def test_end_is_the_same_on_both_sides() -> None:
    """The light copy of END has the fields of the protocol's."""
    fields = [(each.name, each.type, each.default) for each in msgspec.structs.fields(aio.End)]
    assert [(each.name, each.type, each.default) for each in msgspec.structs.fields(End)] == fields


SIMPLE: list[tuple[str, tuple[Any, ...], c.Request, Any]] = [
    ("status", (), c.StatusRequest(), None),
    ("jobs", (["done"],), c.JobsRequest(["done"]), c.Jobs([])),
    ("job", (JOB_ID,), c.JobRequest(JOB_ID), None),
    ("pause", (JOB_ID,), c.JobControl(JOB_ID, "pause"), None),
    ("resume", (JOB_ID,), c.JobControl(JOB_ID, "resume"), None),
    ("cancel", (JOB_ID,), c.JobControl(JOB_ID, "cancel"), None),
    ("doctor", (), c.DoctorRequest(), c.Doctor([])),
    ("notify_test", (), c.NotifyTest(), c.NotifyTested([c.NotifyTried("/bin/tell", 1.0)])),
    ("processors", (), c.ProcessorsRequest(), c.Processors([])),
    ("box_key", (), c.BoxKey(), c.PublicKey("a", "b", "c")),
    ("box_rotate", ("stolen",), c.BoxRotate("stolen"), c.PublicKey("a", "b", "c", ["d"])),
    ("remotes", (), c.RemoteList(), c.Remotes([])),
    ("remote_test", ("lab",), c.RemoteTest("lab"), c.RemoteTested("lab", 1.0)),
    ("remote_remove", ("lab",), c.RemoteRemove("lab"), None),
    ("vault", (), c.VaultList(), None),
    ("vault_entries", (ITEM_ID,), c.VaultEntries(ITEM_ID), None),
    ("vault_remove", (ITEM_ID,), c.VaultRemove(ITEM_ID), None),
    ("trust_add", ("ann", "key"), c.TrustAdd("ann", "key"), c.TrustView("ann", "", "", 0.0)),
    ("trusted", (), c.TrustList(), c.Trusted([])),
    ("trust_remove", ("ann",), c.TrustRemove("ann"), c.TrustView("ann", "", "", 0.0)),
]


@pytest.mark.parametrize(("method", "args", "request_", "answer"), SIMPLE, ids=[each[0] for each in SIMPLE])
async def test_each_method_asks_for_what_it_says(
    daemon: StandIn, method: str, args: tuple[Any, ...], request_: c.Request, answer: Any
) -> None:
    """Each method sends its request and gives back the reply, the same from both clients."""
    if answer is not None:
        daemon.answers[type(request_)] = answer
    async with AsyncClient(daemon.path) as client:
        found = await getattr(client, method)(*args)
    with Client(daemon.path) as blocking:
        assert await anyio.to_thread.run_sync(lambda: getattr(blocking, method)(*args)) == found
    assert daemon.seen == [request_, request_]


def test_an_error_arrives_as_its_class(daemon: StandIn) -> None:
    """The daemon's error is raised again whole, and the connection stays usable."""
    daemon.answers[c.DoctorRequest] = DeniedError("forbidden", "no", hint="ask", details={"role": "admin"})
    with Client(daemon.path) as client:
        with pytest.raises(DeniedError) as caught:
            client.doctor()
        assert (caught.value.hint, caught.value.details) == ("ask", {"role": "admin"})
        assert client.status().pid == 4242
    assert daemon.connections == 1


def test_streams_of_one_client_do_not_disturb_each_other(daemon: StandIn) -> None:
    """While a listing is read, other questions are answered; leaving it early cancels it."""
    cancelled = threading.Event()

    async def endless(_request: c.ListObjects, exchange: aio.Exchange) -> None:
        try:
            for number in range(3):
                await exchange.send(c.Objects([c.ObjectInfo(f"{number}", 1)]))
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    daemon.answers[c.ListObjects] = endless
    with Client(daemon.path) as client:
        listing = client.ls("lab:")
        assert next(listing).path == "0"
        assert client.status().pid == 4242
        assert next(listing).path == "1"
        listing.close()
        assert cancelled.wait(10)
        assert client.status().pid == 4242
    assert daemon.connections == 1


async def test_async_calls_run_at_the_same_time(daemon: StandIn) -> None:
    """Two calls overlap on one connection: the first is answered only once the second was asked."""
    second = anyio.Event()

    async with AsyncClient(daemon.path) as client, anyio.create_task_group() as group:

        async def slow(_request: c.DoctorRequest, _exchange: aio.Exchange) -> c.Doctor:
            await anyio.to_thread.run_sync(asked.wait, 10)
            return c.Doctor([])

        async def quick(_request: c.BoxKey, _exchange: aio.Exchange) -> c.PublicKey:
            asked.set()
            return c.PublicKey("", "", "")

        asked = threading.Event()
        daemon.answers |= {c.DoctorRequest: slow, c.BoxKey: quick}
        group.start_soon(client.doctor)
        await client.box_key()
        second.set()
    assert daemon.connections == 1


# ── finding the daemon ──


def test_where_the_daemon_is_looked_for(tmp_path: Path) -> None:
    """An explicit path, then SMPD_SOCKET, are the only one; else the person's own before the machine's."""
    assert candidates("/x", {"SMPD_SOCKET": "/y"}) == ["/x"]
    assert candidates(None, {"SMPD_SOCKET": "/y"}) == ["/y"]
    assert candidates(None, {"XDG_RUNTIME_DIR": "/run/user/7"}) == ["/run/user/7/smpd/smpd.sock", "/run/smpd/smpd.sock"]


@pytest.mark.parametrize(("mode", "owned"), [(0o700, True), (0o755, False)])
def test_a_folder_in_tmp_must_be_ours_alone(monkeypatch: pytest.MonkeyPatch, mode: int, owned: bool) -> None:
    """Without XDG_RUNTIME_DIR the folder in /tmp counts only when it is ours and closed to others."""
    folder = f"/tmp/smpd-{os.getpid() + 10_000_000}"
    monkeypatch.setattr(os, "getuid", lambda: int(folder.rpartition("-")[2]))
    monkeypatch.setattr(os, "lstat", lambda _path: os.stat_result([0o040000 | mode, 0, 0, 0, os.getuid(), *[0] * 5]))
    assert candidates(None, {}) == ([f"{folder}/smpd.sock"] if owned else []) + ["/run/smpd/smpd.sock"]


def test_a_socket_nobody_listens_on_is_named(tmp_path: Path) -> None:
    """Each socket that was tried is named with its reason; a hint says how to start one."""
    path = str(tmp_path / "s")
    with standin(path):
        pass
    with pytest.raises(DaemonError, match="not there") as caught:
        connect(path)
    assert (caught.value.code, "smpd" in caught.value.hint) == ("daemon_down", True)


# ── hostile peers ──

GOOD_HELLO = encode_frame(FrameType.HELLO, 0, aio.encode(c.Hello(PROTOCOL_MIN, PROTOCOL_MAX, "9", "b", "admin")))
STRANGER = c.Hello(PROTOCOL_MAX + 1, PROTOCOL_MAX + 3, "9.0")
ANCIENT = c.Hello(0, PROTOCOL_MIN - 1, "0.0")


def _end(**fields: Any) -> bytes:
    return encode_frame(FrameType.END, 1, aio.encode(fields))


RUDE: dict[str, tuple[dict[str, Any], str]] = {
    "closes at once": ({"hello": None}, "daemon_down"),
    "garbage for HELLO": ({"hello": b"HTTP/1.1 400 Bad Request\r\n\r\n"}, "protocol"),
    "a body over the limit": ({"hello": b"\xff\xff\xff\xff\0\0\0\0\1\0"}, "protocol"),
    "DATA before HELLO": ({"hello": encode_frame(FrameType.DATA, 1, b"\xc0")}, "protocol"),
    "no HELLO inside": ({"hello": encode_frame(FrameType.HELLO, 0, b"\x93\1\2\3")}, "protocol"),
    "a newer protocol": ({"hello": encode_frame(FrameType.HELLO, 0, aio.encode(STRANGER))}, "protocol_version"),
    "an older protocol": ({"hello": encode_frame(FrameType.HELLO, 0, aio.encode(ANCIENT))}, "protocol_version"),
    "closes after HELLO": ({"hello": GOOD_HELLO}, "daemon_down"),
    "closes inside a frame": ({"hello": GOOD_HELLO, "then": _end(ok=None)[:-1]}, "daemon_down"),
    "garbage for a reply": ({"hello": GOOD_HELLO, "then": b"\0" * 64}, "protocol"),
    "a reply of another kind": ({"hello": GOOD_HELLO, "then": _end(ok={"pid": "x"})}, "protocol"),
    "another stream": ({"hello": GOOD_HELLO, "then": encode_frame(FrameType.END, 7, b"\x80")}, "protocol"),
    "a request": ({"hello": GOOD_HELLO, "then": encode_frame(FrameType.REQUEST, 1, b"\x80")}, "protocol"),
    "descriptors": ({"hello": GOOD_HELLO, "then": encode_frame(FrameType.DATA, 1, b"\x80", 2), "fds": 2}, "protocol"),
    "deep nesting": ({"hello": GOOD_HELLO, "then": encode_frame(FrameType.END, 1, b"\x91" * 100_000)}, "protocol"),
}


@pytest.mark.parametrize("name", RUDE)
async def test_a_rude_peer_is_a_typed_error(tmp_path: Path, name: str) -> None:
    """Whatever the other side sends, both clients end with an error of the protocol, and keep no descriptor."""
    says, code = RUDE[name]
    path = str(tmp_path / "s")

    def ask() -> None:
        with Client(path) as client:
            client.status()

    async def ask_async() -> None:
        async with AsyncClient(path) as client:
            await client.status()

    with rude(path, **says):
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(DaemonError) as caught:
            await anyio.to_thread.run_sync(ask)
        assert caught.value.code == code
        assert caught.value.hint
        with pytest.raises(DaemonError) as caught:
            await ask_async()
        # The driver closes stray descriptors of a message that nobody wants, and reads on.
        assert caught.value.code == ("daemon_down" if name == "descriptors" else code)
        assert len(os.listdir("/proc/self/fd")) <= before + 1  # the peer's own accepted socket


@pytest.mark.parametrize(("hello", "older"), [(STRANGER, "smpctl"), (ANCIENT, "smpd")])
def test_version_errors_say_which_side_to_upgrade(tmp_path: Path, hello: c.Hello, older: str) -> None:
    """The hint names the older side."""
    with rude(str(tmp_path / "s"), hello=encode_frame(FrameType.HELLO, 0, aio.encode(hello))):
        with pytest.raises(DaemonError, match=r"speaks protocol") as caught:
            Client(str(tmp_path / "s")).status()
    assert (caught.value.hint, caught.value.details) == (f"upgrade {older}", {"upgrade": older})


def test_a_refusal_in_hello_is_the_daemons_own_error(daemon: StandIn) -> None:
    """HELLO with an error, such as for someone without a role, is raised as that error."""
    refusal = DeniedError("forbidden", "no role here", hint="ask for the group smpd")
    daemon.hello.error = refusal.body()
    with pytest.raises(DeniedError, match="no role here"):
        Client(daemon.path).status()


def test_a_flood_of_unread_messages_ends_the_connection(daemon: StandIn) -> None:
    """Messages on a stream that nobody reads are bounded."""

    async def flood(_request: c.ListObjects, exchange: aio.Exchange) -> None:
        for _ in range(6000):
            await exchange.send(c.Objects([]))

    async def never(_request: c.DoctorRequest, _exchange: aio.Exchange) -> None:
        await anyio.sleep_forever()

    daemon.answers |= {c.ListObjects: flood, c.DoctorRequest: never}
    with Client(daemon.path) as client:
        unread = client._open(c.ListObjects("lab:"))
        with pytest.raises(DaemonError, match="unread messages"):
            client.doctor()
        assert unread.stream == 1


def test_a_silent_daemon_is_given_up(daemon: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request without an answer ends after its time with daemon_down."""

    async def never(_request: c.BoxKey, _exchange: aio.Exchange) -> None:
        await anyio.sleep_forever()

    daemon.answers[c.BoxKey] = never
    with Client(daemon.path) as client, pytest.raises(DaemonError, match=r"within 0\.05 s"):
        client._call(c.BoxKey(), c.PublicKey, 0.05)


# ── jobs ──


def test_submit_asks_again_with_the_same_key(daemon: StandIn) -> None:
    """When the connection breaks before the answer, the second request has the first one's key."""

    async def break_once(_request: c.Submit, exchange: aio.Exchange) -> c.JobView:
        if daemon.connections == 1:
            exchange.channel.socket.shutdown(2)
            await anyio.sleep_forever()
        return job("queued")

    daemon.answers[c.Submit] = break_once
    with Client(daemon.path) as client:
        assert client.submit(c.GetSpec("lab:a")).id == JOB_ID
    first, second = daemon.seen
    assert first == second
    assert len(first.key) == 32


@contextlib.contextmanager
def _lagging(daemon: StandIn, told: list[int | None]) -> Iterator[None]:
    """A watch that ends with ``lagged`` as often as there are numbers to be told, then with the jobs."""

    async def answer(request: c.Watch, exchange: aio.Exchange) -> None:
        if told:
            since = told.pop(0)
            if since is not None:
                await exchange.send(c.Event(since, "job", msgspec.Raw(aio.encode(job()))))
            raise DaemonError("lagged", "too slow", details={"since": since or 0})
        await daemon.watching([job("done")])(request, exchange)

    daemon.answers[c.Watch] = answer
    yield


def test_watch_resumes_after_lagged(daemon: StandIn) -> None:
    """A watch that fell behind goes on where the daemon said, without anybody noticing."""
    with _lagging(daemon, [40, 77]), Client(daemon.path) as client:
        states = [found.state for event in client.watch(jobs=[JOB_ID]) if (found := job_of(event))]
    assert states == ["running", "running", "done"]
    assert [each.since for each in daemon.seen] == [0, 40, 77]


def test_closing_ends_a_watch_in_another_thread(daemon: StandIn) -> None:
    """It does not connect again, as it does when the daemon went away."""
    begun = threading.Event()

    async def watching(request: c.Watch, exchange: Exchange) -> None:
        begun.set()
        await anyio.sleep_forever()

    daemon.answers[c.Watch] = watching
    client = Client(daemon.path)
    with ThreadPoolExecutor(1) as thread:
        ended = thread.submit(list, client.watch())
        assert begun.wait(20)
        client.close()
        with pytest.raises(DaemonError, match="closed the connection"):
            ended.result(20)
    assert daemon.connections == 1


def test_watch_without_resume_raises(daemon: StandIn) -> None:
    """Asked not to go on, a watch raises what happened, with the number to go on from."""
    with _lagging(daemon, [40]), Client(daemon.path) as client, pytest.raises(DaemonError) as caught:
        list(client.watch(resume=False))
    assert (caught.value.code, caught.value.details) == ("lagged", {"since": 40})


def test_a_daemon_that_only_lags_is_given_up(daemon: StandIn) -> None:
    """Lagged again and again without an event between is an error, not a loop."""
    with _lagging(daemon, [None] * 9), Client(daemon.path) as client, pytest.raises(DaemonError):
        list(client.watch())
    assert [each.since for each in daemon.seen] == [0, 0, 0]


async def test_wait_survives_a_restart_of_the_daemon(home: Path, tmp_path: Path) -> None:
    """A wait goes on with the next daemon at the same place, from a snapshot, in both clients."""
    path = str(tmp_path / "s")

    async def hang(_request: c.Watch, exchange: aio.Exchange) -> None:
        await exchange.send(c.Event(500, "snapshot", msgspec.Raw(aio.encode(job()))))
        await anyio.sleep_forever()

    for kind in ("sync", "async"):
        seen: list[str] = []
        restarted = threading.Event()
        first = contextlib.ExitStack()
        before = first.enter_context(standin(path))
        before.answers[c.Watch] = hang

        def restart(found: c.JobView, seen: list[str] = seen, restarted: threading.Event = restarted) -> None:
            seen.append(found.state)
            restarted.set()

        async def noticed(found: c.JobView, restart: Any = restart) -> None:
            restart(found)

        async with anyio.create_task_group() as group:
            finals: list[c.JobView] = []

            async def wait(kind: str = kind, finals: list[c.JobView] = finals, restart: Any = restart) -> None:
                if kind == "sync":
                    with Client(path) as blocking:
                        finals.append(await anyio.to_thread.run_sync(blocking.wait, JOB_ID, restart))
                else:
                    async with AsyncClient(path) as client:
                        finals.append(await client.wait(JOB_ID, noticed))

            group.start_soon(wait)
            assert await anyio.to_thread.run_sync(restarted.wait, 10)
            await anyio.to_thread.run_sync(first.close)
            second = contextlib.ExitStack()
            after = await anyio.to_thread.run_sync(second.enter_context, standin(path))
            after.hello.boot_id = "boot-2"
            while not finals:
                await anyio.lowlevel.checkpoint()
        assert after.seen[0] == c.Watch(0, [JOB_ID])
        await anyio.to_thread.run_sync(second.close)
        assert (finals[0].state, seen) == ("done", ["running", "running", "done"])


def test_patience_ends() -> None:
    """A daemon that stays away is given up after the time given, waiting longer each time."""
    cursor = Cursor(0, True, 2.0)
    gone = DaemonError("daemon_down", "gone")
    waits = []
    with contextlib.suppress(DaemonError):
        while True:
            waits.append(cursor.after(gone))
    assert waits == [0.25, 0.5, 1.0, 2.0]
    with pytest.raises(DaemonError):  # what cannot get better is not waited for
        Cursor(0, True, 2.0).after(DaemonError("daemon_down", "denied", retryable=False))


# ── files in ──


async def test_put_keeps_a_window(daemon: StandIn, tmp_path: Path) -> None:
    """A daemon that seals nothing yet still gets a window full of files; all arrive, from both clients."""
    (tmp_path / "one").write_bytes(b"x")
    files = [LocalFile(f"{number:04}", str(tmp_path / "one")) for number in range(2 * FILES_AHEAD + 5)]

    async def slow(_request: c.Submit, exchange: aio.Exchange) -> c.JobView:
        for number in range(len(files)):
            _, fds = await exchange.receive(c.PutFile)
            aio.close_all(fds)
            if number + 1 >= FILES_AHEAD:
                await exchange.send(c.Sealing(number - FILES_AHEAD + 2, number - FILES_AHEAD + 2))
        return job("queued")

    daemon.answers[c.Submit] = slow
    with Client(daemon.path) as client:
        await anyio.to_thread.run_sync(lambda: client.put(files, "lab:x", ["k"]))
    async with AsyncClient(daemon.path) as client:
        await client.put(files, "lab:x", ["k"])


def test_asyncio_itself_may_cancel(daemon: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As asyncio.timeout does, and no scope of anyio: what a thread was opening then is closed."""
    (tmp_path / "one").write_bytes(b"x")
    daemon.answers[c.Submit] = daemon.putting
    real = LocalFile.open

    def slow(self: LocalFile) -> tuple[int, int]:
        time.sleep(0.3)
        return real(self)

    monkeypatch.setattr(LocalFile, "open", slow)

    async def main() -> None:
        async with AsyncClient(daemon.path) as client:
            await client.connect()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.put([tmp_path / "one"], "lab:x", ["k"]), 0.1)
            await asyncio.sleep(0.5)
            assert str(tmp_path / "one") not in descriptors().values()

    asyncio.run(main())


RATED = {
    "put": (c.Submit, lambda client, path: client.put([path / "one"], "lab:x", ["k"])),
    "watch": (c.Watch, lambda client, _: client.wait(JOB_ID)),
    "ls": (c.ListObjects, lambda client, _: client.ls("lab:")),
    "metrics": (c.MetricsRequest, lambda client, _: client.metrics()),
    "vault_open": (c.VaultOpen, lambda client, path: client.vault_open(ITEM_ID, path / "out")),
    "audit_lines": (c.AuditRead, lambda client, _: client.audit_lines()),
    "audit_read": (c.AuditRead, lambda client, _: client.audit_read()),
}


@pytest.mark.parametrize("name", RATED)
async def test_who_asks_too_often_waits_as_told(daemon: StandIn, tmp_path: Path, name: str) -> None:
    """Whatever is asked, by both clients."""
    kind, ask = RATED[name]
    (tmp_path / "one").write_bytes(b"x")
    daemon.answers |= {c.Submit: daemon.putting, c.ListObjects: None, c.MetricsRequest: None}
    daemon.answers[c.AuditRead] = c.AuditProof([], "smpd/x", b"k")
    real, asked = daemon.answers[kind], 0

    async def answer(request: Any, exchange: Exchange) -> Any:
        nonlocal asked
        asked += 1
        if asked % 2:
            raise DaemonError("rate_limited", "you ask too often", hint="wait", details={"retry_after": 0.05})
        return await real(request, exchange) if callable(real) else real

    daemon.answers[kind] = answer

    def blocking() -> None:
        with Client(daemon.path) as client:
            found = ask(client, tmp_path)
            if isinstance(found, Iterator):
                list(found)

    await anyio.to_thread.run_sync(blocking)
    (tmp_path / "out/a.txt").unlink(missing_ok=True)
    async with AsyncClient(daemon.path) as client:
        found = ask(client, tmp_path)
        if isinstance(found, AsyncIterator):
            assert [each async for each in found] == []
        else:
            await found
    assert asked == 4


def test_no_file_is_sent_beyond_the_window(tmp_path: Path) -> None:
    """A full window waits for the daemon, by files and not by bytes: empty ones count too."""
    (tmp_path / "empty").write_bytes(b"")
    seen: list[tuple[int, int]] = []
    handing = Handing(
        [LocalFile(str(number), str(tmp_path / "empty")) for number in range(FILES_AHEAD + 2)],
        lambda *each: seen.append(each),
    )
    for number, (message, fd) in enumerate(handing, 1):
        os.close(fd)
        assert message.last == (number == FILES_AHEAD + 2)
        assert handing.must_wait == (number >= FILES_AHEAD)
        if handing.must_wait:
            handing.sealed(c.Sealing(0, number - FILES_AHEAD + 1))
            assert not handing.must_wait
    assert seen == [(0, 0)] * 3


def test_put_refused_at_once_is_that_error(daemon: StandIn, tmp_path: Path) -> None:
    """A daemon that refuses before it reads a file ends the put with its error; the connection goes on."""
    (tmp_path / "one").write_bytes(b"x")
    daemon.answers[c.Submit] = DeniedError("forbidden", "no")
    with Client(daemon.path) as client:
        with pytest.raises(DeniedError):
            client.put([tmp_path / "one"] * 1, "lab:x", ["k"])
        assert client.status().pid == 4242


def test_collect_names_files_and_leaves_links_out(tmp_path: Path) -> None:
    """A file is named by itself, what is below a folder by the folder; links, pipes and clashes are told."""
    for name in ("d/sub/b", "d/a", "e/a"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "d/link").symlink_to(tmp_path / "e")
    os.mkfifo(tmp_path / "d/pipe")
    skipped: list[str] = []
    found = collect([tmp_path / "d", tmp_path / "e/a"], skipped=skipped.append)
    assert [file.name for file in found] == ["d/a", "d/sub/b", "a"]
    assert sorted(map(os.path.basename, skipped)) == ["link", "pipe"]
    with pytest.raises(UsageError, match="would both be named a"):
        collect([tmp_path / "d/a", tmp_path / "e/a"])
    with pytest.raises(UsageError, match="symbolic link"):
        collect([tmp_path / "d/link"])
    with pytest.raises(NotFoundError):
        collect([tmp_path / "nothing"])
    with pytest.raises(UsageError, match="no file"):
        collect([])
    (tmp_path / "link-later").symlink_to(tmp_path / "d/a")
    with pytest.raises(NotFoundError):
        LocalFile("x", str(tmp_path / "link-later")).open()
    with pytest.raises(NotFoundError, match="no regular file"):
        LocalFile("x", str(tmp_path / "d/pipe")).open()


def test_a_file_that_went_is_said(daemon: StandIn, tmp_path: Path) -> None:
    """A file that is not there any more when it is to be sent is ``no_such_file``."""
    gone = LocalFile("x", str(tmp_path / "gone"))
    with Client(daemon.path) as client, pytest.raises(NotFoundError) as caught:
        client.put([gone], "lab:x", ["k"])
    assert caught.value.code == "no_such_file"
    assert not any(isinstance(each, c.Submit) for each in daemon.seen)


# ── files out ──


@pytest.fixture(params=["sync", "async"])
def open_item(request: pytest.FixtureRequest, daemon: StandIn) -> AsyncIterator[Any]:
    """``vault_open`` of either client."""

    async def run(dest: Path, **options: Any) -> list[c.EntryView]:
        if request.param == "sync":
            with Client(daemon.path) as blocking:
                return await anyio.to_thread.run_sync(lambda: blocking.vault_open(ITEM_ID, dest, **options))
        async with AsyncClient(daemon.path) as client:
            return await client.vault_open(ITEM_ID, dest, **options)

    return run  # type: ignore[return-value]


def serve_entries(daemon: StandIn, contents: dict[str, bytes], error: SmpError | None = None) -> None:
    """Have the stand-in hold one item of these entries."""
    daemon.answers[c.VaultEntries] = c.Entries([entry(name, len(data)) for name, data in contents.items()])
    daemon.answers[c.VaultOpen] = daemon.opening(contents, error)


async def test_vault_open_in_several_goes(daemon: StandIn, tmp_path: Path, open_item: Any) -> None:
    """More entries than may be open at once are opened in batches, and all get their names together."""
    contents = {f"d/{number:03}": b"%d" % number for number in range(450)}
    serve_entries(daemon, contents)
    await open_item(tmp_path / "out")
    assert {f"d/{each.name}": each.read_bytes() for each in (tmp_path / "out/d").iterdir()} == contents
    assert sum(isinstance(each, c.VaultOpen) for each in daemon.seen) == 3


@pytest.mark.parametrize("there_before", [True, False])
async def test_nothing_stays_when_the_daemon_finds_damage(
    daemon: StandIn, tmp_path: Path, open_item: Any, there_before: bool
) -> None:
    """An error after the bytes were written leaves neither files nor folders of ours."""
    if there_before:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/mine").write_text("mine")
    serve_entries(daemon, {"d/a": b"a", "b": b"b"}, IntegrityError("corrupt", "bad tag"))
    with pytest.raises(IntegrityError):
        await open_item(tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["mine"] if there_before else not (tmp_path / "out").exists()


async def test_a_short_file_is_refused(daemon: StandIn, tmp_path: Path, open_item: Any) -> None:
    """A daemon that answers well but wrote too little delivers nothing."""
    serve_entries(daemon, {"a": b"abc"})
    daemon.answers[c.VaultEntries] = c.Entries([entry("a", 4)])
    with pytest.raises(IntegrityError, match="3 bytes instead of 4"):
        await open_item(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_several_items_land_together(daemon: StandIn, tmp_path: Path, kind: type[Client | AsyncClient]) -> None:
    """Files of several items get their names together; where two would be one file, none is opened."""
    serve_entries(daemon, {"a": b"abc"})

    async def entries(request: c.VaultEntries, _exchange: object) -> c.Entries:
        return c.Entries([entry("a" if request.id == ITEM_ID else "b", 3)])

    async def open_all(ids: list[str], dest: Path) -> dict[str, list[c.EntryView]]:
        if kind is Client:
            with Client(daemon.path) as blocking:
                return await anyio.to_thread.run_sync(blocking.vault_open_all, ids, dest)
        async with AsyncClient(daemon.path) as client:
            return await client.vault_open_all(ids, dest)

    daemon.answers |= {c.VaultEntries: entries, c.VaultOpen: daemon.opening({"a": b"abc", "b": b"xyz"})}
    found = await open_all([ITEM_ID, "other"], tmp_path / "out")
    assert {item: [each.name for each in entries] for item, entries in found.items()} == {
        ITEM_ID: ["a"],
        "other": ["b"],
    }
    assert ((tmp_path / "out/a").read_bytes(), (tmp_path / "out/b").read_bytes()) == (b"abc", b"xyz")
    with pytest.raises(StateError, match="other and another"):
        await open_all(["other", "another"], tmp_path / "none")
    assert not (tmp_path / "none").exists()


async def test_only_the_names_asked_for(daemon: StandIn, tmp_path: Path, open_item: Any) -> None:
    """Some of the entries can be opened; a name that is not there is an error."""
    serve_entries(daemon, {"a": b"a", "b": b"b"})
    assert [each.name for each in await open_item(tmp_path / "out", names=["b"])] == ["b"]
    assert os.listdir(tmp_path / "out") == ["b"]
    with pytest.raises(NotFoundError):
        await open_item(tmp_path / "out", names=["zz"])


async def test_a_file_that_is_there_is_not_replaced(daemon: StandIn, tmp_path: Path, open_item: Any) -> None:
    """Without overwrite an old file stays and nothing is asked to be opened; with it, it is replaced."""
    serve_entries(daemon, {"a": b"new", "b": b"b"})
    (tmp_path / "a").write_text("old")
    with pytest.raises(StateError):
        await open_item(tmp_path)
    assert not any(isinstance(each, c.VaultOpen) for each in daemon.seen)
    await open_item(tmp_path, overwrite=True)
    assert (tmp_path / "a").read_text() == "new"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("odd", [{"n": 1 << 64}, {"n": "\udc80"}, {"n": "x" * (1 << 20)}])
async def test_what_no_message_can_hold(daemon: StandIn, kind: type[Client | AsyncClient], odd: dict[str, Any]) -> None:
    """It is refused as any wrong request is."""
    spec = c.RunSpec("a:b", "digest", params=odd)
    with pytest.raises(UsageError) as caught:
        if kind is Client:
            with Client(daemon.path) as client:
                client.submit(spec)
        else:
            async with AsyncClient(daemon.path) as client:
                await client.submit(spec)
    assert caught.value.code == "bad_request"
