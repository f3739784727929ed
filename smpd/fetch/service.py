"""The link to smpd: requests in, each answered by the one remote, or the webhook, that the first of them named."""

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, cast

import anyio

from smp_proto.aio import Channel, Exchange, close_all, decode
from smp_proto.control import (
    AnyRemoteConfig,
    AnyRemoteSecret,
    LocalConfig,
    ObjectInfo,
    S3Config,
    S3Secret,
    SftpConfig,
    SftpSecret,
)
from smp_proto.errors import DaemonError, ErrorBody, RemoteError, SmpError, UsageError
from smp_proto.serving import serve
from smpd.fetch import sandbox
from smpd.fetch.crowd import rank
from smpd.fetch.pausing import tell
from smpd.fetch.remote import (
    BATCH_NAME_BYTES,
    BATCH_OBJECTS,
    LISTED_MAX_BYTES,
    Remote,
    Writing,
    changed,
    check_path,
    is_same,
)
from smpd.links import fetching
from smpd.links.ring import Ring
from smpd.walls.sandbox import Kernel

if TYPE_CHECKING:
    from smpd.fetch.webhook import Webhook

_REQUEST = cast("type[fetching.Request]", fetching.AnyRequest)
_KEPT = ("LANG", "PATH", "SSL_CERT_DIR", "SSL_CERT_FILE", "TZ")


class Service:
    """Answers the requests of one link.

    Args:
        kernel: what the walls may be made of; the running one when None.
        settled: called once the remote's libraries are there, for what whoever owns the process does then.
    """

    def __init__(self, kernel: Kernel | None = None, settled: Callable[[], None] = lambda: None) -> None:
        self._kernel = kernel or Kernel.probe()
        self._settled = settled
        self._remote: Remote | None = None
        self._webhook: Webhook | None = None
        self._ring: Ring | None = None

    async def run(self, channel: Channel) -> None:
        """Serve until smpd closes the link."""
        try:
            await serve(channel, self._handle, unexpected=_report, streams_max=fetching.STREAMS_MAX)
        finally:
            if self._remote is not None:
                await self._remote.aclose()
            if self._webhook is not None:
                await self._webhook.aclose()
            if self._ring is not None:
                self._ring.close()
            channel.close()

    async def _handle(self, body: bytes, fds: list[int], exchange: Exchange) -> object:
        try:
            request = decode(body, _REQUEST)
            expected = 1 if isinstance(request, fetching.Setup | fetching.Write | fetching.Look) else 0
            if len(fds) != expected:
                raise DaemonError("protocol", f"{type(request).__name__} comes with {expected} descriptors")
            rank.set(request.rank)
            if isinstance(request, fetching.Setup):
                return self._setup(request, fds)
            if isinstance(request, fetching.SetupWebhook):
                return self._setup_webhook(request)
            if isinstance(request, fetching.Post):
                if self._webhook is None:
                    raise DaemonError("protocol", "SetupWebhook comes first")
                await self._webhook.post(request.body)
                return None
            if self._remote is None or self._ring is None:
                raise DaemonError("protocol", "Setup comes first")
            return await self._answer(request, self._remote, self._ring, fds, exchange)
        finally:
            close_all(fds)

    def _setup(self, request: fetching.Setup, fds: list[int]) -> fetching.Walls:
        self._check_first()
        config = request.config
        isolate(
            keep=isinstance(config, S3Config) and bool(config.profile),
            agent=isinstance(config, SftpConfig) and config.use_agent,
        )
        # Before the walls: asyncssh looks for libraries with ldconfig when it is imported. Nothing connects yet.
        remote = make_remote(config, request.secret, request.connections, request.deadlines)
        walls = sandbox.enter(request.sandbox, self._kernel, config)
        self._ring = Ring(fds.pop(), request.slots, request.slot_bytes)
        self._remote = remote
        self._settled()
        return fetching.Walls(walls)

    def _setup_webhook(self, request: fetching.SetupWebhook) -> fetching.Walls:
        from smpd.fetch.webhook import Webhook  # noqa: PLC0415 - only for it, as the kinds of remotes

        self._check_first()
        isolate(keep=False, agent=False)
        webhook = Webhook(request)
        walls = sandbox.enter(request.sandbox, self._kernel, None)
        self._webhook = webhook
        return fetching.Walls(walls)

    def _check_first(self) -> None:
        if self._remote is not None or self._webhook is not None:
            raise DaemonError("protocol", "Setup comes once")

    async def _answer(
        self, request: fetching.Request, remote: Remote, ring: Ring, fds: list[int], exchange: Exchange
    ) -> object:
        match request:
            case fetching.Read():
                await _read(request, remote, ring)
            case fetching.Tail():
                check_path(request.path)
                with _place(ring, request.slot, 0, request.length) as into:
                    return await remote.tail(request.path, into)
            case fetching.ReadMany():
                return await _read_many(request, remote, ring)
            case fetching.Stat() | fetching.Move():
                return await _stat_or_move(request, remote)
            case fetching.List():
                tell.set(lambda busy_s: exchange.send(fetching.Listed([], busy_s)))
                await _list(request, remote, exchange)
            case fetching.Write() | fetching.Look():
                return await _write_or_look(request, remote, fds[0], exchange)
            case fetching.Clear():
                check_path(request.path)
                await remote.clear(request)
            case fetching.Watch():
                await _watch(request, remote, exchange)
            case fetching.Hold():
                remote.hold(request.seconds)
            case fetching.Delete():
                check_path(request.path)
                await remote.delete(request.path, request.pin)
            case fetching.Probe():
                start = time.perf_counter()
                facts = await remote.probe()
                return fetching.Probed((time.perf_counter() - start) * 1000, facts)
        return None


