"""A compute process that misbehaves costs its job and itself; its rings are zero and the next job runs."""

import signal

import anyio
import pytest
from transfer.compute_box import CHUNKS, SLOT, Computing, boxes, feed, run

from smp_proto.errors import IntegrityError, ProcessorError, ResourceError, SmpError, UsageError
from smpd.links.computing import Done
from smpd.metrics.counting import Metrics
from smpd.transfer.health import HealthSettings
from smpd.transfer.plain import PlainRing


@pytest.fixture
def computing(fake_program, monkeypatch) -> Computing:
    return boxes(fake_program, monkeypatch)


async def test_a_process_that_keeps_to_the_protocol_is_kept(computing):
    """Runs follow each other in one process."""
    async with computing() as compute:
        for _ in range(3):
            done, _ = await run(compute, "echo")
            assert done.outputs == 1
        assert compute.host.restarts == 0


@pytest.mark.parametrize(
    ("act", "code", "message"),
    [
        ("early", "processor_output", "done before it had been given everything"),
        ("freed twice", "processor_output", "a slot that it does not hold"),
        ("freed unasked", "processor_output", "a slot that it does not hold"),
        ("outside", "processor_output", "outside its ring"),
        ("too long", "processor_output", "outside its ring"),
        ("begin twice", "processor_output", "was refused"),
        ("dies", "worker_died", "ended unexpectedly"),
        ("hangs", "processor_timeout", "ran past its limit"),
        ("stops", "processor_timeout", "ran past its limit"),
        ("fails", "processor_failed", "line 7"),
        ("fails late", "processor_failed", "line 8"),
        ("nonsense", "protocol", "does not fit the protocol"),
        ("boasts", "protocol", "does not fit the protocol"),
        ("floods", None, ""),
        ("accuses", "processor_output", "an error that is not its to give (corrupt)"),
        ("hoards", "device_memory", "processor hoards: it took "),
        ("hides", "device_memory", "processor hides: it took "),
        ("multiplies", "processor_failed", "threads of at most"),
    ],
)
async def test_what_goes_wrong_ends_the_job_and_no_more(computing, act, code, message):
    """Each fault is an error that says what it was, and the next run is served, by a new process where need be."""
    async with computing() as compute:
        await run(compute, "echo")
        with pytest.raises(SmpError) as caught:
            await run(compute, act)
        if code:
            assert caught.value.code == code
            assert message in caught.value.message
        done, _ = await run(compute, "echo")
        assert done.outputs == 1
        assert compute.host.restarts == (0 if act in ("fails", "fails late", "early", "accuses") else 1)


async def test_parameters_are_checked_before_a_run_and_beside_one(computing):
    """What it refuses is told, as far as that is believed; it may be asked while it works."""
    async with computing() as compute:
        await compute.check("echo", {})
        with pytest.raises(UsageError, match="no parameter 'widht'") as caught:
            await compute.check("refuses", {"widht": 1})
        assert caught.value.message.isprintable()
        assert not caught.value.details

        async def feeding(plain: PlainRing) -> None:
            with pytest.raises(UsageError):
                await compute.check("refuses", {})
            await feed(plain)

        done, _ = await run(compute, "echo", feeding)
        assert done.outputs == 1
        assert compute.host.restarts == 0


@pytest.mark.parametrize("act", ["accuses", "dies", "hangs", "nonsense"])
async def test_what_goes_wrong_with_a_check_is_for_the_run_to_find(computing, act, monkeypatch):
    """It says nothing of the parameters, least of all that an object is not to be trusted."""
    monkeypatch.setattr("smpd.transfer.device._CHECK_S", 0.2)
    async with computing() as compute:
        await compute.check(act, {})
        done, _ = await run(compute, "echo")
        assert done.outputs == 1


