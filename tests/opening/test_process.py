"""Batches of small objects in processes of their own: the same verdicts as in a thread, and nothing of the box at risk.

The processes are real. Where one must not answer it is stopped by SIGSTOP.
"""

import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealed.forge import identity
from sealed.helpers import seal

from smp_proto.errors import DaemonError, ResourceError, SmpError
from smp_proto.sealed.keys import Identity
from smpd.links.ring import Ring
from smpd.opening import link
from smpd.opening.server import Server
from smpd.transfer import openers as rooms
from smpd.transfer import workers
from smpd.transfer.openers import Openers, Sealed, Target
from smpd.walls.sandbox import Kernel

ALICE, MALLORY, BOX, LATER = identity("alice"), identity("mallory"), identity("box"), identity("later")
KERNEL = Kernel.probe()
SLOT = 1 << 20


class Rings:
    """A cipher ring and a plain one, with objects in slot 1 of the first."""

    def __init__(self, objects: Sequence[bytes]) -> None:
        self.cipher, self.plain = Ring.create("cipher", 2, SLOT), Ring.create("plain", 3, SLOT)
        places, at = [], 0
        with self.cipher.slot(1) as slot:
            for data in objects:
                slot[at : at + len(data)] = data
                places.append((at, len(data)))
                at += len(data)
        self.sealed = Sealed(self.cipher, 1, places)
        self.target = Target(self.plain, 2, self.plain.slot(2))

    def close(self) -> None:
        self.target.view.release()
        for ring in (self.cipher, self.plain):
            if not ring.closed:
                ring.close()


@contextlib.asynccontextmanager
async def opening(
    objects: Sequence[bytes], identities: Sequence[Identity] = (BOX,), processes: int = 1
) -> AsyncIterator[tuple[Openers, Rings]]:
    """Openers whose processes are there, and what is to be opened."""
    rings = Rings(objects)
    try:
        async with anyio.create_task_group() as group:
            with anyio.fail_after(120):
                openers = Openers(group, identities, processes=processes, sandbox="auto")
                for place in openers._places:
                    await place.start()
                    assert place.trouble is None
                yield openers, rings
            openers.stop()
            for host in openers.hosts:
                await host.gone()
            group.cancel_scope.cancel()
    finally:
        rings.close()


def small(content: bytes, sender: Identity = ALICE, recipient: Identity = BOX, entries: int = 1) -> bytes:
    names = ["scan.bin", *(f"empty-{number:05}" * 8 for number in range(entries - 1))]
    return seal([(name, b"" if number else content) for number, name in enumerate(names)], sender, [recipient])


async def opened(openers: Openers, rings: Rings, senders: Sequence[Identity] = (ALICE,)) -> list[object]:
    found = await openers.in_process(rings.sealed, rings.target, [each.public for each in senders])
    assert found is not None
    return [each.entries[0].name if isinstance(each, link.Found) else each.error.code for each in found]


async def test_a_batch_is_opened_in_order_and_each_object_judged_by_itself():
    """The good ones lie one after the other; of the bad one nothing is left, and the sender is named who was not known."""
    bad = bytearray(small(b"b" * 500))
    bad[300] ^= 1
    stranger = small(b"c" * 100, MALLORY)
    other = small(b"d" * 100, recipient=LATER)
    objects = [
        small(b"a" * 1000),
        bytes(bad),
        stranger,
        other,
        b"no sealed object at all, but as long as one",
        small(b"e" * 7),
    ]
    async with opening(objects) as (openers, rings):
        rings.target.view[:] = b"\xee" * SLOT
        found = await openers.in_process(rings.sealed, rings.target, [ALICE.public])
        assert found is not None
        codes = ["" if isinstance(each, link.Found) else each.error.code for each in found]
        assert codes == ["", "corrupt", "untrusted_sender", "wrong_recipient", "not_sealed", ""]
        assert isinstance(found[2], link.Refused)
        assert found[2].sender == MALLORY.public.key_id
        assert rings.target.view[:1007] == b"a" * 1000 + b"e" * 7
        assert b"b" not in bytes(rings.target.view)
        assert set(rings.target.view[1500:]) == {0xEE}


