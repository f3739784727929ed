"""A stand-in for the daemon: canned answers over a real Unix socket, served by ``smp_proto.aio``. It is no smpd."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import anyio.from_thread
import msgspec

from smp_proto import control as c
from smp_proto.aio import Channel, Exchange, close_all, decode, encode
from smp_proto.errors import NotFoundError, SmpError
from smp_proto.serving import serve
from smp_proto.wire import PROTOCOL_MAX, PROTOCOL_MIN, FrameType

VERSION = "9.9.9"
JOB_ID = "0198c0de5a3b7c11aabbccddeeff0011"
ITEM_ID = "5eed5eed5eed5eed5eed5eed5eed5eed"


def job(state: c.JobState = "running", **changes: Any) -> c.JobView:
    """A job, about which a test changes what matters to it."""
    base = c.JobView(JOB_ID, "get", state, "normal", "lab:scan.smp", "", "", "ann(1000)", time.time() - 5, time.time())
    return msgspec.structs.replace(base, **changes)


def status(**changes: Any) -> c.Status:
    """A healthy daemon."""
    worker = c.Worker("fetch", 4243, "", 50 << 20)
    base = c.Status(
        VERSION, "boot-1", 4242, 3725.0, "admin", "ab" * 16, "abab-abab", {"running": 1, "done": 7}, ["lab"], [worker],
        90 << 20, 12, True, 3, 5 << 40, "/var/lib/smpd",
    )  # fmt: skip
    return msgspec.structs.replace(base, **changes)


class StandIn:
    """Answers by ``answers``: a value, an exception, or ``async (request, exchange) -> value``, for each request type."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.hello = c.Hello(PROTOCOL_MIN, PROTOCOL_MAX, VERSION, "boot-1", "admin")
        self.seen: list[Any] = []
        self.faults: list[Exception] = []
        self.connections = 0
        self.written: dict[str, bytes] = {}
        done = job("done", total_bytes=100, done_bytes=100, result=c.Result(vault_id=ITEM_ID, entries=1, plain_bytes=5))
        self.answers: dict[type, Any] = {
            c.StatusRequest: status(),
            c.JobsRequest: c.Jobs([job()]),
            c.JobRequest: done,
            c.JobControl: job("paused"),
            c.Submit: job("queued"),
            c.Watch: self.watching([job("running", total_bytes=100, done_bytes=50), done]),
            c.VaultList: c.Vault([c.VaultItem(ITEM_ID, "aa" * 16, 4096, 1, "abab", time.time(), JOB_ID)]),
            c.VaultEntries: c.Entries([entry("a.txt", 5)]),
            c.VaultOpen: self.opening({"a.txt": b"hello"}),
            c.VaultRemove: None,
            c.RemoteRemove: None,
            c.SyncList: c.Syncs([]),
        }

    def watching(self, jobs: list[c.JobView]) -> Callable[[c.Watch, Exchange], Any]:
        """An answer that sends a job's states as events, then ends."""

        async def answer(request: c.Watch, exchange: Exchange) -> None:
            for number, each in enumerate(jobs, 1):
                kind = "snapshot" if number == 1 else "job"
                await exchange.send(c.Event(request.since + number, kind, msgspec.Raw(encode(each))))

        return answer

    def opening(
        self, contents: dict[str, bytes], error: SmpError | None = None
    ) -> Callable[[c.VaultOpen, Exchange], Any]:
        """An answer that writes contents into the descriptors it gets."""

        async def answer(_request: c.VaultOpen, exchange: Exchange) -> c.Entries:
            last = False
            while not last:
                message, fds = await exchange.receive(c.OpenInto)
                (fd,) = fds
                os.write(fd, contents[message.name])
                close_all(fds)
                last = message.last
            if error is not None:
                raise error
            return c.Entries([entry(name, len(data)) for name, data in contents.items()])

        return answer

    async def putting(self, _request: c.Submit, exchange: Exchange) -> c.JobView:
        """An answer to a put: reads every descriptor, acknowledging each."""
        last, done = False, 0
        while not last:
            message, fds = await exchange.receive(c.PutFile)
            (fd,) = fds
            with open(fd, "rb") as file:
                self.written[message.name] = file.read()
            done += message.size
            self.seen.append(message)
            await exchange.send(c.Sealing(done, len(self.written)))
            last = message.last
        return job("queued", kind="put")

    async def _answer(self, body: bytes, fds: list[int], exchange: Exchange) -> Any:
        close_all(fds)
        request = decode(body, c.AnyRequest)
        self.seen.append(request)
        if type(request) not in self.answers:
            raise NotFoundError("no_such_object", "the stand-in has no answer", hint="give it one")
        answer = self.answers[type(request)]
        if callable(answer):
            return await answer(request, exchange)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def connection(self, sock: socket.socket) -> None:
        """One connection: HELLO, then requests."""
        self.connections += 1
        channel = Channel(sock)
        try:
            await channel.receive()
            await channel.send(FrameType.HELLO, 0, encode(self.hello))
            await serve(channel, self._answer, unexpected=self.faults.append)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            pass
        finally:
            channel.close()

    async def serve(self, started: threading.Event, stop: "anyio.Event") -> None:
        """Accept until told to stop."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(self.path)
            listener.listen(16)
            listener.setblocking(False)
            started.set()
            async with anyio.create_task_group() as group:
                group.start_soon(self._accept, listener, group)
                await stop.wait()
                group.cancel_scope.cancel()
        os.unlink(self.path)

    async def _accept(self, listener: socket.socket, group: Any) -> None:
        while True:
            await anyio.wait_readable(listener)
            group.start_soon(self.connection, listener.accept()[0])


def entry(name: str, size: int) -> c.EntryView:
    """An entry as listed."""
    return c.EntryView(name, size, "00" * 32, "text/plain")


@contextlib.contextmanager
def standin(path: str) -> Iterator[StandIn]:
    """A stand-in that serves in a thread of its own; a fault in it fails the test."""
    daemon = StandIn(path)
    started = threading.Event()
    with anyio.from_thread.start_blocking_portal() as portal:
        stop = portal.call(anyio.Event)
        future = portal.start_task_soon(daemon.serve, started, stop)
        assert started.wait(10)
        try:
            yield daemon
        finally:
            portal.call(stop.set)
            future.result(10)
    assert not daemon.faults


@contextlib.contextmanager
def rude(path: str, *, hello: bytes | None, then: bytes = b"", fds: int = 0) -> Iterator[None]:
    """A peer that says fixed bytes to every connection, with descriptors if wanted, and closes."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(4)

    def talk() -> None:
        while True:
            try:
                sock = listener.accept()[0]
            except OSError:
                return
            with sock, contextlib.suppress(OSError):
                sock.recv(1 << 16)
                if hello is not None:
                    sock.sendall(hello)
                    sock.recv(1 << 16)
                handles = [os.open(os.devnull, os.O_RDONLY) for _ in range(fds)]
                if handles:
                    socket.send_fds(sock, [then], handles)
                else:
                    sock.sendall(then)
                for handle in handles:
                    os.close(handle)

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)
