"""Worker processes: one at a time, and never one that is going for a new user."""

import errno
import os
import select
import signal
import socket
import subprocess

import anyio
import anyio.lowlevel
import pytest
import structlog.testing
from lingering import lingering

from smp_proto.aio import Caller
from smp_proto.errors import ResourceError, SmpError
from smpd.transfer import workers
from smpd.transfer.workers import Worker, WorkerHost


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(found) and not found.startswith("Z")


async def pid_of(host: WorkerHost) -> int:
    async with host.use() as worker:
        return await worker.caller.call({"op": "pid"}, int, timeout=30)


async def test_one_worker_serves_all(hosting):
    """Many that come at once get the same process, started once."""
    async with hosting() as host:
        pids: list[int] = []

        async def ask() -> None:
            pids.append(await pid_of(host))

        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(ask)
        assert len(set(pids)) == 1
        assert host.restarts == 0


async def test_another_starts_after_a_death(hosting):
    """When a worker dies, whoever it worked for is told, and the next one gets another."""
    async with hosting() as host:
        first = await pid_of(host)
        with pytest.raises(ResourceError, match="ended unexpectedly") as caught:
            async with host.use() as worker:
                await worker.caller.call({"op": "die"}, type(None), timeout=30)
        assert (caught.value.code, caught.value.retryable) == ("worker_died", True)
        second = await pid_of(host)
        assert second != first
        assert not alive(first)
        assert host.restarts == 1


@pytest.mark.parametrize(
    ("request_", "how"),
    [
        ({"op": "die", "signal": signal.SIGSEGV}, "SIGSEGV"),
        ({"op": "die", "signal": 40}, "signal 40"),
        ({"op": "exit"}, "exit status 7"),
    ],
)
async def test_the_log_says_how_a_worker_ended(hosting, request_, how):
    """One that crashed can say nothing itself; one that was let go is not worth a line."""
    with structlog.testing.capture_logs() as lines:
        async with hosting() as host:
            with pytest.raises(ResourceError, match="ended unexpectedly"):
                async with host.use() as worker:
                    await worker.caller.call(request_, type(None), timeout=30)
            await pid_of(host)
    found = [line for line in lines if line["event"] == "worker ended"]
    assert [(line["pid"], line["how"]) for line in found] == [(worker.pid, how)]


async def test_what_a_worker_says_is_logged_as_that(hosting):
    """Its standard error is its own: it can neither end the log nor write lines that look like the daemon's."""
    with structlog.testing.capture_logs() as lines:
        async with hosting() as host:
            async with host.use() as worker:
                assert os.stat(f"/proc/{worker.pid}/fd/2").st_ino != os.fstat(2).st_ino
                said = b'Traceback:\n{"event": "started"}\n\x1b[2J'
                await worker.caller.call({"op": "say", "lines": [said]}, type(None), timeout=30)
    [found] = [line for line in lines if line["event"] == "worker said"]
    assert (found["pid"], found["lines"]) == (worker.pid, ["Traceback:", '{"event": "started"}', "?[2J"])


async def test_a_worker_that_talks_without_end_waits_for_nobody(hosting):
    """It is listened to for some time, and goes on in any case; the log does not grow with it."""
    with structlog.testing.capture_logs() as lines:
        async with hosting() as host, host.use() as worker:
            talk = {"op": "say", "lines": [b"x" * 1000 + b"\n"] * 500}
            await worker.caller.call(talk, type(None), timeout=60)
    found = [line for line in lines if line["event"] == "worker said"]
    assert 0 < sum(len(line) for each in found for line in each["lines"]) < 500_000


