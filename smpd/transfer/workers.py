"""Worker processes: started on demand, let go when idle, started again after they die.

A worker is ``python -P -m smpd.fetch FD``, ``smpd.compute`` or ``smpd.opening``, run in the root folder, so that
nothing in the folder that smpd was started in is code of its. FD is its end of a socketpair and the only thing it
inherits. It learns everything else over that link. A compute process may be had from a keeper instead
(``smpd.transfer.keeping``).
"""

import contextlib
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import anyio
import structlog
from anyio.abc import Process, TaskGroup, TaskStatus

from smp_proto.aio import Caller, Channel
from smp_proto.channel import close_aside
from smp_proto.errors import ResourceError, SmpError, one_error
from smpd.host.memory import Usage, usage
from smpd.host.program import is_replaced, replaced
from smpd.links.starting import command, environment
from smpd.transfer.bounds import believed_of_fetch
from smpd.transfer.keeping import Kept, start_kept
from smpd.transfer.saying import listen

START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 3.0
_log = structlog.get_logger("smpd")
# What a compute process may say depends on what it was asked; see smpd.transfer.device.
_BELIEVE: dict[str, Callable[[SmpError], SmpError]] = {
    "fetch": believed_of_fetch,
    "compute": lambda error: error,
    "opening": lambda error: error,  # its code is ours
}


@dataclass(slots=True)
class Worker:
    """A running worker and the caller that reaches it; ``gone`` is set when it is, and the next may start."""

    role: str
    label: str
    caller: Caller
    process: Process | Kept
    gone: anyio.Event = field(default_factory=anyio.Event)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid


@contextlib.asynccontextmanager
async def start_worker(role: str, label: str, keeper: str = "") -> AsyncIterator[Worker]:
    """Start ``smpd.{role}`` and stop it at the end: by closing its link, and by SIGKILL if that is not enough.

    Args:
        role: ``fetch``, ``compute`` or ``opening``.
        label: what it is for, as shown to people.
        keeper: the socket of those who start it; empty to start it ourselves.

    Raises:
        ResourceError: ``worker_died``, the system has no room for another process, or the keeper started none;
            ``program_replaced``.
        UsageError: ``bad_config``, the keeper is not to be used.
    """
    if await anyio.to_thread.run_sync(is_replaced):
        raise replaced(f"the {role} process for {label}")
    process: Process | Kept
    try:
        ours, process = await (start_kept(keeper, label) if keeper else _spawn(role))
    except OSError as error:
        raise ResourceError(
            "worker_died",
            f"the {role} process for {label} could not be started: {error.strerror}",
            hint="see the limits on processes and open files (ulimit -a)",
        ) from error
    channel = Channel(ours)
    channel.descriptors = lambda: False  # no answer brings any; who sends some is ended
    channel.takes_unwanted = True
    channel.discard = close_aside
    with one_error():
        async with anyio.create_task_group() as group:
            said, listening = anyio.Event(), anyio.CancelScope(shield=True)  # to its last words, also when it is let go
            group.start_soon(_listen, process, role, label, said, listening)
            try:
                async with Caller(channel, lost=lambda: died(role, label), believe=_BELIEVE[role]) as caller:
                    yield Worker(role, label, caller, process)
            finally:
                with anyio.CancelScope(shield=True):
                    await _end(process, said)
                listening.cancel()
                if process.returncode:  # one that is let go ends with 0; of one that was kept its keeper knows
                    _log.warning("worker ended", role=role, label=label, pid=process.pid, how=_how(process.returncode))


async def _listen(
    process: Process | Kept, role: str, label: str, said: anyio.Event, listening: anyio.CancelScope
) -> None:
    with listening, contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        if isinstance(process, Process) and process.stderr is not None:
            await listen(process.stderr, role, label, process.pid)
    said.set()


async def _end(process: Process | Kept, said: anyio.Event) -> None:
    """Wait until it is gone, and for its last words."""
    with anyio.move_on_after(_STOP_TIMEOUT_S):
        await process.wait()
    kill(process)
    with anyio.move_on_after(_STOP_TIMEOUT_S):
        await process.wait()
        await said.wait()
    await process.aclose()


def _how(returncode: int) -> str:
    if returncode > 0:
        return f"exit status {returncode}"
    try:
        return signal.Signals(-returncode).name
    except ValueError:  # a real-time signal
        return f"signal {-returncode}"


async def _spawn(role: str) -> tuple[socket.socket, Process]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with theirs:
            process = await anyio.open_process(
                command(role, theirs.fileno()),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=environment(role),
                pass_fds=(theirs.fileno(),),
            )
    except BaseException:
        ours.close()
        raise
    return ours, process