async def test_without_a_plain_ring_objects_are_only_checked():
    """Nothing is written anywhere."""
    async with opening([small(b"a" * 10)]) as (openers, rings):
        rings.target.view[:] = bytes(SLOT)
        found = await openers.in_process(rings.sealed, None, [ALICE.public])
        assert found is not None
        assert isinstance(found[0], link.Found)
        assert not any(rings.target.view)


async def test_senders_and_keys_that_come_later():
    """A sender that was not known is, once it is believed; a new key of the box opens, and the one before still does."""
    identities = [BOX]
    objects = [small(b"a", MALLORY), small(b"b"), small(b"c", recipient=LATER)]
    async with opening(objects, identities) as (openers, rings):
        assert await opened(openers, rings) == ["untrusted_sender", "scan.bin", "wrong_recipient"]
        identities[:1] = [LATER, BOX.decrypt_only()]
        assert await opened(openers, rings, (MALLORY, ALICE)) == ["scan.bin"] * 3
        assert openers.hosts[0].restarts == 0


async def test_many_senders_need_several_messages(monkeypatch):
    """Their keys are sent in parts."""
    monkeypatch.setattr(rooms, "_SENDERS_AT_ONCE", 2)
    async with opening([small(b"a")]) as (openers, rings):
        senders = [identity(f"sender {number}") for number in range(4)]
        assert await opened(openers, rings, (*senders, ALICE)) == ["scan.bin"]


async def test_a_ring_that_is_closed_is_let_go_of():
    """When somebody says so, or with the next batch: its memory is given back."""

    def mapped(pid: int) -> list[str]:
        return re.findall(r"memfd:(\w+)", Path(f"/proc/{pid}/maps").read_text())

    async with opening([small(b"a")]) as (openers, rings):
        worker = openers.hosts[0].worker
        assert worker is not None
        assert await opened(openers, rings) == ["scan.bin"]
        assert sorted(mapped(worker.pid)) == ["cipher", "plain"]
        later = Rings([small(b"b")])
        rings.close()
        await openers.tidy()
        assert mapped(worker.pid) == []
        assert await opened(openers, later) == ["scan.bin"]
        assert sorted(mapped(worker.pid)) == ["cipher", "plain"]
        again = Rings([small(b"c")])
        later.close()
        assert await opened(openers, again) == ["scan.bin"]
        assert sorted(mapped(worker.pid)) == ["cipher", "plain"]
        again.close()


async def test_an_index_that_fits_no_message_is_for_a_thread():
    """So is what is not small; the process goes on."""
    async with opening([small(b"a", entries=4600)]) as (openers, rings):
        found = await openers._places[0].open(rings.sealed, rings.target, [ALICE.public])
        assert found.too_long
        large = rings.sealed._replace(objects=[(0, (256 << 10) + 1)])
        assert await openers.in_process(large, rings.target, [ALICE.public]) is None
        assert openers.hosts[0].restarts == 0


async def test_a_process_that_dies_is_an_error_that_passes_and_the_next_batch_gets_another():
    """It is gone by then, so that nothing is written to the slot any more."""
    async with opening([small(b"a")]) as (openers, rings):
        first = openers.hosts[0].worker
        assert first is not None
        os.kill(first.pid, signal.SIGSTOP)
        async with anyio.create_task_group() as group:

            async def kill() -> None:
                while not openers._places[0].under_way:
                    await anyio.lowlevel.checkpoint()
                os.kill(first.pid, signal.SIGKILL)

            group.start_soon(kill)
            with pytest.raises(ResourceError, match="ended unexpectedly") as caught:
                await opened(openers, rings)
            assert caught.value.retryable
            assert not Path(f"/proc/{first.pid}").exists()
        await openers._places[0].start()
        assert await opened(openers, rings) == ["scan.bin"]