async def test_what_a_worker_hands_over_is_not_waited_for(hosting):
    """Nothing is taken of a worker: what it hands over all the same may be a socket that takes an hour to close."""
    async with hosting() as host:
        ours, theirs = socket.socketpair()
        with lingering() as sock, ours:
            with pytest.raises(SmpError) as caught:
                async with host.use() as worker:
                    request = {"op": "hand-back"}
                    async with worker.caller.open(request, [sock.fileno(), theirs.fileno()]) as exchange:
                        sock.close()
                        theirs.close()
                        select.select([ours], [], [])  # until whoever gets it has the only one
                        await exchange.result(type(None))
            await worker.gone.wait()
        assert caught.value.code in ("protocol", "worker_died")
        assert await pid_of(host) != worker.pid


@pytest.mark.parametrize("op", ["garbage", "stranger"])
async def test_a_worker_that_breaks_the_protocol_is_ended(hosting, op):
    """What no worker may send ends that worker and its requests, not its host."""
    async with hosting() as host:
        with pytest.raises(SmpError) as caught:
            async with host.use() as worker:
                await worker.caller.call({"op": op}, type(None), timeout=30)
        assert caught.value.code in ("protocol", "worker_died")
        assert caught.value.retryable  # it was perhaps another's request that broke it
        assert await pid_of(host) != worker.pid
        assert not alive(worker.pid)


async def test_one_that_is_expected_is_started_before_it_is_used(hosting):
    """Once, however often it is expected; who uses it meanwhile gets the same."""
    ready = anyio.Event()

    async def set_up(worker: Worker) -> None:
        await worker.caller.call({"op": "pid"}, int, timeout=30)
        ready.set()

    async with hosting(set_up) as host:
        host.expect()
        host.expect()
        with anyio.fail_after(30):
            await ready.wait()
        assert await pid_of(host)
        host.expect()
        assert host.restarts == 0


async def test_what_goes_wrong_with_one_that_is_expected_is_for_its_user(hosting):
    """It is nobody's error until somebody wants it, who has it tried again."""
    tries, tried = iter(range(1, 10)), anyio.Event()

    async def set_up(_worker: Worker) -> None:
        tried.set()
        raise ResourceError("device_memory", f"try {next(tries)}")

    async with hosting(set_up) as host:
        host.expect()
        with anyio.fail_after(30):
            await tried.wait()
        with pytest.raises(ResourceError, match="try 2"):
            await pid_of(host)


async def test_death_while_starting(hosting):
    """A worker that dies before it is set up is an error of whoever asked for it; the next try may succeed."""
    deaths = iter([True, False])

    async def set_up(worker: Worker) -> None:
        if next(deaths, False):
            os.kill(worker.pid, signal.SIGKILL)
        await worker.caller.call({"op": "pid"}, int, timeout=30)

    async with hosting(set_up) as host:
        with pytest.raises(ResourceError) as caught:
            await pid_of(host)
        assert caught.value.code == "worker_died"
        assert await pid_of(host)
        assert host.restarts == 0


async def test_what_set_up_says_is_what_the_user_gets(hosting):
    """A worker that refuses its set-up is let go, and the reason arrives."""

    async def set_up(worker: Worker) -> None:
        pids.append(worker.pid)
        raise ResourceError("sandbox", "no seccomp here")

    pids: list[int] = []
    async with hosting(set_up) as host:
        with pytest.raises(ResourceError, match="no seccomp here"):
            await pid_of(host)
        assert not alive(pids[0])


async def test_stop_while_starting(hosting):
    """Stopping a host whose worker is not ready yet is an error of whoever waits for it, and no fault."""
    starting = anyio.Event()

    async def set_up(worker: Worker) -> None:
        if not starting.is_set():
            starting.set()
            await anyio.sleep_forever()

    async with hosting(set_up) as host:
        async with anyio.create_task_group() as group:

            async def ask() -> None:
                with pytest.raises(ResourceError, match="ended unexpectedly"):
                    await pid_of(host)

            group.start_soon(ask)
            await starting.wait()
            host.stop()
        assert await pid_of(host)


