"""R16: the control socket. Every role by every verb, every permission; slow peers; garbage.

The matrix, slow peers and half of the garbage
meet the real verbs in this process, where we can be anybody; the other half of the garbage meets a real daemon,
whose memory and descriptors are watched.
"""

import array
import contextlib
import itertools
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from unittest.mock import patch

import anyio
import msgspec
import structlog.testing
from box import Box
from whole import VIEWERS, Whole, sample_requests, whole

from smp_proto import control as c
from smp_proto.aio import encode
from smp_proto.channel import Channel
from smp_proto.errors import DaemonError
from smp_proto.wire import FrameDecoder, FrameType, encode_frame
from smpctl import Client
from smpd.control import limits, roles, server
from smpd.control.actor import Actor
from smpd.host.memory import usage
from torture.harness import Experiment, Trial, Trials, replaced
from torture.hostile_frames import DEEPEST, HELLO, Piece, conversations
from torture.role_cells import CELLS, GROUPS, STRANGER, TABLES, TELLING, Cell, documented

FRAMES = 100  # of one trial of garbage
GROWTH_MAX_BYTES = 24 << 20
PATIENCE_S = 20.0
STALL_S = 0.3
_others = itertools.count(1_000_000)  # uids
Doing = Callable[["Scene", Trial], Awaitable[None]]


class Scene:
    """What the trials share: a daemon in this process, one of its own, and faults that handlers had."""

    def __init__(self, trials: Trials, box: Whole, faults: list[Exception]) -> None:
        self.trials = trials
        self.box = box
        self.faults = faults
        # A sync that came about would go on by itself, with a fetch process and its ring: memory that is meant to be taken.
        self.requests = [each for each in sample_requests().values() if not isinstance(each, c.SyncAdd)]
        self.jobs: dict[str, str] = {}
        self._real: Box | None = None
        self._calm: tuple[int, int] | None = None

    async def served(self) -> None:
        """Somebody else is served."""
        with anyio.fail_after(PATIENCE_S):
            async with self.box.client(next(_others), (VIEWERS,)) as other:
                await other.call(c.BoxKey(), c.PublicKey)
        assert not self.faults, self.faults

    async def real(self) -> Box:
        """A daemon of its own, started when first needed."""
        if self._real is None:
            self._real = Box(self.trials.folder / "box", {"compute": {"processors": []}, "control": {"stall_s": 2.0}})
            await anyio.to_thread.run_sync(self._real.start)
        return self._real

    def watch(self) -> None:
        """The daemon is calm again: it holds no more memory and descriptors than after the first garbage."""
        assert self._real is not None
        assert self._real.process is not None
        with Client(str(self._real.socket)) as client:
            client.box_key()
        pid = self._real.process.pid
        now = usage(pid).resident_bytes, len(os.listdir(f"/proc/{pid}/fd"))
        if self._calm is None:
            self._calm = now
        grown = now[0] - self._calm[0]
        self.trials.figures["daemon's memory grew by MiB, at most"] = max(
            grown >> 20, self.trials.figures.get("daemon's memory grew by MiB, at most", 0)
        )
        assert grown < GROWTH_MAX_BYTES, f"memory grew by {grown} bytes"
        assert now[1] <= self._calm[1] + 2, f"{now[1]} descriptors, there were {self._calm[1]}"

    def end(self) -> None:
        """Stop it; its log must not know of a fault."""
        if self._real is not None:
            status = self._real.stop()
            said = self._real.log.read_text()
            self._real.close()
            assert status == 0
            assert "a handler failed" not in said
            assert "Traceback" not in said


# ── slow peers, and greedy ones ──


def _cell(cell: Cell) -> Doing:
    async def do(scene: Scene, _: Trial) -> None:
        await cell(scene.box)

    return do


