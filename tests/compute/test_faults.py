"""A processor that fails, hangs, eats memory, dies or returns nonsense costs its run and nothing else."""

import json

import anyio
import msgspec
import pytest
from compute.harness import BUILT_IN, HOSTILE, Entry, compute

from smp_proto.errors import DaemonError, ProcessorError, ResourceError
from smpd.links.computing import (
    AnyFromCompute,
    Chunk,
    Done,
    Finish,
    InputEntry,
    InputObject,
    Objects,
    OutputBegin,
    OutputChunk,
    OutputFreed,
    Run,
)

ONE = [Entry("Doe^Jane", b"x")]
SMALL = (2, 4096, 2, 4096)
NONSENSE = {
    "text": "not Output",
    "tensor": "not Output",
    "number": "result 1 of processor hostile.nonsense is int",
    "list": "result 2 of processor hostile.nonsense is int",
    "twice": "earlier one",
    "absolute": "absolute",
    "dots": "'..'",
    "control": "control",
    "backslash": "backslash",
    "surrogate": "Unicode",
    "long": "longer",
    "no_name": "no text",
    "data": "holds dict",
    "type": "media type",
    "attributes": "attributes",
    "deep": "attributes",
    "big": "attributes",
    "png": "no PNG",
    "float8": ".npy",
}


async def _goes_on(worker):
    """The next run works."""
    entries = [Entry("a", b"\x01\x02"), Entry("b", b""), Entry("c", b"\x03" * 100_000)]
    _, [result] = await worker.run("hostile.sums", entries)
    assert result.data[-24:] == b"".join(n.to_bytes(8, "little") for n in (3, 0, 300_000))
    assert (result.media_type, result.attributes) == ("application/x-npy", {"n": 3})


async def test_exceptions_name_the_line_and_no_data(plugins):
    """An exception is told by type, entry and line; its text only where it was meant to be shown."""
    cases = {
        "hostile.raises": "entry 1 of 1: ValueError at hostile.py:",
        "hostile.exits": "entry 1 of 1: SystemExit at hostile.py:",
        "hostile.refuses": "entry 1 of 1: there is no lung in this",
    }
    async with compute(*HOSTILE, plugins=plugins, shared=True) as worker:
        for name, said in cases.items():
            error = await worker.error(name, ONE)
            assert isinstance(error, ProcessorError)
            assert error.code == "processor_failed"
            assert said in error.message
            assert "Doe" not in str(error.body())
            await _goes_on(worker)


@pytest.mark.parametrize("name", ["hostile.spins", "hostile.swallows"])
async def test_a_hang_is_answered_in_time(plugins, name):
    """A processor that never returns ends in ``processor_timeout``, while the link answers; then the process exits."""
    async with compute(name, "hostile.sums", plugins=plugins) as worker:
        error = await worker.error(name, [Entry("a", b"x" * 100)], timeout_s=0.3)
        assert isinstance(error, ProcessorError)
        assert error.code == "processor_timeout"
        assert await worker.ended() == 75


async def test_one_that_is_late_lets_go(plugins):
    """A processor over its time that asks for more input is ended there, and the process takes the next run."""
    async with compute(*HOSTILE, plugins=plugins, slots=SMALL) as worker:
        error = await worker.error("hostile.dawdles", [Entry("a", bytes(100_000))], timeout_s=0.4)
        assert error.code == "processor_timeout"
        await _goes_on(worker)


async def test_the_limit_is_for_one_object(plugins):
    """Many objects may take longer together than one may alone."""
    async with compute(*HOSTILE, plugins=plugins, shared=True) as worker:
        async with worker.caller.open(Run("j", "hostile.works", {}, 0.6, single=False)) as exchange:
            await exchange.send(Objects([InputObject(str(n), [InputEntry("a", n, 1, "")]) for n in range(4)]))
            await exchange.send(Chunk(0, 0, 4))
            await exchange.send(Finish(4))
            async for message in exchange.messages(AnyFromCompute):
                if isinstance(message, OutputChunk):
                    await exchange.send(OutputFreed(message.slot))
            assert (await exchange.result(Done)).outputs == 4


async def test_waiting_for_smpd_is_no_work():
    """The time limit counts the processor's own work, not how long smpd takes to bring a chunk or take a result."""
    async with compute("digest", slots=(2, 4096, 1, 4096)) as worker:
        request = Run("j", "digest", {}, 0.2)
        async with worker.caller.open(request) as exchange:
            await exchange.send(one(InputEntry("a", 0, 2, "")))
            await exchange.send(Chunk(0, 0, 1))
            with pytest.raises(TimeoutError), anyio.fail_after(0.5):
                await exchange.result(Done)
            await exchange.send(Chunk(1, 1, 1))
            await exchange.send(Finish(2))
            with pytest.raises(TimeoutError), anyio.fail_after(0.5):
                await exchange.result(Done)  # it waits for the one slot of its two results
            await exchange.send(OutputFreed(0))
            assert (await exchange.result(Done)).outputs == 2


