"""R6: what a network and a server do to a get or a put, at a random byte of it, and what may come of that.

The transfer and the fetch code are the real ones, in this process, so that faults can be planted in them; storage is a
server of the tests, rclone's S3 server and OpenSSH's sshd, each behind a proxy that does the damage.
"""

import contextlib
import hashlib
import os
import random
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import anyio
import msgspec
from faulty import Fault, Proxy, faulty
from gated_s3 import GatedS3, gated_s3
from servers import Served, rclone_s3, sshd

from smp_proto.aio import Caller, Channel
from smp_proto.control import AnyRemoteSecret, ObjectInfo, RemoteView, S3Config, SftpConfig
from smp_proto.durable import part_name
from smp_proto.errors import IntegrityError, ResourceError, SmpError, one_error
from smp_proto.sealed.bundle import BundleWriter
from smp_proto.sealed.keys import Identity
from smpd.fetch import service, upload
from smpd.fetch.exchange import Exchange, Wanted
from smpd.fetch.patience import Patience
from smpd.host.space import Space
from smpd.links.fetching import Clear, Deadlines, Look, Looked
from smpd.links.pause import Pause
from smpd.transfer import asking, workers
from smpd.transfer.breaker import BreakerSettings
from smpd.transfer.pipeline import bring_object
from smpd.transfer.pool import FetchSettings, RemotePool
from smpd.transfer.pools import Pools
from smpd.transfer.source import open_source
from smpd.transfer.spool import Spool
from smpd.vault.remotes import Remote
from torture.harness import Experiment, Trial, Trials, replaced

MIB = 1 << 20
KINDS = ("truncate", "etag", "act", "black-hole", "refuse", "reset", "half-close", "trickle", "latency")
# Where a kind can be tried, in turn: HTTP's own faults only where HTTP is seen.
PLACES = dict.fromkeys(KINDS, ("s3", "s3", "rclone", "sftp", "put"))
PLACES |= {"etag": ("s3", "rclone"), "act": ("s3",), "refuse": ("s3", "rclone", "put")}
DEADLINES = Deadlines(connect_s=2.0, login_s=5.0, stall_s=1.0, rate_min=1000, window_s=1.0, answer_s=2.0)
RETRY_AFTER_S = 1.0
ATTEMPTS = 4
limit_s = 30.0
SLOTS = 4
_LOST = {"sftp": SLOTS}  # ranges that one connection may carry at once; one where it is not said
_OVERHEAD_BYTES = 512 << 10  # heads, envelopes and the first look at the end of an object; of SFTP a part of all
T = TypeVar("T")
ME = Identity.generate("sender")


def _sealed(rng: random.Random) -> bytes:
    out = bytearray()
    writer = BundleWriter(out.extend, sender=ME, recipients=[ME.public])
    writer.begin("scan.bin")
    writer.write(rng.randbytes(6 * MIB + rng.randrange(MIB)))
    writer.end()
    writer.finish()
    return bytes(out)


@dataclass
class _Count:
    """The tally of a get."""

    fetched_bytes: int = 0
    ranges: Counter[int] = field(default_factory=Counter)

    def fetched(self, count: int) -> None:
        self.fetched_bytes += count

    def resumed(self, count: int) -> None:
        """Not of interest."""

    def advanced(self, count: int) -> None:
        """Not of interest."""


class _Here:
    """Stands for the process of a worker that is none."""

    pid = os.getpid()
    returncode = None

    def kill(self) -> None:
        """There is nothing to kill."""

    async def wait(self) -> int:
        return 0


@contextlib.asynccontextmanager
async def _in_this_process(role: str, label: str, _keeper: str) -> AsyncIterator[workers.Worker]:
    ours, theirs = socket.socketpair()
    async with anyio.create_task_group() as group:
        group.start_soon(service.Service().run, Channel(theirs))
        lost = ResourceError("worker_died", "the link is closed")
        async with Caller(Channel(ours), lost=lambda: lost) as caller:
            yield workers.Worker(role, label, caller, _Here())  # type: ignore[arg-type]