async def slow_reader(scene: Scene, _: Trial) -> None:
    """Who asks and never reads is dropped after a while, and keeps nobody waiting."""
    uid, journal = next(_others), scene.box.daemon.box.journal
    for number in range(40):
        journal.add(c.GetSpec("pacs:" + "x" * 1000), owner=f"u({uid})", key=str(number))
    with scene.box.socket(uid, (VIEWERS,)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        asks = b"".join(encode_frame(FrameType.REQUEST, n, encode(c.JobsRequest())) for n in range(1, 60))
        await _send(sock, [Piece(HELLO), Piece(asks)])
        with anyio.fail_after(PATIENCE_S):
            while not scene.box.server._limits._open[uid]:
                await anyio.sleep(0.005)
            while scene.box.server._limits._open[uid]:
                await scene.served()
                await anyio.sleep(0.01)
        got = b""
        while data := sock.recv(1 << 18):
            got += data
        assert len(got) < 1 << 20  # what the kernel held; the rest was never sent
    await _until_gone(scene)


async def slow_writer(scene: Scene, _: Trial) -> None:
    """Half a HELLO is not waited for; a request that comes byte by byte is answered, and keeps nobody waiting."""
    with scene.box.socket(STRANGER, (VIEWERS,)) as half:
        await _send(half, [Piece(HELLO[:-1])])
        await scene.served()
    with scene.box.socket(STRANGER, (VIEWERS,)) as sock:
        for data in HELLO + encode_frame(FrameType.REQUEST, 1, encode(c.BoxKey())):
            await _send(sock, [Piece(bytes([data]))])
            await anyio.lowlevel.checkpoint()
        await scene.served()
        got = b""
        with anyio.fail_after(PATIENCE_S):
            while b"fingerprint" not in got:
                await anyio.wait_readable(sock)
                data = sock.recv(1 << 16)
                assert data
                got += data
    await _until_gone(scene)


async def many_connections(scene: Scene, _: Trial) -> None:
    """All connections of some users are taken: others of them are refused, and root still gets in."""
    config = scene.box.daemon.config.control
    users = -(-config.connections_max // config.connections_user_max)
    async with contextlib.AsyncExitStack() as stack:
        for uid in range(STRANGER + 10, STRANGER + 10 + users):
            for _number in range(config.connections_user_max):
                sock = stack.enter_context(scene.box.socket(uid, (VIEWERS,)))
                await _send(sock, [Piece(HELLO)])
        while scene.box.server.connections < config.connections_max:
            await anyio.lowlevel.checkpoint()
        for uid in (STRANGER + 10, STRANGER + 9):
            try:
                async with scene.box.client(uid, (VIEWERS,)):
                    raise AssertionError(f"{uid} got in")
            except DaemonError as error:
                assert error.code == "busy"
        async with scene.box.client(0) as root:
            await root.call(c.StatusRequest(), c.Status, timeout=PATIENCE_S)
    await _until_gone(scene)


async def many_requests(scene: Scene, _: Trial) -> None:
    """Who asks without end is told to wait, and others are served."""
    limits_, burst = scene.box.server._limits, scene.box.daemon.config.control.requests_burst
    with replaced(limits_, "_clock", lambda: 0.0):  # at once, however slow this machine is
        async with scene.box.client(next(_others), (VIEWERS,)) as caller:
            for _number in range(burst - 1):  # the connection took one
                await caller.call(c.BoxKey(), msgspec.Raw, timeout=PATIENCE_S)
            try:
                await caller.call(c.BoxKey(), msgspec.Raw, timeout=PATIENCE_S)
                raise AssertionError("one more was answered")
            except DaemonError as error:
                assert error.code == "rate_limited"
                assert error.details["retry_after"] > 0
        await scene.served()


async def _until_gone(scene: Scene) -> None:
    with anyio.fail_after(PATIENCE_S):
        while scene.box.server.connections:
            await anyio.sleep(0.005)


# ── garbage ──


def garbage(number: int) -> Doing:
    """A hundred frames of it; every second time to a daemon of its own."""

    async def do(scene: Scene, trial: Trial) -> None:
        real = number % 2 == 1
        machine = await scene.real() if real else None
        await _until_gone(scene)  # else the first may find no place, and tell nothing
        for pieces in itertools.chain([DEEPEST], conversations(trial.rng, scene.requests, FRAMES)):
            if machine is not None:
                sock = socket.socket(socket.AF_UNIX)
                sock.connect(str(machine.socket))
            else:
                sock = scene.box.socket(
                    500_000 + trial.rng.randrange(99_999),
                    GROUPS[trial.rng.choice(("viewer", "operator", "admin", "admin"))],
                )
            with sock, anyio.fail_after(PATIENCE_S):
                if pieces is DEEPEST:  # else its request may be cancelled, as we have gone, before it is looked at
                    await _ask(sock, pieces)
                await _talk(sock, [] if pieces is DEEPEST else pieces)
        if machine is not None:
            await anyio.to_thread.run_sync(scene.watch)
        else:
            await scene.served()
            await _until_gone(scene)

    return do


async def _ask(sock: socket.socket, pieces: list[Piece]) -> None:
    """Greet and ask, and wait for both answers."""
    sock.setblocking(False)
    decoder, answers = FrameDecoder(), 0
    await _send(sock, pieces)
    while answers < len(pieces):
        await anyio.wait_readable(sock)
        data = sock.recv(1 << 18)
        assert data, "closed before it had answered"
        decoder.feed(data)
        answers += len(list(decoder.frames()))


async def _talk(sock: socket.socket, pieces: list[Piece]) -> None:
    """Say all of it, taking what comes, until the other side has closed: which it must, when we have ended."""
    sock.setblocking(False)
    async with anyio.create_task_group() as group:
        group.start_soon(_drain, sock)
        with contextlib.suppress(OSError):
            await _send(sock, pieces)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)


async def _drain(sock: socket.socket) -> None:
    with contextlib.suppress(ConnectionError):
        while True:
            await anyio.wait_readable(sock)
            if not sock.recv(1 << 18):
                return


async def _send(sock: socket.socket, pieces: list[Piece]) -> None:
    sock.setblocking(False)
    for data, fds in pieces:
        view = memoryview(data)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()] * fds))] if fds else []
        while view:
            try:
                view, rights = view[sock.sendmsg([view], rights) :], []
            except BlockingIOError:
                await anyio.wait_writable(sock)


