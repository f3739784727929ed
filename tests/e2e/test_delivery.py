"""A result is published once: what a killed attempt left is found, cleared away, or somebody else's."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from box import Box
from counting_s3 import CountingS3, counting_s3
from scene import children, client, done, workers
from servers import Served

from smp_proto.control import GetSpec, JobView, LocalConfig

MIB = 1 << 20
CONFIG = {"fetch": {"processes": 1, "slots": 2, "slot_bytes": MIB, "connections": 2}}


class Held:
    """Holds the requests of a method at the server until released, from when one of another method came."""

    def __init__(self, store: CountingS3, method: str, query: str = "", *, after: str = "") -> None:
        self.reached, self.free = threading.Event(), threading.Event()
        self._store = store
        seen = not after

        def before(found: str, key: str, asked: dict[str, list[str]]) -> None:
            nonlocal seen
            seen = seen or found == after
            if seen and found == method and (query in asked if query else not asked):
                self.reached.set()
                self.free.wait(60)

        store.before = before

    def until_reached(self) -> None:
        """Wait until one is held."""
        assert self.reached.wait(60)

    def release(self) -> None:
        """Let them go, and hold no more."""
        self._store.before = lambda *_: None
        self.free.set()


@pytest.fixture
def store() -> Iterator[tuple[CountingS3, Served]]:
    """A bucket that counts."""
    with counting_s3() as found:
        yield found


@pytest.fixture
def machine(tmp_path: Path, store: tuple[CountingS3, Served]) -> Iterator[Box]:
    """A box of its own, with a bucket, a folder, and files to put."""
    made = Box(tmp_path / "box", CONFIG)
    try:
        made.start()
        (tmp_path / "disk").mkdir()
        for name, size in (("small", 5_000), ("large", 9 * MIB)):
            (tmp_path / name).write_bytes(os.urandom(size))
        with client(made) as caller:
            caller.remote_add("lake", store[1].config, secret=store[1].secret)
            caller.remote_add("disk", LocalConfig(str(tmp_path / "disk")))
        yield made
    finally:
        store[0].before = lambda *_: None
        made.close()


def put(machine: Box, name: str, target: str) -> JobView:
    with client(machine) as caller:
        return caller.put([machine.folder.parent / name], target, [caller.box_key().text])


def kill_all(machine: Box) -> None:
    """The daemon and its workers, which cannot clear up after themselves."""
    assert machine.process
    machine.process.send_signal(signal.SIGSTOP)  # else it would start others
    for pid in children(machine.process.pid):
        os.kill(pid, signal.SIGKILL)
    machine.kill()


def final(machine: Box, job: JobView) -> JobView:
    with client(machine) as caller:
        return caller.wait(job.id)


@pytest.mark.parametrize("target", ["lake:out.smp", "lake:results/"])
def test_an_upload_that_was_not_recorded_is_found(machine, store, target) -> None:
    """Killed when the object is there, before the answer came: it is not sent again."""
    kept = store[0]
    held = Held(kept, "HEAD", after="PUT")
    job = put(machine, "small", target)
    held.until_reached()
    kill_all(machine)
    held.release()
    machine.start()
    view = done(final(machine, job))
    assert view.result
    assert list(kept.effects.values()) == [1]
    assert kept.requests["PUT"] == 1


def test_an_upload_in_parts_is_aborted(machine, store) -> None:
    """Killed with a part on its way: the upload whose id was kept is aborted, and another one completed."""
    kept = store[0]
    held = Held(kept, "PUT", "uploadId")
    job = put(machine, "large", "lake:results/")
    held.until_reached()
    (left,) = kept.uploads
    kill_all(machine)
    held.release()
    machine.start()
    done(final(machine, job))
    assert left not in kept.uploads
    assert not kept.uploads
    assert list(kept.effects.values()) == [1]


def test_an_upload_whose_id_nobody_learned_is_aborted(machine, store) -> None:
    """Killed while the server makes the upload: it has no part, and goes; one of somebody else with parts stays."""
    kept = store[0]
    kept.uploads["theirs"] = ("out.smp", {1: b"part"})
    held = Held(kept, "POST", "uploads")
    job = put(machine, "large", "lake:out.smp")
    held.until_reached()
    kill_all(machine)
    held.release()
    while len(kept.uploads) < 2:  # the server goes on with what it was asked
        pass
    machine.start()
    done(final(machine, job))
    assert set(kept.uploads) == {"theirs"}


@pytest.mark.parametrize("failed", [False, True], ids=["first", "after-another"])
def test_an_upload_whose_begin_was_not_answered_is_aborted(machine, store, failed) -> None:
    """The server made it, and the answer was lost: it goes before another is made, though nobody was killed."""
    kept = store[0]
    lost: list[str] = []

    def before(method: str, key: str, asked: dict[str, list[str]]) -> None:
        if method == "PUT" and failed and not lost:
            raise ConnectionError("no part of the first arrives")
        if method == "POST" and "uploads" in asked and not lost and kept.requests["POST uploads"] >= failed:
            kept.uploads["lost"] = (key, {})
            lost.append(key)
            raise ConnectionError("the answer is lost")

    kept.before = before
    done(final(machine, put(machine, "large", "lake:out.smp")))
    assert lost == ["out.smp"]
    assert not kept.uploads
    assert list(kept.effects.values()) == [1]


def test_what_a_cancelled_job_left_is_cleared_away(machine, store) -> None:
    """A job that was killed and then cancelled leaves no upload, though no attempt follows."""
    kept = store[0]
    held = Held(kept, "PUT", "uploadId")
    job = put(machine, "large", "lake:out.smp")
    held.until_reached()
    kill_all(machine)
    held.release()
    held = Held(kept, "DELETE", "uploadId")
    machine.start()
    held.until_reached()
    with client(machine) as caller:
        caller.cancel(job.id)
    assert kept.uploads
    held.release()
    for _ in range(2000):
        if not kept.uploads:
            break
        threading.Event().wait(0.01)
    assert not kept.uploads
    assert not kept.effects


@pytest.mark.parametrize("conditional", [True, False])
def test_an_object_of_somebody_else_is_left_as_it_is(machine, store, conditional) -> None:
    """What appears at the target while the job waits is not replaced, until a person says so."""
    kept = store[0]
    kept.conditional = conditional
    held = Held(kept, "PUT")
    job = put(machine, "small", "lake:out.smp")
    held.until_reached()
    kill_all(machine)
    kept.before = lambda *_: None  # but what is held stays so
    kept.store("out.smp", b"theirs")
    machine.start()
    view = final(machine, job)
    assert (view.state, view.error.code if view.error else "") == ("failed", "target_changed")
    assert "lake:out.smp" in view.error.message
    assert kept.objects["out.smp"] == b"theirs"
    with client(machine) as caller:
        caller.resume(job.id)
        done(caller.wait(job.id))
    assert kept.objects["out.smp"] != b"theirs"
    held.release()


@pytest.mark.parametrize("remote", ["lake", "disk"])
def test_an_object_that_was_there_is_replaced(machine, store, tmp_path, remote) -> None:
    """As ever: a target that holds an older object gets the new one."""
    for name in ("small", "large"):
        done(final(machine, put(machine, name, f"{remote}:out.smp")))
    size = len(store[0].objects["out.smp"]) if remote == "lake" else (tmp_path / "disk" / "out.smp").stat().st_size
    assert size > 9 * MIB


def test_an_upload_that_came_too_late_is_aborted_though_that_failed_at_first(machine, store) -> None:
    """Its parts are all there when it turns out that the target is somebody else's, and then the server goes away."""
    kept = store[0]
    away = 0

    def before(method: str, key: str, asked: dict[str, list[str]]) -> None:
        nonlocal away
        if method == "POST" and "uploadId" in asked and not kept.objects:
            kept.store("out.smp", b"theirs")
        if method == "DELETE" and away < 4:
            away += 1
            raise ConnectionError("it is away")

    kept.before = before
    view = final(machine, put(machine, "large", "lake:out.smp"))
    assert (view.state, view.error.code if view.error else "") == ("failed", "target_changed")
    assert kept.objects == {"out.smp": b"theirs"}
    assert not kept.uploads