async def test_a_worker_that_cannot_be_set_up_in_time(hosting, monkeypatch):
    """A worker that never gets ready is given up."""
    monkeypatch.setattr(workers, "START_TIMEOUT_S", 0.05)

    async def set_up(worker: Worker) -> None:
        await worker.caller.call({"op": "hang"}, type(None))

    async with hosting(set_up) as host:
        with pytest.raises(ResourceError) as caught:
            await pid_of(host)
        assert caught.value.code == "worker_died"


async def test_no_new_user_gets_a_worker_that_idles_out(hosting):
    """A use that begins as the worker is let go for idleness gets one that works, at whatever instant it begins."""
    async with hosting(idle_s=0.01) as host:
        pids = set()
        for number in range(12):
            pids.add(await pid_of(host))
            with anyio.move_on_after(0.01 + number * 0.0002):
                await anyio.sleep_forever()
        assert host.restarts == len(pids) - 1


async def test_a_use_right_after_a_stop_gets_another(hosting):
    """A use that begins in the same instant in which the worker is let go gets a new one, not a dying one."""
    async with hosting() as host:
        pids = [await pid_of(host)]

        async def ask() -> None:
            pids.append(await pid_of(host))

        async with anyio.create_task_group() as group:
            host.stop()
            group.start_soon(ask)
        assert pids[0] != pids[1]


async def test_a_user_keeps_the_worker(hosting):
    """A worker in use does not idle out, however long the use; when it ends, the worker goes."""
    async with hosting(idle_s=0.01) as host:
        async with host.use() as worker:
            first = await pid_of(host)
            await anyio.sleep(0.1)
            assert await worker.caller.call({"op": "pid"}, int, timeout=30) == first
        await worker.caller.wait_closed()
        assert host.worker is None
        assert host.peak_rss > 0


async def test_the_next_one_waits_until_the_last_is_gone(hosting, monkeypatch):
    """A worker that ignores that its link closed is killed, and only then another starts: they share their rings."""
    monkeypatch.setattr(workers, "_STOP_TIMEOUT_S", 0.3)
    async with hosting() as host:
        first = await pid_of(host)
        async with host.use() as worker, anyio.create_task_group() as group:

            async def deafen() -> None:
                with pytest.raises(SmpError):
                    await worker.caller.call({"op": "deaf"}, type(None))

            group.start_soon(deafen)
            await pid_comm(worker.pid)
            host.stop()
        assert alive(first)
        assert await pid_of(host) != first
        assert not alive(first)


async def pid_comm(pid: int) -> None:
    """Wait until the worker is deaf."""
    while True:
        with open(f"/proc/{pid}/comm") as comm:
            if comm.read().strip() == "deaf":
                return
        await anyio.sleep(0.005)


async def test_end_leaves_no_process(hosting):
    """After end the process is gone, whatever it was doing."""
    async with hosting() as host:
        async with host.use() as worker, anyio.create_task_group() as group:

            async def deafen() -> None:
                with pytest.raises(SmpError):
                    await worker.caller.call({"op": "deaf"}, type(None))

            group.start_soon(deafen)
            await pid_comm(worker.pid)
            await host.end()
            assert not alive(worker.pid)
        await host.end()  # of none: nothing happens


async def test_a_cancelled_start_leaves_no_process(hosting):
    """A job that is cancelled while its worker starts takes the start back; the next job starts anew."""
    pids: list[int] = []
    starting = anyio.Event()

    async def set_up(worker: Worker) -> None:
        pids.append(worker.pid)
        if len(pids) == 1:
            starting.set()
            await anyio.sleep_forever()

    async with hosting(set_up) as host:
        async with anyio.create_task_group() as group:
            group.start_soon(pid_of, host)
            await starting.wait()
            group.cancel_scope.cancel()
        assert await pid_of(host) == pids[1]
        assert not alive(pids[0])