def kill(process: Process | Kept) -> None:
    """SIGKILL, if it still runs."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


def died(role: str, label: str) -> SmpError:
    """What to say of the end of a worker that nobody wanted to end."""
    return ResourceError(
        "worker_died",
        f"the {role} process for {label} ended unexpectedly",
        hint="it is started again by itself; if this repeats, see the daemon's log",
    )


class WorkerHost:
    """One place for a worker: at most one runs, and :meth:`use` starts it when none does.

    The next one starts only when the last is gone: they share their rings.

    Args:
        group: where the worker's task lives.
        role: ``fetch``, ``compute`` or ``opening``.
        label: what it is for, as shown to people.
        set_up: sends the first request; what it raises is what :meth:`use` raises.
        idle_s: let it go after this long without a use.
        let_go: called when the worker is gone and before another can start; gives back what only it needed.
        watch: runs beside a worker that is ready, for as long as it is there.
        keeper: see :func:`start_worker`.
    """

    def __init__(
        self,
        group: TaskGroup,
        role: str,
        label: str,
        set_up: Callable[[Worker], Awaitable[None]],
        idle_s: float,
        let_go: Callable[[], Awaitable[None]] | None = None,
        watch: Callable[[Worker], Coroutine[Any, Any, None]] | None = None,
        keeper: str = "",
    ) -> None:
        self._group = group
        self.role = role
        self.label = label
        self._set_up = set_up
        self._idle_s = idle_s
        self._let_go = let_go
        self._watch = watch
        self._keeper = keeper
        self._lock = anyio.Lock(fast_acquire=True)
        self._scope: anyio.CancelScope | None = None
        self._gone = anyio.Event()
        self._gone.set()
        self._closed = False
        self._users = 0
        self._used = 0.0
        self.worker: Worker | None = None
        self.restarts = -1
        self.peak_rss = 0

    @contextlib.asynccontextmanager
    async def use(self) -> AsyncIterator[Worker]:
        """The running worker, started if need be, and kept from idling out for the length of the block.

        Raises:
            SmpError: it could not be started or set up.
        """
        self._users += 1
        try:
            yield await self._get()
        finally:
            self._users -= 1
            self._used = anyio.current_time()
            if self.absent and not self._users and self._let_go is not None:  # while it was wanted that had to wait
                with anyio.CancelScope(shield=True):
                    async with self._lock:
                        if self.absent and not self._users:
                            await self._let_go()

    def expect(self) -> None:
        """Start the worker for a use that will come, if there is none. What goes wrong is for that use to find."""
        if self.absent:
            self._group.start_soon(self._begin)

    async def _begin(self) -> None:
        with contextlib.suppress(SmpError, OSError), one_error():
            async with self.use():
                pass

    @property
    def pid(self) -> int:
        """The worker's process id; 0 where none is ready."""
        return self.worker.pid if self.worker is not None else 0

    @property
    def absent(self) -> bool:
        """Whether no worker is there, nor one that is starting."""
        return self._gone.is_set()

    def stop(self) -> None:
        """Let the worker go, also one that is just starting; the next use starts another."""
        self.sample()
        self.worker = None
        if self._scope is not None:
            self._scope.cancel()

    def rest(self) -> None:
        """Let the worker go now, if nobody uses it, and not only after its time."""
        if not self._users:
            self.stop()

    async def end(self, worker: Worker | None = None) -> None:
        """Kill the worker and wait until it is gone, and with it its hold on the rings.

        Args:
            worker: this one alone, and not another that has come in its place; None for whichever is there.
        """
        ending = worker or self.worker
        gone = self._gone if ending is None else ending.gone
        if ending is not None:
            kill(ending.process)
        if worker is None or self.worker is worker:
            self.stop()
        await gone.wait()

    async def aclose(self) -> None:
        """Let the worker go for good: who waits for one is told that it ended."""
        self._closed = True
        self.stop()
        async with self._lock:  # who was about to start one has found that out
            await self._gone.wait()

    async def gone(self) -> None:
        """Wait until no worker is there, nor one that is starting."""
        await self._gone.wait()

    def sample(self) -> Usage:
        """Note the worker's peak memory while it can still be read; return what it uses now."""
        now = usage(self.pid)
        self.peak_rss = max(self.peak_rss, now.peak_bytes)
        return now

    async def _get(self) -> Worker:
        async with self._lock:
            worker = self.worker
            if worker is None or not worker.caller.alive:
                await self._gone.wait()
                worker = await self._group.start(self._host)
            return worker

    async def _host(self, *, task_status: TaskStatus[Worker]) -> None:
        if self._closed:
            raise died(self.role, self.label)
        scope = self._scope = anyio.CancelScope()
        self._gone = anyio.Event()
        worker: Worker | None = None
        try:
            with scope:
                async with start_worker(self.role, self.label, self._keeper) as started:
                    started.gone = self._gone
                    await self._prepare(started)
                    worker = self.worker = started
                    self.restarts += 1
                    task_status.started(worker)
                    try:
                        await self._until_idle_or_closed(worker)
                    finally:
                        self.sample()
                        self.worker = None
            if worker is None:  # stopped before it was ready
                raise died(self.role, self.label)
        finally:
            try:
                if self._let_go is not None and not self._users:
                    with anyio.CancelScope(shield=True):
                        await self._let_go()
            finally:
                self._gone.set()

    async def _prepare(self, worker: Worker) -> None:
        try:
            with anyio.fail_after(START_TIMEOUT_S):
                await self._set_up(worker)
        except TimeoutError:
            raise died(self.role, self.label) from None

    async def _until_idle_or_closed(self, worker: Worker) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch_idle)
            if self._watch is not None:
                group.start_soon(self._watch, worker)
            await worker.caller.wait_closed()
            group.cancel_scope.cancel()

    async def _watch_idle(self) -> None:
        self._used = anyio.current_time()
        while True:
            await anyio.sleep_until(self._used + self._idle_s)
            if self._users:
                self._used = anyio.current_time()
            elif anyio.current_time() >= self._used + self._idle_s:
                self.stop()  # nothing awaits in between, so that no new user gets one that is going