async def _stat_or_move(request: fetching.Stat | fetching.Move, remote: Remote) -> object:
    check_path(request.path)
    if isinstance(request, fetching.Stat):
        return await remote.stat(request.path)
    check_path(request.target)
    return fetching.Moved(await remote.move(request.path, request.pin, request.target))


async def _write_or_look(
    request: fetching.Write | fetching.Look, remote: Remote, fd: int, exchange: Exchange
) -> object:
    check_path(request.path)
    if isinstance(request, fetching.Look):
        pin, ours = await is_same(remote, request.path, fd, request.size)
        if ours:
            await remote.settle(request.path)
        return fetching.Looked(pin, ours)
    reporter = _Reporter(exchange, request.size if request.paced else 0)
    tell.set(reporter.busy)
    how = Writing(request.part, request.replaces, reporter.begun if request.part else None)
    return await remote.write(request.path, fd, request.size, reporter, how)


class _Reporter:
    """Sends Progress, and waits where it is to be answered: no other message of the exchange comes meanwhile.

    Args:
        exchange: the upload's.
        paced: up to how many bytes each step is answered before the next.
    """

    def __init__(self, exchange: Exchange, paced: int) -> None:
        self._exchange = exchange
        self._paced = paced
        self._done = 0
        self._asking = anyio.Lock()

    async def __call__(self, done: int) -> None:
        self._done = done
        async with self._asking:  # parts are sent several at a time
            await self._exchange.send(fetching.Progress(done))
            if done < self._paced:
                await self._exchange.receive(fetching.Noted)

    async def busy(self, seconds: float) -> None:
        """The server asked for patience."""
        await self._exchange.send(fetching.Progress(self._done, seconds))

    async def begun(self, upload: str) -> None:
        """Tell the id of an upload, and wait until it is kept."""
        await self._exchange.send(fetching.Progress(self._done, upload=upload))
        await self._exchange.receive(fetching.Noted)


async def _read(request: fetching.Read, remote: Remote, ring: Ring) -> None:
    check_path(request.path)
    if request.offset < 0:
        raise UsageError("bad_request", "the range starts before the object")
    with _place(ring, request.slot, request.at, request.length) as into:
        await _read_range(remote, request.path, request.pin, request.offset, into)


async def _read_range(remote: Remote, path: str, pin: str, offset: int, into: memoryview) -> None:
    if into:
        await remote.read(path, pin, offset, into)
    elif (await remote.stat(path)).pin != pin:  # no server can be asked for nothing
        raise changed(path)


async def _read_many(request: fetching.ReadMany, remote: Remote, ring: Ring) -> fetching.ManyRead:
    answer = fetching.ManyRead()
    todo = iter(enumerate(request.objects))
    refused: ErrorBody | None = None

    async def work() -> None:
        nonlocal refused
        for index, whole in todo:
            if refused:  # the server has asked for patience: nothing more is asked of it
                answer.errors[index] = refused
                continue
            try:
                check_path(whole.path)
                with _place(ring, request.slot, whole.at, whole.size) as into:
                    await _read_range(remote, whole.path, whole.pin, 0, into)
            except SmpError as error:
                answer.errors[index] = error.body()
                if error.code == "remote_busy":
                    refused = answer.errors[index]

    async with anyio.create_task_group() as group:
        for _ in range(min(remote.at_once, len(request.objects))):
            group.start_soon(work)
    return answer


