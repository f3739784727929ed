"""A job, or a request, that is cancelled at its first, second, third … await, in a whole daemon: what must hold then.

What counts are the awaits of its own task and of all that it starts. The daemon's other processes are real, but for the
compute process, which here needs no torch.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from descriptors import descriptors
from whole import Whole, whole

from smp_proto import control as c
from smp_proto.aio import Caller
from smp_proto.audit.note import VerifierKey
from smp_proto.audit.record import parse_line
from smp_proto.audit.verify import verify_log
from smp_proto.errors import DaemonError, SmpError
from smp_proto.sealed.bundle import BundleWriter
from smp_proto.sealed.keys import Identity, PublicIdentity
from smpd.jobs.scheduler import Scheduler
from smpd.transfer import workers
from smpd.verbs import VERBS

SENDER = Identity.generate("hospital")
SEGMENT = 1 << 20
FAKE_COMPUTE = str(Path(__file__).parents[1] / "transfer" / "fake_compute.py")
CONFIG = {
    "fetch": {"slots": 2, "slot_bytes": SEGMENT, "processes": 1},
    "compute": {"slots": 2, "result_slots": 2, "processors": ("digest",), "sandbox": "off"},
    "space": {"reserve_bytes": SEGMENT},
}
# With each how many of its awaits are left out in between: a run that is cut off costs a process.
JOBS: dict[str, tuple[c.AnyJobSpec, int]] = {
    "get": (c.GetSpec("lake:one.smp"), 0),
    "get small": (c.GetSpec("lake:small.smp"), 0),
    "get all": (c.GetSpec("lake:many/"), 0),
    "get plain": (c.GetSpec("ward:plain.bin"), 0),
    "put": (c.PutSpec("lake:put/", [SENDER.public.text()]), 0),
    "run": (c.RunSpec("lake:one.smp", "digest", target="lake:results/"), 6),
    "run small": (c.RunSpec("lake:small.smp", "digest"), 1),
    "run all": (c.RunSpec("lake:many/", "digest"), 6),
    "run behind": (c.RunSpec("lake:one.smp", "digest"), 3),
}


class Steps:
    """Counts the awaits of something, and stops it at one of them."""

    def __init__(self, stop: Callable[[], None], at: int) -> None:
        self._stop = stop
        self._left = at
        self.over = anyio.Event()
        self.stopped = False

    def take(self) -> None:
        """There is one."""
        self._left -= 1
        if self._left == 0 and not self.over.is_set():
            self.stopped = True
            self._stop()


steps: ContextVar[Steps | None] = ContextVar("steps", default=None)


class Counted:
    """A coroutine whose awaits are counted."""

    def __init__(self, work: Coroutine[Any, Any, Any], counted: Steps) -> None:
        self._work = work
        self._counted = counted

    def __await__(self) -> Generator[Any, Any, Any]:
        go_on: Callable[[], Any] = partial(self._work.send, None)
        while True:
            try:
                waits_for = go_on()
            except StopIteration as end:
                return end.value
            self._counted.take()
            try:
                go_on = partial(self._work.send, (yield waits_for))
            except BaseException as error:  # noqa: BLE001 - as a task hands it in
                go_on = partial(self._work.throw, error)


def make_task(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
    """A task; what a counted one starts is counted with it."""

    async def within(work: Coroutine[Any, Any, Any], counted: Steps) -> Any:
        return await Counted(work, counted)

    counted = steps.get()
    return asyncio.Task(work if counted is None else within(work, counted), loop=loop, **options)


def sealed(to: PublicIdentity, size: int) -> bytes:
    found = bytearray()
    writer = BundleWriter(found.extend, sender=SENDER, recipients=[to])
    writer.begin("a.bin")
    writer.write(bytes(size))
    writer.end()
    writer.finish()
    return bytes(found)


class Bench:
    """A daemon with objects to fetch, and what was stopped of it."""

    def __init__(self, box: Whole, caller: Caller, folder: Path) -> None:
        self.box = box
        self.caller = caller
        self.at = 0
        self.steps: dict[str, Steps] = {}
        self.lake, ward, key = folder / "lake", folder / "ward", box.daemon.public
        (self.lake / "many").mkdir(parents=True)
        ward.mkdir()
        sizes = {"one": 2 * SEGMENT, "small": 1000, "many/0": 2 * SEGMENT, "many/1": 1000, "many/2": 2000}
        for name, size in sizes.items():
            (self.lake / f"{name}.smp").write_bytes(sealed(key, size))
        (ward / "plain.bin").write_bytes(bytes(2 * SEGMENT))
        sender = SENDER.public
        box.daemon.trust.add("hospital", sender.text(), key_id=sender.key_id, fingerprint=sender.fingerprint())
        box.daemon.remotes.add("lake", c.LocalConfig(str(self.lake)))
        box.daemon.remotes.add("ward", c.LocalConfig(str(ward)), mode="standard")

    async def attempt(self, real: Any, scheduler: Scheduler, job: str) -> None:
        """One attempt of a job, as the scheduler would make it."""

        def stop() -> None:  # as Scheduler.cancel does
            run = scheduler._running[job]
            run.asked = "cancel"
            run.scope.cancel()

        counted = self.steps[job] = Steps(stop, self.at)
        steps.set(counted)
        try:
            await Counted(real(scheduler, job), counted)
        finally:
            counted.over.set()

    async def submit(self, spec: c.AnyJobSpec, at: int = 0) -> str:
        """A job that is stopped at this await; 0 for not at all."""
        self.at = at
        async with self.caller.open(c.Submit(spec, os.urandom(8).hex())) as exchange:
            if isinstance(spec, c.PutSpec):
                with (self.lake / "one.smp").open("rb") as file:
                    await exchange.send(c.PutFile("a.bin", 0, last=True), [file.fileno()])
            job = (await exchange.result(c.JobView)).id
        while job not in self.steps:
            await anyio.lowlevel.checkpoint()
        return job

    async def ended(self, job: str) -> str:
        """The state in which a job ended."""
        await self.steps[job].over.wait()
        return (await self.caller.call(c.JobRequest(job), c.JobView)).state

    def held(self) -> dict[str, int]:
        """What is taken of the daemon."""
        daemon = self.box.daemon
        found = {
            "lanes": sum(pool.lanes_in_use for pool in daemon.pools.open.values()),
            "slots of the plain ring": sum(compute.slots_in_use for compute in daemon.box.compute.all),
            "claimed bytes": daemon.box.space.look().claimed,
            "open requests": sum(len(host.worker.caller._open) for host in daemon.hosts if host.worker is not None),
            "open files of the spool": sum("/spool/" in link for link in descriptors().values()),
            "files of the spool": len(os.listdir(daemon.box.spool_dir)),
            "waiting for a limit": daemon.limiter.waiting,
        }
        return {name: count for name, count in found.items() if count}

    async def at_rest(self) -> None:
        """Wait until no job is left, and no worker in use, nor starting for a use that does not come any more."""
        daemon = self.box.daemon
        while any(daemon.scheduler.counts()) or any(host._users for host in daemon.hosts):
            await anyio.sleep(0.001)

    async def records(self) -> list[Any]:
        """The audit log, which verifies."""
        async with self.caller.open(c.AuditRead()) as exchange:
            lines = [line async for part in exchange.messages(c.AuditLines) for line in part.lines]
            proof = await exchange.result(c.AuditProof)
        notes = [note.encode() for note in proof.checkpoints]
        verify_log(lines, notes, (VerifierKey(proof.origin, proof.public_key),))
        return [parse_line(line) for line in lines]


@contextlib.asynccontextmanager
async def bench_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    real_attempt, real_open = Scheduler._attempt, anyio.open_process

    async def open_process(command: list[str], **options: Any) -> anyio.abc.Process:
        if command[3] == "smpd.compute":
            command = [sys.executable, FAKE_COMPUTE, command[-1]]
            options["env"] = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
        return await real_open(command, **options)

    async def attempt(scheduler: Scheduler, job: str) -> None:
        await bench.attempt(real_attempt, scheduler, job)

    monkeypatch.setattr(workers.anyio, "open_process", open_process)
    monkeypatch.setattr(Scheduler, "_attempt", attempt)
    asyncio.get_running_loop().set_task_factory(make_task)
    with anyio.fail_after(120):
        async with whole(folder / "box", scheduler=True, **CONFIG) as box, box.client(0) as caller:
            bench = Bench(box, caller, folder)
            yield bench


@pytest.mark.parametrize("kind", JOBS)
async def test_a_job_that_is_cancelled_anywhere(kind, tmp_path, monkeypatch):
    """It ends as cancelled, once, and leaves nothing; who works beside it notices nothing, nor does the next one."""
    spec, left_out = JOBS[kind]
    async with bench_in(tmp_path, monkeypatch) as bench:
        assert await bench.ended(await bench.submit(spec)) == "done"
        cancelled, at = [], 1
        while True:
            beside = [await bench.submit(spec)] if kind == "run behind" else []
            job = await bench.submit(spec, at)
            state = await bench.ended(job)
            assert [await bench.ended(each) for each in beside] == ["done"] * len(beside), at
            if not bench.steps[job].stopped:  # it has no more of them
                break
            await bench.at_rest()
            assert not bench.held(), at
            assert state in ("cancelled", "done"), at
            cancelled += [job] if state == "cancelled" else []
            at += 1 + left_out
        assert at > 20 / (1 + left_out)
        assert state == "done"
        ends = [record.job for record in await bench.records() if record.event == "job.cancelled"]
        assert ends == cancelled


async def put(bench: Bench) -> None:
    await bench.submit(c.PutSpec("lake:put/", [SENDER.public.text()]))


async def opened(bench: Bench) -> None:
    item = (await bench.caller.call(c.VaultList(), c.Vault)).items[0].id
    async with bench.caller.open(c.VaultOpen(item)) as exchange:
        with (bench.lake.parent / "opened").open("wb") as file:
            await exchange.send(c.OpenInto("a.bin", last=True), [file.fileno()])
        await exchange.result(c.Entries)


async def listed(bench: Bench) -> None:
    async with bench.caller.open(c.ListObjects("lake:many/")) as exchange:
        async for _ in exchange.messages(c.Objects):
            pass


async def tried(bench: Bench) -> None:
    await bench.caller.call(c.RemoteTest("lake"), c.RemoteTested)


REQUESTS: dict[type[c.Request], Callable[[Bench], Any]] = {
    c.Submit: put,
    c.VaultOpen: opened,
    c.ListObjects: listed,
    c.RemoteTest: tried,
}


@pytest.mark.parametrize("kind", REQUESTS)
async def test_a_request_that_is_cancelled_anywhere(kind, tmp_path, monkeypatch):
    """It leaves nothing either, but for a put that was accepted: that is done."""
    real, stopped, at = VERBS[kind], False, 0

    async def verb(daemon: Any, actor: Any, request: Any, exchange: Any) -> Any:
        nonlocal stopped
        with anyio.CancelScope() as scope:
            counted = Steps(scope.cancel, at)
            steps.set(counted)
            try:
                return await Counted(real(daemon, actor, request, exchange), counted)
            finally:
                counted.over.set()
                stopped = counted.stopped
        raise DaemonError("protocol", "it was cancelled")

    monkeypatch.setitem(VERBS, kind, verb)
    async with bench_in(tmp_path, monkeypatch) as bench:
        assert await bench.ended(await bench.submit(JOBS["get"][0])) == "done"
        while True:
            at += 1
            with contextlib.suppress(SmpError):
                await REQUESTS[kind](bench)
            if not stopped:
                break
            await bench.at_rest()
            assert not bench.held(), at
        assert at > 3
        assert {await bench.ended(job) for job in bench.steps} == {"done"}
        await bench.records()