async def test_a_process_that_does_not_answer_is_ended(monkeypatch):
    """By SIGKILL, before anybody else may have the slot."""
    async with opening([small(b"a")]) as (openers, rings):
        worker = openers.hosts[0].worker
        assert worker is not None
        monkeypatch.setattr(rooms, "ANSWER_S", 0.1)
        monkeypatch.setattr(workers, "_STOP_TIMEOUT_S", 0.1)
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(ResourceError, match="ended unexpectedly"):
            await opened(openers, rings)
        assert not Path(f"/proc/{worker.pid}").exists()


LYING = """
import msgspec, sys
from smp_proto.aio import decode, encode
from smpd.opening import __main__, server
from smpd.opening.link import Opened
true = server.Server._open
def lie(self, request):
    opened = decode(true(self, request), Opened)
    if sys.argv.pop() == "fewer":
        del opened.objects[0]
    else:
        opened.objects[0].signed = msgspec.structs.replace(opened.objects[0].signed, plain_bytes=1 << 40)
    return msgspec.Raw(encode(opened))
server.Server._open = lie
link_fd = __main__.link_fd
__main__.link_fd = lambda argv: link_fd(argv[:1])
__main__.main()
"""


@pytest.mark.parametrize("lie", ["fewer", "longer"])
async def test_an_answer_that_cannot_be_true_ends_the_process(monkeypatch, lie):
    """Where code of another's runs in it: what is believed of lengths says what is zeroed and passed on."""
    monkeypatch.setattr(workers, "command", lambda _, fd: [sys.executable, "-P", "-c", LYING, str(fd), lie])
    async with opening([small(b"one"), small(b"two")]) as (openers, rings):
        [host] = openers.hosts
        worker = host.worker
        with pytest.raises(ResourceError) as caught:
            await openers.in_process(rings.sealed, rings.target, [ALICE.public])
        assert (caught.value.code, caught.value.retryable) == ("worker_died", True)
        assert worker.gone.is_set()


async def test_a_cancelled_batch_is_waited_for():
    """Whoever gives up gets the slot back only when nobody writes to it any more."""
    async with opening([small(b"a" * 9)]) as (openers, rings):
        worker = openers.hosts[0].worker
        assert worker is not None
        await opened(openers, rings)
        rings.target.view[:] = bytes(SLOT)
        os.kill(worker.pid, signal.SIGSTOP)
        scope = anyio.CancelScope()

        async def give_up() -> None:
            while not worker.caller._open:
                await anyio.lowlevel.checkpoint()
            scope.cancel()
            await anyio.wait_all_tasks_blocked()
            assert openers._places[0].under_way
            assert not any(rings.target.view)
            os.kill(worker.pid, signal.SIGCONT)

        async with anyio.create_task_group() as group:
            group.start_soon(give_up)
            with scope:
                await opened(openers, rings)
                await anyio.lowlevel.checkpoint()
                pytest.fail("it was not cancelled")
        assert rings.target.view[:9] == b"a" * 9
        assert openers.hosts[0].restarts == 0


async def test_they_start_when_a_second_batch_would_wait(monkeypatch):
    """One batch alone is opened in a thread; of two at once the second has processes started, but waits for none."""
    rings = Rings([small(b"a")])
    gate = anyio.Event()
    async with anyio.create_task_group() as group:
        openers = Openers(group, [BOX], processes=2)

        async def ask() -> object:
            return await openers.in_process(rings.sealed, rings.target, [ALICE.public])

        assert await ask() is None
        assert not any(place.starting for place in openers._places)
        running = anyio.Event()

        def wait() -> None:
            anyio.from_thread.run_sync(running.set)
            anyio.from_thread.run(gate.wait)

        group.start_soon(openers.in_thread, 1, wait)
        await running.wait()
        assert await ask() is None
        with anyio.fail_after(120):
            while not all(place.ready for place in openers._places):
                await anyio.sleep(0.01)
        gate.set()
        assert await opened(openers, rings) == ["scan.bin"]
        openers.stop()
        for host in openers.hosts:
            await host.gone()
        group.cancel_scope.cancel()
    rings.close()