async def test_too_few_descriptors_are_an_error_of_the_job(hosting, monkeypatch):
    """When the system gives no process, the job fails with a reason and may be tried again; nothing leaks."""

    async def none(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    async with hosting() as host:
        with monkeypatch.context() as patch:
            patch.setattr(workers.anyio, "open_process", none)
            with pytest.raises(ResourceError, match="Too many open files") as caught:
                await pid_of(host)
        assert caught.value.retryable
        assert await pid_of(host)


async def test_cancel_waits_until_the_peer_has_let_go(hosting):
    """Exchange.cancel returns after END: what the request was given is not touched any more."""
    async with hosting() as host, host.use() as worker:
        caller: Caller = worker.caller
        reader, writer = os.pipe()
        try:
            async with caller.open({"op": "slow-cancel"}, [writer]) as exchange:
                await caller.call({"op": "pid"}, int, timeout=30)
                await exchange.cancel()
                os.set_blocking(reader, False)
                assert os.read(reader, 10) == b"late"
        finally:
            os.close(reader)
            os.close(writer)


async def test_what_only_the_worker_needed_goes_with_it(hosting):
    """Let go is told when the worker is gone, before the next starts, and not while somebody may want that one."""
    told: list[bool] = []
    gone = anyio.Event()

    async def let_go() -> None:
        told.append(alive(first))
        gone.set()

    async with hosting(idle_s=0.01, let_go=let_go) as host:
        first = await pid_of(host)
        await gone.wait()
        assert told == [False]
        async with host.use() as worker:
            await host.end()
            assert not alive(worker.pid)
            assert told == [False]
        assert told == [False, False]


async def test_one_that_is_expected_may_find_no_descriptor(hosting):
    """What keeps it from starting ends nobody else's work."""

    async def set_up(_worker: Worker) -> None:
        tried.set()
        raise OSError(errno.EMFILE, "Too many open files")

    tried = anyio.Event()
    async with hosting(set_up) as host:
        host.expect()
        with anyio.fail_after(30):
            await tried.wait()
            await host.gone()
        await anyio.wait_all_tasks_blocked()


async def test_end_leaves_another_alone(hosting):
    """Who ends a worker that is gone already ends none that has come in its place."""
    async with hosting() as host, host.use() as first:
        os.kill(first.pid, signal.SIGKILL)
        await first.caller.wait_closed()
        second = await pid_of(host)
        await host.end(first)
        assert not alive(first.pid)
        assert await pid_of(host) == second
        async with host.use() as worker:
            await host.end(worker)
            assert not alive(second)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 6, 8, 12, 20, 50])
async def test_a_host_that_is_closed_starts_no_more(hosting, steps):
    """Neither for those who were about to start one, at whatever instant, nor for those who come later."""
    readied: list[int] = []

    async def set_up(worker: Worker) -> None:
        readied.append(worker.pid)
        await worker.caller.call({"op": "pid"}, int, timeout=30)

    async def ask() -> None:
        with pytest.raises(ResourceError, match="ended unexpectedly"):
            await pid_of(host)

    async with hosting(set_up) as host:
        await pid_of(host)
        host.stop()
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(ask)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            await host.aclose()
            assert host.absent
        started = len(readied)
        await ask()
        assert host.absent
        assert not any(map(alive, readied))
        assert len(readied) == started


async def test_what_only_the_worker_needed_goes_with_the_last_who_wanted_it(hosting):
    """Also where the worker could not be set up, or ended while it was used: nobody else comes to let go of it."""
    told: list[bool] = []

    async def let_go() -> None:
        told.append(host.absent)

    async def set_up(worker: Worker) -> None:
        if refused:
            raise ResourceError("sandbox", "no seccomp here")
        await worker.caller.call({"op": "pid"}, int, timeout=30)

    refused = True
    async with hosting(set_up, let_go=let_go) as host:
        with pytest.raises(ResourceError, match="no seccomp here"):
            await pid_of(host)
        assert told == [True]
        refused = False
        async with host.use(), host.use() as worker:
            await host.end(worker)
            assert told == [True]
        assert told == [True, True]