async def test_memory_without_end(plugins):
    """With a limit, allocating for ever is ``device_memory``, and the memory comes back."""
    async with compute(*HOSTILE, plugins=plugins, memory_bytes=384 << 20, device="cpu") as worker:
        for name in ("hostile.allocates", "hostile.objects", "hostile.allocates"):
            error = await worker.error(name, ONE)
            assert isinstance(error, ResourceError)
            assert error.code == "device_memory"
            await _goes_on(worker)


@pytest.mark.parametrize("name", ["hostile.crashes", "hostile.signals"])
async def test_death_is_seen(plugins, name):
    """A processor that takes the process down ends the link, and so the run; the next process works."""
    async with compute(name, plugins=plugins) as worker:
        assert (await worker.error(name, ONE)).code == "worker_died"
        assert worker.caller.alive is False
    async with compute(*HOSTILE, plugins=plugins, shared=True) as worker:
        await _goes_on(worker)


async def test_nonsense_is_refused(plugins):
    """Whatever is no result is told by its number and what is wrong with it; no name of it appears."""
    async with compute(*HOSTILE, plugins=plugins, shared=True) as worker:
        for which, said in NONSENSE.items():
            error = await worker.error("hostile.nonsense", ONE, which=which)
            assert isinstance(error, ProcessorError)
            assert (error.code, said in error.message) == ("processor_output", True), (which, error.message)
            assert "/etc/x" not in error.message
        error = await worker.error("hostile.nonsense", ONE)
        assert (error.code, "which" in error.message) == ("bad_parameter", True)
        error = await worker.error("hostile.nonsens", ONE)
        assert (error.code, "hostile.nonsense" in error.hint) == ("no_such_processor", True)
        error = await worker.error("hostile.nonsense", [], which="text")
        assert (error.code, "empty" in error.hint) == ("processor_input", True)
        await _goes_on(worker)


async def test_results_of_all_shapes(plugins):
    """No result, thousands of empty ones, and one for each window come back as they were made."""
    async with compute(*HOSTILE, plugins=plugins, shared=True) as worker:
        done, results = await worker.run("hostile.nothing", ONE)
        assert (done.entries, done.outputs, results) == (1, 0, [])
        done, results = await worker.run("hostile.empties", ONE)
        assert (done.outputs, {bytes(r.data) for r in results}) == (3000, {b""})
        worker.chunk_bytes = 10
        entries = [Entry("a", bytes(range(25))), Entry("b", b""), Entry("c", bytes(range(3)))]
        _, results = await worker.run("hostile.windows", entries)
        assert [(r.name, len(r.data)) for r in results] == [("a/0", 10), ("a/1", 10), ("a/2", 5), ("c/0", 3)]
        assert b"".join(r.data for r in results) == bytes(range(25)) + bytes(range(3))


async def test_what_is_not_read_is_skipped(plugins):
    """A processor that looks at the first window of each entry only gets the right one of each."""
    entries = [Entry(f"{n}", bytes([n]) * size) for n, size in enumerate([300, 0, 5, 500_000, 1, 70_000])]
    async with compute(*HOSTILE, plugins=plugins, shared=True) as worker:
        _, [result] = await worker.run("hostile.peeks", entries)
        assert bytes(result.data) == bytes([0, 2, 3, 4, 5])


async def test_buffers_are_zeroed_between_jobs(plugins):
    """A tensor that a processor keeps from the last job shows nothing of it in the next."""
    async with compute(*HOSTILE, plugins=plugins) as worker:
        _, [result] = await worker.run("hostile.keeps", [Entry("a", b"secret")])
        assert result.data == b"none"
        _, [result] = await worker.run("hostile.keeps", [Entry("a", b"")])
        assert result.data == bytes(6)


async def test_garbage_is_collected_in_the_middle_of_a_job(plugins):
    """It is not while the process starts."""
    async with compute(*HOSTILE, plugins=plugins, shared=True) as worker:
        _, [result] = await worker.run("hostile.litters", ONE)
        assert result.data == b"True"


async def test_memory_does_not_grow_with_the_object():
    """64 MiB as one entry go through a ring of 256 KiB without the process growing by a tenth of that."""
    async with compute(*BUILT_IN, shared=True) as worker:
        first, _ = await worker.run("digest", [Entry("a", bytes(1 << 20))])
        before = worker.rss_bytes()
        done, _ = await worker.run("digest", [Entry("a", bytes(64 << 20))])
        assert worker.rss_bytes() - before < 6 << 20
        assert done.peak_rss_bytes < first.peak_rss_bytes + (6 << 20)