@contextlib.contextmanager
def _place(ring: Ring, slot: int, at: int, length: int) -> Iterator[memoryview]:
    """Bytes ``[at, at + length)`` of a slot."""
    if not (0 <= at <= at + length <= ring.slot_bytes and 0 <= slot < ring.slots):
        raise UsageError("bad_request", "the range does not fit into the slot")
    with ring.slot(slot) as whole, whole[at : at + length] as part:
        yield part


async def _list(request: fetching.List, remote: Remote, exchange: Exchange) -> None:
    check_path(request.prefix, prefix=True)
    batch: list[ObjectInfo] = []
    ahead = length = 0

    async def tell() -> None:
        nonlocal batch, ahead, length
        await exchange.send(fetching.Listed(batch))
        batch, ahead, length = [], ahead + 1, 0
        if ahead == fetching.LISTED_AHEAD:
            await exchange.receive(fetching.More)
            ahead -= 1

    async with contextlib.aclosing(remote.walk(request.prefix, request.recursive, request.after)) as found:
        async for info in found:
            if (named := len(info.path.encode())) > LISTED_MAX_BYTES:
                raise RemoteError("remote_failed", "a name is listed that is too long to be one", retryable=False)
            added = named + len(info.pin.encode())
            if batch and length + added > BATCH_NAME_BYTES:
                await tell()
            batch.append(info)
            length += added
            if len(batch) == BATCH_OBJECTS:
                await tell()
    if batch:
        await exchange.send(fetching.Listed(batch))


async def _watch(request: fetching.Watch, remote: Remote, exchange: Exchange) -> None:
    check_path(request.prefix, prefix=True)
    async with contextlib.aclosing(remote.watch(request.prefix, request.queue)) as found:
        async for seen in found:
            fits = sum(len(path.encode()) for path in seen.paths) <= fetching.SEEN_BYTES
            await exchange.send(seen if fits else fetching.Seen())
            await exchange.receive(fetching.Noted)


def make_remote(
    config: AnyRemoteConfig, secret: AnyRemoteSecret | None, connections: int, deadlines: fetching.Deadlines
) -> Remote:
    """The remote of a configuration. Each kind's libraries are imported only for it.

    Raises:
        UsageError: ``bad_config``.
    """
    if connections < 1:
        raise UsageError("bad_config", "a remote needs at least one connection")
    if isinstance(config, S3Config) and (secret is None or isinstance(secret, S3Secret)):
        from smpd.fetch.s3 import S3Remote  # noqa: PLC0415 - a third of a second

        return S3Remote(config, secret, connections, deadlines)
    if isinstance(config, SftpConfig) and (secret is None or isinstance(secret, SftpSecret)):
        from smpd.fetch.sftp import SftpRemote  # noqa: PLC0415

        return SftpRemote(config, secret, connections, deadlines)
    if isinstance(config, LocalConfig) and secret is None:
        from smpd.fetch.local import LocalRemote  # noqa: PLC0415

        return LocalRemote(config)
    raise UsageError("bad_config", "the secret is not of this remote's kind")


def isolate(*, keep: bool, agent: bool) -> None:
    """Forget the environment: no credential, proxy or configuration of the daemon's user is used by accident.

    Args:
        keep: an AWS profile is asked for, which may come with any of these.
        agent: the SSH agent is to be used.
    """
    if keep:
        return
    kept = (*_KEPT, "SSH_AUTH_SOCK") if agent else _KEPT
    for name in set(os.environ) - set(kept):
        del os.environ[name]
    os.environ.update(
        HOME=os.devnull,  # where nothing can lie
        AWS_CONFIG_FILE=os.devnull,
        AWS_SHARED_CREDENTIALS_FILE=os.devnull,
        BOTO_CONFIG=os.devnull,
        AWS_EC2_METADATA_DISABLED="true",
    )


def _report(error: Exception) -> None:
    # The message may hold an object's name, so only the kind and the place are written.
    places = "".join(traceback.format_tb(error.__traceback__))
    sys.stderr.write(f"smpd.fetch: {type(error).__name__}\n{places}")