@pytest.mark.parametrize("name", ["small", "large"])
def test_an_object_that_was_to_be_replaced_and_went_is_nobody_elses(machine, store, name) -> None:
    """The condition does not hold any more, as if another had come; but nothing is there: the result takes its place."""
    kept = store[0]
    kept.store("out.smp", b"older")

    def before(method: str, key: str, asked: dict[str, list[str]]) -> None:
        if method == "PUT":
            kept.remove("out.smp")
            kept.before = lambda *_: None

    kept.before = before
    done(final(machine, put(machine, name, "lake:out.smp")))
    assert kept.effects["out.smp"] == 2  # the older one, and the result
    assert not kept.uploads


def test_a_server_without_conditional_writes(machine, store) -> None:
    """One that refuses the condition gets the object without."""
    kept = store[0]
    kept.refuses_conditions = True
    done(final(machine, put(machine, "small", "lake:out.smp")))
    done(final(machine, put(machine, "large", "lake:results/")))
    assert list(kept.effects.values()) == [1, 1]


@pytest.mark.parametrize("died", ["the daemon", "fetch"])
def test_a_key_that_may_not_abort(machine, store, died) -> None:
    """A fault that passes is tried again although what it left cannot be cleared away, and stays."""
    kept = store[0]
    kept.may_abort = False
    held = Held(kept, "PUT", "uploadId")
    job = put(machine, "large", "lake:out.smp")
    held.until_reached()
    (left,) = kept.uploads
    if died == "fetch":
        for pid in workers(machine, "fetch"):
            os.kill(pid, signal.SIGKILL)
        held.release()
    else:
        kill_all(machine)
        held.release()
        machine.start()
    done(final(machine, job))
    assert set(kept.uploads) == {left}
    assert list(kept.effects.values()) == [1]


def test_clearing_for_one_job_leaves_the_upload_of_another(machine, store) -> None:
    """Of a cancelled job nobody learnt the upload's id. Another job begins one to the same name, and it has no part yet."""
    kept = store[0]
    held = Held(kept, "POST", "uploads")
    cancelled = put(machine, "large", "lake:out.smp")
    held.until_reached()
    with client(machine) as caller:
        caller.cancel(cancelled.id)
    final(machine, cancelled)
    part = Held(kept, "PUT", "uploadId")
    listing, go_on, waits = threading.Event(), threading.Event(), kept.before

    def before(method: str, key: str, asked: dict[str, list[str]]) -> None:
        if method == "GET" and "uploads" in asked:
            listing.set()
            go_on.wait(60)
        waits(method, key, asked)

    kept.before = before
    held.free.set()
    with client(machine) as caller:  # a job that ends without a result has smpd look again at once
        final(machine, caller.submit(GetSpec("lake:none.smp")))
    assert listing.wait(60)
    job = put(machine, "large", "lake:out.smp")
    go_on.set()
    part.until_reached()
    (theirs,) = kept.uploads
    part.release()
    done(final(machine, job))
    assert theirs not in kept.uploads
    assert list(kept.effects.values()) == [1]