async def test_one_that_is_gone_comes_back_when_the_others_are_busy():
    """Not before: with little to do the rest are enough."""
    async with opening([small(b"a")], processes=2) as (openers, rings):
        first, second = openers._places
        await second.host.end()
        assert await opened(openers, rings) == ["scan.bin"]
        assert not second.starting
        first.under_way = 1
        assert await opened(openers, rings) == ["scan.bin"]
        first.under_way = 0
        while not second.ready:
            await anyio.sleep(0.01)
        assert await opened(openers, rings) == ["scan.bin"]
        assert first.host.restarts == 0


async def test_what_keeps_them_from_starting_is_told_and_threads_go_on(monkeypatch):
    """It is tried again only after some time."""
    tries = 0

    async def none(*arguments: object, **options: object) -> None:
        nonlocal tries
        tries += 1
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(workers.anyio, "open_process", none)
    rings = Rings([small(b"a")])
    async with anyio.create_task_group() as group:
        openers = Openers(group, [BOX], processes=1)
        openers._in_threads = 1
        for _ in range(3):
            assert await openers.in_process(rings.sealed, rings.target, [ALICE.public]) is None
            await anyio.wait_all_tasks_blocked()
        assert tries == 1
        assert openers.trouble is not None
        assert "temporarily unavailable" in openers.trouble.message
        openers._start_after = 0.0
        assert await openers.in_process(rings.sealed, rings.target, [ALICE.public]) is None
        await anyio.wait_all_tasks_blocked()
        assert tries == 2
    rings.close()


async def test_without_a_key_there_are_no_processes():
    """Nor without a place for them to live."""
    assert Openers().hosts == []
    async with anyio.create_task_group() as group:
        assert Openers(group).hosts == []


async def test_its_keys_cannot_sign_and_are_in_no_argument():
    """What it is told comes over its link only."""
    async with opening([]) as (openers, _):
        worker = openers.hosts[0].worker
        assert worker is not None
        proc = Path(f"/proc/{worker.pid}")
        secret = bytes(BOX.decryption_key())
        assert secret not in (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()
        assert len(list((proc / "fd").iterdir())) < 12
    with pytest.raises(SmpError, match="signs no more"):
        Identity.from_decryption_key(BOX.decryption_key(), BOX.public).sign(b"x")


@given(st.binary(max_size=300))
def test_what_is_no_request_is_refused(body):
    """Whatever bytes come: an error of the protocol, and no ring is mapped, no key taken."""
    server = Server(KERNEL)

    async def ask() -> None:
        with contextlib.suppress(DaemonError):
            await server.handle(body, [], None)  # type: ignore[arg-type]

    try:
        anyio.run(ask)
    except SmpError as error:
        pytest.fail(f"{error.code}: only a request gets that far")
    assert not server._rings
    assert not server._identities


async def test_rings_and_slots_that_are_not_there():
    """A request that names one ends with an error of the protocol, and the process stays."""
    async with opening([small(b"a")]) as (openers, rings):
        assert await opened(openers, rings) == ["scan.bin"]
        worker = openers.hosts[0].worker
        assert worker is not None
        for request in (link.Open(999, 0, [(0, 9)]), link.Open(rings.cipher.number, 0, [], rings.plain.number, 7)):
            with pytest.raises(DaemonError, match="not there"):
                await worker.caller.call(request, link.Opened, timeout=60)
        with pytest.raises(DaemonError, match="descriptor"):
            await worker.caller.call(link.Map(1, 1, SLOT), type(None), timeout=60)
        with pytest.raises(DaemonError, match="descriptor"):
            await worker.caller.call(link.Unmap(1), type(None), timeout=60, fds=[rings.plain.fd])
        assert await opened(openers, rings) == ["scan.bin"]