async def test_cancelling_lets_go():
    """A cancelled run ends; a thread that waits for input lets go, and the process takes the next run."""
    async with compute("digest") as worker:
        async with worker.caller.open(Run("j", "digest", {}, 30)) as exchange:
            await exchange.send(one(InputEntry("a", 0, 10, "")))
            await exchange.send(Chunk(0, 0, 5))
        await _idle(worker)
        assert (await worker.run("digest", ONE))[0].outputs == 2


async def _idle(worker):
    """Wait until the process takes a run again."""
    with anyio.fail_after(20):
        while (await worker.error("digest", [])).code != "processor_input":
            await anyio.sleep(0.01)


async def test_a_cancelled_hang_ends_the_process(plugins):
    """A thread that does not let go on cancelling takes the process along, and smpd starts another."""
    async with compute("hostile.sleeps", plugins=plugins) as worker:
        async with worker.caller.open(Run("j", "hostile.sleeps", {}, 0)) as exchange:
            await exchange.send(one(InputEntry("a", 0, 1, "")))
            await exchange.send(Chunk(0, 0, 1))
            message = None
            while not isinstance(message, OutputBegin):
                message, _ = await exchange.receive(AnyFromCompute)
        assert await worker.ended() == 75


def one(*entries):
    """One object of these entries."""
    return Objects([InputObject("", list(entries))])


async def test_a_peer_that_errs_is_told():
    """Chunks out of place and entries that overlap or leave the plaintext are ``protocol``, not a wrong result."""
    good = [InputEntry("a", 0, 5, "")]
    cases = [
        (good, [Chunk(0, 1, 1)]),
        (good, [Chunk(9, 0, 1)]),
        (good, [Chunk(0, 0, 0)]),
        (good, [Chunk(0, 0, 5), Chunk(1, 4, 1)]),
        (good, [Chunk(0, 0, 4), Finish(4)]),
        (good, [Chunk(0, 0, 5), Finish(6)]),
        ([InputEntry("a", 3, 2, ""), InputEntry("b", 4, 1, "")], []),
        ([InputEntry("a", 0, -1, "")], []),
        (good * 2, []),
    ]
    async with compute(*BUILT_IN, shared=True) as worker:
        for entries, messages in cases:
            with anyio.fail_after(30), pytest.raises(DaemonError) as caught:
                async with worker.caller.open(Run("j", "digest", {}, 30)) as exchange:
                    await exchange.send(one(*entries))
                    for message in messages:
                        await exchange.send(message)
                    await exchange.result(Done)
            assert caught.value.code == "protocol"
            assert (await worker.run("digest", ONE))[0].outputs == 2


@pytest.mark.parametrize("more", [Chunk(1, 5, 1), Finish(5)])
async def test_more_after_the_end_of_the_input(more):
    """It is ``protocol``; the run is not over before it comes, since its second result waits for the one slot."""
    async with compute("digest", slots=(2, 4096, 1, 4096)) as worker:
        with anyio.fail_after(30), pytest.raises(DaemonError) as caught:
            async with worker.caller.open(Run("j", "digest", {}, 30)) as exchange:
                await exchange.send(one(InputEntry("a", 0, 5, "")))
                for message in (Chunk(0, 0, 5), Finish(5), more):
                    await exchange.send(message)
                await exchange.result(Done)
        assert caught.value.code == "protocol"
        assert (await worker.run("digest", ONE))[0].outputs == 2


async def test_gaps_between_entries_are_passed_over():
    """Plaintext that belongs to no entry is read and left alone, at the start, between and at the end."""
    entries = [InputEntry("a", 3, 2, ""), InputEntry("b", 8, 1, "")]
    listed, names = [], []
    async with compute(*BUILT_IN, shared=True) as worker:
        with worker.plain.slot(0) as view:
            view[:12] = bytes(range(12))
        async with worker.caller.open(Run("j", "digest", {}, 30)) as exchange:
            await exchange.send(one(*entries))
            await exchange.send(Chunk(0, 0, 12))
            await exchange.send(Finish(12))
            async for message in exchange.messages(msgspec.Raw):
                names.append(msgspec.msgpack.decode(message)["m"])
                if names[-1] == "output-chunk":
                    slot = msgspec.msgpack.decode(message)["slot"]
                    if names.count("output-chunk") == 1:
                        with worker.result.slot(slot) as view:
                            listed = json.loads(bytes(view[: msgspec.msgpack.decode(message)["length"]]))
                    await exchange.send({"m": "output-freed", "slot": slot})
    assert [entry["size"] for entry in listed] == [2, 1]
    assert names.count("freed") == 1