async def test_a_process_that_does_not_start_is_for_the_run_to_find_too(computing, monkeypatch):
    """It may start by then: the device is free again, or there is memory for another process."""

    async def fails(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    async with computing() as compute:
        with monkeypatch.context() as patched:
            patched.setattr("smpd.transfer.workers.anyio.open_process", fails)
            await compute.check("echo", {})
        monkeypatch.setenv("FAKE_DEVICE", "full")
        await compute.check("echo", {})
        monkeypatch.setenv("FAKE_DEVICE", "")
        done, _ = await run(compute, "echo")
        assert done.outputs == 1


async def test_a_device_that_others_fill(computing, monkeypatch):
    """A process that cannot open its device for want of memory is believed, and the job may be tried again."""
    async with computing() as compute:
        monkeypatch.setenv("FAKE_DEVICE", "full")
        with pytest.raises(ResourceError, match="all of its memory is in use") as caught:
            await run(compute, "echo")
        assert (caught.value.code, caught.value.retryable) == ("no_memory", True)
        monkeypatch.setenv("FAKE_DEVICE", "")
        done, _ = await run(compute, "echo")
        assert done.outputs == 1


async def test_what_it_says_is_cut_to_size(computing):
    """An error's text is short and holds nothing that a terminal would obey; details are dropped."""
    async with computing() as compute:
        with pytest.raises(ProcessorError) as caught:
            await run(compute, "shouts")
        assert caught.value.message.startswith("?]0;mine?aaa")
        assert (len(caught.value.message), caught.value.details) == (1000, {})


async def test_one_that_keeps_much_is_replaced(computing):
    """A process that holds more than half of its room after a run does not do the next."""
    async with computing() as compute:
        await run(compute, "keeps")
        assert compute.host.worker is None
        await run(compute, "echo")
        await run(compute, "echo")
        assert compute.host.restarts == 1


async def test_one_that_leaks_is_replaced_between_runs(computing, monkeypatch):
    """A process that grows at each run goes before it is at its limit; nothing of a run is lost, and others stay."""
    metrics = Metrics()
    async with computing(metrics, HealthSettings(leak_bytes=20 << 20, leak_runs=3)) as compute:
        for _ in range(6):  # two that do not count, and three steps
            assert (await run(compute, "leaks"))[0].outputs == 1
        assert compute.host.worker is None
        for _ in range(7):
            await run(compute, "echo")
        assert (compute.host.restarts, compute.recycled) == (1, 1)
        assert compute.health.growth_bytes < 1 << 20
    (family,) = [each for each in metrics.families({}) if each.name == "smp_compute_recycled_total"]
    assert [(each.labels, each.value) for each in family.samples] == [({"distribution": "fake", "reason": "leak"}, 1)]


@pytest.mark.parametrize("act", ["unended", "nothing"])
async def test_results_that_are_not_whole(computing, act):
    """A process that is done in the middle of a result, or without any, is the processor's fault and is named so."""
    async with computing() as compute:
        with pytest.raises(ProcessorError, match="the processor's result was refused") as caught:
            await run(compute, act)
        assert caught.value.code == "processor_output"


async def test_an_object_that_does_not_open(computing):
    """When feeding fails, that is the reason, and the process that saw half an object is ended."""

    async def broken(plain: PlainRing) -> None:
        await plain.deliver(await plain.take(), SLOT)
        raise IntegrityError("corrupt", "segment 9 does not open")

    async with computing() as compute:
        with pytest.raises(IntegrityError, match="segment 9"):
            await run(compute, "echo", broken)
        await run(compute, "echo")
        assert compute.host.restarts == 1


@pytest.mark.parametrize("chunks", range(0, CHUNKS, 2))
async def test_a_cancelled_run(computing, chunks):
    """Cancelled at any chunk the process is gone and the rings are zero before the run returns."""
    async with computing() as compute:
        await compute.describe()
        assert compute.host.worker
        process = compute.host.worker.process
        with anyio.CancelScope() as scope:

            async def stopping(plain: PlainRing) -> None:
                for index in range(CHUNKS):
                    if index == chunks:
                        scope.cancel()
                    slot = await plain.take()
                    with plain.target(slot).view as view:
                        view[:] = b"secret!!" * (SLOT // 8)
                    await plain.deliver(slot, SLOT)

            await run(compute, "echo", stopping)
        assert scope.cancelled_caught
        assert process.returncode == -signal.SIGKILL
        await run(compute, "echo")


async def test_runs_wait_for_each_other(computing):
    """Runs that come at once are served one after the other, and one that is cancelled while waiting is gone."""
    async with computing() as compute, anyio.create_task_group() as group:
        results: list[Done] = []

        async def one() -> None:
            results.append((await run(compute, "echo"))[0])

        for _ in range(4):
            group.start_soon(one)
        with anyio.move_on_after(0):
            await run(compute, "echo")
        group.start_soon(compute.describe)
    assert len(results) == 4


@pytest.mark.parametrize("what", ["walls", "more walls", "notes", "a note", "processors", "parameters"])
async def test_a_process_that_boasts_as_it_starts(computing, monkeypatch, what):
    """What it says of itself is shown to everybody: one that says too much is not used."""
    monkeypatch.setenv("FAKE_DEVICE", what)
    async with computing() as compute:
        with pytest.raises(SmpError) as caught:
            await compute.describe()
        assert caught.value.code == ("processor_output" if what == "parameters" else "protocol")
        assert compute.ready is None
        monkeypatch.delenv("FAKE_DEVICE")
        assert (await compute.describe()).device_name == "fake"