# ── all of it ──

SLOW: list[Doing] = [slow_reader, slow_writer, many_connections, many_requests]
BATCHES = 1000
# The first ones show each fault that is planted below; then some cells, the real daemon, and the rest of everything.
_FIRST: list[Doing] = [
    *SLOW,
    *map(_cell, TELLING),
    garbage(0),
    garbage(2),
]
_SECOND: list[Doing] = [*map(_cell, CELLS[::4]), garbage(1)]
_REST: list[Doing] = [
    *(_cell(cell) for n, cell in enumerate(CELLS) if n % 4),
    *(garbage(number) for number in range(3, BATCHES)),
]
TRIALS = [*_FIRST, *_SECOND, *_REST]


def _run(trials: Trials) -> None:
    assert set(documented()) == {str(kind.__struct_config__.tag) for kind in roles.REQUESTS}
    anyio.run(_all, trials)


async def _all(trials: Trials) -> None:
    faults: list[Exception] = []
    done: list[str] = []
    control = {
        "stall_s": STALL_S,
        "requests_burst": 200,
        "requests_per_s": 500.0,
        "connections_max": 8,
        "connections_user_max": 4,
    }
    with replaced(server, "_report_fault", faults.append), structlog.testing.capture_logs() as lines:
        async with whole(
            trials.folder / "whole", control=control, permissions=TABLES, compute={"processors": ()}
        ) as box:
            box.daemon.remotes.add("pacs", c.LocalConfig("/nowhere"))
            scene = Scene(trials, box, faults)
            try:
                for trial in trials:
                    with trial:
                        doing = TRIALS[trial.number]
                        done.append(doing.__qualname__.partition(".")[0])
                        await doing(scene, trial)
            finally:
                await anyio.to_thread.run_sync(scene.end)
    trials.figures["lines of log"] = len(lines)
    trials.figures["cells"] = sum(name == "_cell" for name in done)
    trials.figures["frames of garbage"] = FRAMES * sum(name == "garbage" for name in done)


# ── planted ──


@contextlib.contextmanager
def _a_verb_without_its_role() -> Iterator[None]:
    with patch.dict(roles.LEAST_ROLE, {c.VaultOpen: "viewer"}):
        yield


@contextlib.contextmanager
def _a_reader_may_sleep() -> Iterator[None]:
    async def writable(channel: Channel) -> None:
        await anyio.wait_writable(channel.socket)

    with replaced(Channel, "_writable", writable), patch(f"{__name__}.PATIENCE_S", 1.5):
        yield


@contextlib.contextmanager
def _deep_nesting_breaks_out() -> Iterator[None]:
    def decode(body: Any, kind: Any) -> Any:
        try:
            return msgspec.msgpack.decode(body, type=kind)
        except msgspec.MsgspecError as error:
            raise DaemonError("protocol", "no message") from error

    with replaced(server, "decode", decode):
        yield


EXPERIMENT = Experiment(
    id="R16",
    title=f"control socket: {len(CELLS)} cells of roles, verbs and permissions; slow and greedy peers; {BATCHES:,} times {FRAMES} garbage frames",
    passes="exact matrix; no hang; others served; memory flat",
    trials=len(TRIALS),
    short=len(_FIRST) + len(_SECOND),
    run=_run,
    plants={
        "a verb without its role": _a_verb_without_its_role,
        "permissions are not asked": lambda: replaced(roles, "check", lambda *_: None),
        "what is others' is shown": lambda: replaced(Actor, "sees", lambda *_: True),
        "root is locked out": lambda: replaced(limits, "is_master", lambda _: False),
        "a reader may sleep": _a_reader_may_sleep,
        "deep nesting breaks out": _deep_nesting_breaks_out,
    },
    planted_trials=len(_FIRST),
)