class Network:
    """The servers, each behind its proxy, and smpd's side of them. What is not used is not started."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack, group: anyio.abc.TaskGroup) -> None:
        self._folder = folder
        self._stack = stack
        self._served: dict[str, tuple[Served, Proxy]] = {}
        self.store: GatedS3
        settings = FetchSettings(1, SLOTS, MIB, 4, 600.0, "off", DEADLINES, BreakerSettings())
        self.pools = Pools(self._view, self._load, settings, group, lambda health: None)

    def _view(self, name: str) -> RemoteView:
        served, _ = self._served[name]
        return RemoteView(name, "zero-knowledge", served.config, has_secret=True)

    def _load(self, name: str) -> Remote:
        served, proxy = self._served[name]
        config = served.config
        if isinstance(config, S3Config):
            config = msgspec.structs.replace(config, endpoint=f"http://127.0.0.1:{proxy.port}")
        elif isinstance(config, SftpConfig):
            known = config.known_hosts.replace(f":{config.port} ", f":{proxy.port} ")
            config = msgspec.structs.replace(config, port=proxy.port, known_hosts=known)
        # A copy, since smpd wipes the secret that it has sent, and "key" is a word that the interpreter uses itself.
        secret = msgspec.msgpack.decode(msgspec.msgpack.encode(served.secret), type=AnyRemoteSecret)
        return Remote(name, "zero-knowledge", config, secret)

    def serve(self, name: str) -> tuple[Served, Proxy]:
        """The server of a name, running, and its proxy."""
        if name not in self._served:
            folder = self._folder / name
            folder.mkdir()
            if name == "s3":
                self.store, served = self._stack.enter_context(gated_s3({}))
            elif name == "sftp":
                (folder / "keys").mkdir()
                served = self._stack.enter_context(sshd(folder / "files", folder / "keys"))
            else:
                served = self._stack.enter_context(rclone_s3(folder))
            config = served.config
            port = config.port if isinstance(config, SftpConfig) else urlsplit(config.endpoint).port or 0  # type: ignore[union-attr]
            self._served[name] = served, self._stack.enter_context(faulty("127.0.0.1", port))
        return self._served[name]

    def keep(self, name: str, key: str, data: bytes) -> None:
        """Put an object there, past the proxy."""
        served, _ = self.serve(name)
        if name == "s3":
            self.store.objects[key] = data
        else:
            assert served.path
            (served.path / key).write_bytes(data)


async def _get(pool: RemotePool, key: str, path: Path, count: _Count) -> bytes:
    """A get as a job does it: attempts until it is whole, each going on from what is in the spool; the object."""
    marks: dict[int, bytes] = {}
    pins: set[str] = set()
    for attempt in range(ATTEMPTS):
        try:
            return await _attempt(pool, key, path, count, marks, pins)
        except SmpError as error:
            if not error.retryable or attempt == ATTEMPTS - 1:
                raise
    raise AssertionError


async def _attempt(
    pool: RemotePool, key: str, path: Path, count: _Count, marks: dict[int, bytes], pins: set[str]
) -> bytes:
    async def check(info: ObjectInfo, begin: Callable[[], T]) -> T:
        if pins and info.pin not in pins:
            raise IntegrityError("source_changed", "it is not the object this get began with")
        pins.add(info.pin)
        return begin()

    source = await open_source(pool, key, [ME], lambda key_id: ME.public, check)
    try:
        with contextlib.closing(Space(str(path.parent), MIB)) as space:
            spool = await Spool.open(space, str(path), source.info.size, marks.update)
            try:
                with one_error():
                    async with spool.flushing():
                        await bring_object(pool, source, spool=spool, marks=dict(marks), plain=None, tally=count)
            finally:
                spool.close()
        return path.read_bytes()[: source.trailer.payload_bytes] + source.tail
    finally:
        source.close()


class _One:
    """One trial."""

    def __init__(self, network: Network, trial: Trial, figures: dict[str, Any]) -> None:
        self.kind = KINDS[trial.number % len(KINDS)]
        places = PLACES[self.kind]
        self.place = places[trial.number // len(KINDS) % len(places)]
        self.network = network
        self.trial = trial
        self.figures = figures
        self.rng = trial.rng
        self.key = f"{trial.number}.smp"
        self.data = _sealed(self.rng)
        self.other = b""
        self.served, self.proxy = network.serve("rclone" if self.place == "put" else self.place)

    async def run(self) -> None:
        pool = await self.network.pools.get("rclone" if self.place == "put" else self.place)
        with anyio.fail_after(limit_s):
            if self.place == "put":
                await self._put(pool)
            else:
                self.network.keep(self.place, self.key, self.data)
                await self._fetch(pool)

    def _fault(self) -> Fault:
        at = self.rng.randrange(int(len(self.data) * 0.7))
        if self.place == "put" and self.kind == "refuse":
            at = self.rng.randrange(500)  # of the answers, which are small
        elif self.kind in ("etag", "refuse"):
            at //= 4  # a request has yet to come
        return Fault(
            self.kind,  # type: ignore[arg-type]
            at,
            up=self.place == "put" and self.kind != "refuse",
            seconds=self.rng.uniform(0.1, 0.5),
            answer=_busy(self.rng),
            action=self._change,
        )

    def _change(self) -> None:
        self.other = _sealed(self.rng)
        self.network.keep(self.place, self.key, self.other)

    async def _fetch(self, pool: RemotePool) -> None:
        fault, count = self._fault(), _Count()
        self.proxy.put(fault)
        path = self.trial.folder / "spool"
        try:
            got = await _get(pool, self.key, path, count)
        except IntegrityError as error:
            assert self.kind in ("etag", "act"), f"{self.kind}: {error.code}"
            assert error.code == "source_changed", error.code
            path.unlink(missing_ok=True)  # a person takes it as it is now
            self.proxy.put(None)
            got = await _get(pool, self.key, path, _Count())
        else:
            assert fault.hit, "the fault was never met"
            assert self.kind != "etag", "an answer with another tag passed"
            self._costs(fault)
        assert fault.hit, "the fault was never met"
        whole = (self.data, self.other) if self.kind == "act" else (self.data,)
        assert hashlib.sha256(got).digest() in {hashlib.sha256(each).digest() for each in whole}, "other bytes"
        self.proxy.put(None)

    def _costs(self, fault: Fault) -> None:
        """At most one range was asked for again, and a pause was kept."""
        again = sum(count - 1 for count in Counter(self.proxy.requests).values())
        allowed = 0 if self.kind in ("latency", "refuse", "act") else _LOST.get(self.place, 1)
        assert again <= allowed, f"{again} ranges were asked for again: {self.proxy.requests}"
        most = len(self.data) + allowed * MIB + _OVERHEAD_BYTES + (len(self.data) // 10 if self.place == "sftp" else 0)
        assert self.proxy.received <= most, f"{self.proxy.received} bytes came for {len(self.data)}"
        more = max(0, self.proxy.received - len(self.data))
        name = f"most bytes more than the object, {'SFTP' if self.place == 'sftp' else 'S3'}"
        self.figures[name] = max(self.figures.get(name, 0), more)
        self.figures["ranges asked for again, S3"] = self.figures.get("ranges asked for again, S3", 0) + again
        if self.kind == "refuse":
            self._kept_away()

    def _kept_away(self) -> None:
        what, refused = self.proxy.refused
        again = [when - refused for asked, when in self.proxy.asked if asked == what and when > refused]
        assert again, "what was refused was not asked for again"
        assert again[0] >= RETRY_AFTER_S * 0.95, f"asked again {again[0]:.2f} s after a refusal for {RETRY_AFTER_S} s"

    async def _put(self, pool: RemotePool) -> None:
        fault = self._fault()
        self.proxy.put(fault)
        path = self.trial.folder / "out"
        path.write_bytes(self.data)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for attempt in range(ATTEMPTS):
                try:
                    await self._deliver(pool, fd)
                    break
                except SmpError as error:
                    if not error.retryable or attempt == ATTEMPTS - 1:
                        raise
        finally:
            os.close(fd)
        assert fault.hit, "the fault was never met"
        if self.kind == "refuse":
            self._kept_away()
        self.proxy.put(None)
        assert self.served.path
        assert (self.served.path / self.key).read_bytes() == self.data, "other bytes were stored"

    async def _deliver(self, pool: RemotePool, fd: int) -> None:
        """As a delivery does: before another try what was left is cleared away, and the object looked for."""
        part, ids, tries = part_name(), [""], 0

        async def begun(id_: str) -> None:
            ids.append(id_)

        async def once() -> None:
            nonlocal tries
            tries += 1
            if tries > 1:
                await pool.ask(Clear(self.key, len(self.data), part, ids[-1]), type(None))
                if (await pool.ask(Look(self.key, len(self.data)), Looked, fd)).ours:
                    return
            size = len(self.data)
            info = await pool.write(self.key, fd, size, lambda done: None, part=part, replaces="", begun=begun)
            assert info.size == size

        await asking.persist(once)


def _busy(rng: random.Random) -> bytes:
    """A refusal for want of room, with the wait as seconds or as a date."""
    status, code = rng.choice([("503 Slow Down", "SlowDown"), ("429 Too Many Requests", "TooManyRequests")])
    when = str(int(RETRY_AFTER_S))
    if rng.random() < 0.5:
        when = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + RETRY_AFTER_S + 1))
    body = f"<Error><Code>{code}</Code></Error>"
    return f"HTTP/1.1 {status}\r\nRetry-After: {when}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


async def _main(trials: Trials) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(replaced(workers, "start_worker", _in_this_process))
        stack.enter_context(replaced(service, "isolate", lambda **_: None))
        stack.enter_context(replaced(upload, "PART_BYTES", MIB))
        async with anyio.create_task_group() as group:
            network = Network(trials.folder, stack, group)
            try:
                for trial in trials:
                    with trial:
                        await _One(network, trial, trials.figures).run()
            finally:
                with anyio.CancelScope(shield=True):
                    await network.pools.aclose()
            group.cancel_scope.cancel()


def run(trials: Trials) -> None:
    """One after the other: what the last one left, a connection say, must not show in the next."""
    anyio.run(_main, trials)


# ── faults that it must find ───────────────────────────────────────────────────────────────────────────────


def _short_is_enough(exchange: Exchange) -> None:
    exchange._finish(clean=False)


@contextlib.contextmanager
def _no_stall() -> Iterator[None]:
    global limit_s  # noqa: PLW0603
    limit_s, before = 3.0, limit_s
    try:
        with replaced(Patience, "look", lambda *_: ""):
            yield
    finally:
        limit_s = before


EXPERIMENT = Experiment(
    "R6",
    "latency, trickle, reset, half-close, black hole, cut body, 503/429, other ETag, object changed: in gets and puts",
    "goes on; at most one range again for each fault (SFTP: those of one connection); no short or mixed object passes",
    9 * 20,
    9,
    run,
    {
        "a short body is enough": lambda: replaced(Exchange, "lost", _short_is_enough),
        "any tag will do": lambda: replaced(Wanted, "check", lambda self, answer: self.length),
        "silence is waited for": _no_stall,
        "a pause is not kept": lambda: replaced(Pause, "left_s", lambda *_: 0.0),
        "a fault costs the attempt": lambda: replaced(asking, "ATTEMPTS", 1),
    },
    planted_trials=5,
)
