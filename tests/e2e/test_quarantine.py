"""The quarantine end to end: what is kept of a refused object, and what retry, rm, resume and cancel make of it."""

import contextlib
import json
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from box import Box
from gated_s3 import gated_s3
from refusals import Bench
from scene import add_remote

from smp_proto.control import GetSpec, JobView, QuarantineChange, QuarantineItem, RunSpec
from smp_proto.errors import SmpError, StateError
from smp_proto.sealed.bundle import BundleWriter
from smp_proto.sealed.keys import Identity, PublicIdentity
from smp_proto.sealed.layout import SEGMENT_BYTES
from smpctl import Client

S = SEGMENT_BYTES


def flipped(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 4
    return bytes(changed)


def refused(bench: Bench, spec: GetSpec | RunSpec) -> tuple[JobView, list[QuarantineItem]]:
    """Run a job that must be quarantined; returns it and its items."""
    view = bench.client.wait(bench.client.submit(spec).id)
    assert view.state == "quarantined", view
    return view, bench.client.quarantine(view.id)


def records(bench: Bench, job: str, event: str) -> list[dict[str, Any]]:
    """The audit records of a job and an event."""
    found = [msgspec.json.decode(line) for line in bench.client.audit_lines(bench.seen)]
    return [each for each in found if each["job"] == job and each["event"] == event]


def file_of(bench: Bench, job: str) -> Path:
    (path,) = (bench.box.state / "spool").glob(f"{job}*")
    return path


@pytest.mark.parametrize("spec", ["get", "run"])
def test_what_was_fetched_is_kept(bench: Bench, spec: str) -> None:
    """The range that does not open is kept as it came, with what came before it, the end, and the reason."""
    data = flipped(bench.good, S + 77)
    place = bench.store("kept.smp", data)
    view, (item,) = refused(bench, GetSpec(place) if spec == "get" else RunSpec(place, "digest"))
    assert (item.location, item.code, item.segment, item.size) == (place, "corrupt", 1, len(data))
    assert item.sender == bench.sender.public.key_id.hex()
    assert item.pin
    assert place in item.message
    kept = file_of(bench, view.id)
    assert kept.stat().st_size == len(data)
    assert kept.read_bytes()[S : 2 * S] == data[S : 2 * S]  # the bad one, as it is
    assert kept.read_bytes()[-1000:] == data[-1000:]
    assert S < item.kept_bytes <= len(data)
    assert item.whole == (kept.read_bytes() == data)
    assert view.error
    assert view.error.details["item"] == item.id
    (added,) = records(bench, view.id, "quarantine.add")
    assert added["fields"]["reason"] == "corrupt"
    assert added["subject"]
    bench.client.quarantine_remove(item.id)
    assert bench.client.job(view.id).state == "cancelled"
    assert records(bench, view.id, "quarantine.remove")


def test_blocks_that_hold_nothing_are_freed(bench: Bench) -> None:
    """A large object refused at its beginning takes no more room than what was fetched of it."""
    data = flipped(bench.seal([os.urandom(40 * S)]), 50)
    view, (item,) = refused(bench, GetSpec(bench.store("large.smp", data)))
    stat = file_of(bench, view.id).stat()
    assert stat.st_size == len(data)
    assert stat.st_blocks * 512 <= item.kept_bytes + 64 * 1024 < 30 * S
    bench.client.cancel(view.id)


def test_who_watches_is_told(bench: Bench) -> None:
    """An event says that an item came, and that it went; where the object lies is for those who may ask."""
    bench.works()  # there is a job, so the snapshot has a number
    since = next(event.seq for event in bench.client.watch() if event.seq)
    view, (item,) = refused(bench, GetSpec(bench.store("told.smp", b"no object")))
    bench.client.quarantine_remove(item.id)
    seen = []
    with Client(str(bench.box.socket)) as client:
        for event in client.watch(since, [view.id]):
            if event.kind == "quarantine":
                seen.append(msgspec.msgpack.decode(event.body, type=QuarantineChange))
                assert b"told.smp" not in bytes(event.body)
    assert seen == [QuarantineChange(item.id, view.id, "not_sealed", change) for change in ("add", "remove")]


def test_what_may_be_plaintext_is_not_kept(bench: Bench) -> None:
    """Of what does not end as a sealed object does there is a record, and nothing on the disk."""
    view, (item,) = refused(bench, GetSpec(bench.store("text.txt", b"a plain text\n" * 999)))
    assert (item.code, item.kept_bytes, item.whole) == ("not_sealed", 0, False)
    assert "plaintext" in item.left_out
    assert not bench.spool_of(view)
    bench.client.quarantine_remove(item.id)


def test_retry_once_the_sender_is_trusted(bench: Bench) -> None:
    """``quarantine retry`` takes the object, and it leaves the quarantine, which is recorded."""
    stranger = Identity.generate("stranger")
    place = bench.store("stranger.smp", bench.seal(by=stranger))
    view, (item,) = refused(bench, GetSpec(place))
    assert (item.code, item.sender) == ("untrusted_sender", stranger.public.key_id.hex())
    assert bench.client.quarantine_retry(item.id).state in ("queued", "running")
    assert bench.client.wait(view.id).state == "quarantined"  # still
    (again,) = bench.client.quarantine(view.id)
    assert (again.id, again.times, again.created) == (item.id, 2, item.created)
    bench.believe(stranger)
    text = bench.box.ctl("quarantine", "retry", item.id[:6]).stdout.decode()
    assert view.id in text
    done = bench.client.wait(view.id)
    assert done.state == "done", done.error
    assert not bench.client.quarantine(view.id)
    assert len(records(bench, view.id, "quarantine.retry")) == 2
    (removed,) = records(bench, view.id, "quarantine.remove")
    assert removed["outcome"] == "verified"
    assert done.result
    bench.client.vault_remove(done.result.vault_id)
    bench.client.trust_remove("stranger")


def test_resume_and_cancel_of_the_job_are_the_same(bench: Bench) -> None:
    """There is one truth: what is done to the job is done to what it refused, and recorded as such."""
    view, _ = refused(bench, GetSpec(bench.store("again.smp", flipped(bench.good, S))))
    bench.client.resume(view.id)
    assert bench.client.wait(view.id).state == "quarantined"
    (item,) = bench.client.quarantine(view.id)
    assert item.times == 2
    assert records(bench, view.id, "quarantine.retry")
    bench.client.cancel(view.id)
    assert not bench.client.quarantine(view.id)
    (removed,) = records(bench, view.id, "quarantine.remove")
    assert removed["outcome"] == "cancelled"
    with pytest.raises(SmpError, match="holds no item"):
        bench.client.quarantine_show(item.id)


def test_each_object_of_a_prefix_is_its_own_item(bench: Bench) -> None:
    """Small and large, with their own reasons; removing one leaves the others, the last one ends the job."""
    bad = {
        "small.smp": flipped(bench.seal([b"small"]), 45),
        "large.smp": flipped(bench.seal([os.urandom(3 * S)]), 2 * S + 9),
        "text.txt": b"plain",
        "theirs.smp": bench.seal([b"theirs"], by=Identity.generate("nobody")),
    }
    for name, data in {**bad, "good.smp": bench.seal([b"good"])}.items():
        bench.store(f"quarantined/{name}", data)
    view, items = refused(bench, GetSpec("disk:quarantined/"))
    found = {item.location.rpartition("/")[2]: item for item in items}
    assert {name: item.code for name, item in found.items()} == {
        "small.smp": "corrupt",
        "large.smp": "corrupt",
        "text.txt": "not_sealed",
        "theirs.smp": "untrusted_sender",
    }
    assert found["small.smp"].whole
    assert found["theirs.smp"].whole
    assert found["large.smp"].kept_bytes > S
    spool = {path.read_bytes() for path in (bench.box.state / "spool").glob(f"{view.id}.*")}
    assert {bad["small.smp"], bad["theirs.smp"]} <= spool
    assert len(spool) == 3
    done = bench.box.ctl("quarantine", "ls", "--json", "--job", view.id[:14]).stdout.splitlines()
    assert {json.loads(line)["id"] for line in done} == {item.id for item in items}
    assert view.id[:8] in bench.box.ctl("quarantine", "ls").stdout.decode()
    first, *others = items
    assert bench.box.json("quarantine", "rm", first.id, "--yes")["state"] == "quarantined"
    assert len(bench.client.quarantine(view.id)) == 3
    for name in bad:
        (bench.stored / "quarantined" / name).unlink()
    bench.client.quarantine_retry(others[0].id)
    ended = bench.client.wait(view.id)
    assert ended.state == "done", ended.error
    assert not bench.client.quarantine(view.id)
    assert not bench.spool_of(view) or not bench.spooled()
    for kept in bench.client.vault(view.id):
        bench.client.vault_remove(kept.id)


def test_a_streaming_remote_leaves_a_record_alone(bench: Bench) -> None:
    """Nothing of it touches a disk."""
    bench.box.ctl("remote", "add", "stream", f"file://{bench.stored}", "--mode", "streaming")
    bench.store("streamed.smp", flipped(bench.good, S + 5))
    view, (item,) = refused(bench, RunSpec("stream:streamed.smp", "digest"))
    assert (item.code, item.kept_bytes) == ("corrupt", 0)
    assert "disk" in item.left_out
    assert not bench.spool_of(view)
    bench.client.quarantine_remove(item.id)


def dated(bench: Bench, content: bytes, created: int, place: str = "") -> bytes:
    data = bytearray()
    writer = BundleWriter(data.extend, sender=bench.sender, recipients=[bench.public], created=created)
    writer.begin("a.bin", "", {"smp.place": place} if place else {})
    writer.write(content)
    writer.end()
    writer.finish()
    return bytes(data)


@pytest.mark.parametrize("size", [10, 3 * S])
@pytest.mark.parametrize("prefix", [False, True])
def test_an_older_version(bench: Bench, size: int, prefix: bool) -> None:
    """It is refused where a newer one was accepted; a person can have it taken, and then it is what counts."""
    now = int(time.time())
    folder = f"versions-{size}-{prefix}/"
    place = bench.store(f"{folder}a.smp", dated(bench, os.urandom(size), now))
    spec = GetSpec(f"disk:{folder}" if prefix else place)

    def taken(spec: GetSpec) -> None:
        view = bench.client.wait(bench.client.submit(spec).id)
        assert view.state == "done", view.error
        for kept in bench.client.vault(view.id):
            bench.client.vault_remove(kept.id)

    taken(spec)
    taken(spec)  # the same object again is no replay
    older = dated(bench, os.urandom(size), now - 100)
    bench.store(f"{folder}a.smp", older)
    view, (item,) = refused(bench, spec)
    assert item.code == "older_version"
    assert f"quarantine retry {item.id} --accept-older" in item.hint
    # Accepting is for the very object that was shown: another in its place is refused again.
    oldest = dated(bench, os.urandom(size), now - 200)
    bench.store(f"{folder}a.smp", oldest)
    bench.client.quarantine_retry(item.id, accept_older=True)
    assert bench.client.wait(view.id).state == "quarantined"
    bench.client.resume(view.id)  # the pin of a job of one object
    assert bench.client.wait(view.id).state == "quarantined"
    (again,) = bench.client.quarantine(view.id)
    assert again.code == "older_version"
    assert not again.accept_older
    bench.box.ctl("quarantine", "retry", again.id, "--accept-older")
    ended = bench.client.wait(view.id)
    assert ended.state == "done", ended.error
    for kept in bench.client.vault(view.id):
        bench.client.vault_remove(kept.id)
    bench.store(f"{folder}a.smp", older)  # newer than what counts now
    taken(spec)
    bench.store(f"{folder}a.smp", oldest)
    taken(GetSpec(spec.source, accept_older=True))


def test_what_an_older_job_took_does_not_count_as_newer(bench: Bench) -> None:
    """The place is remembered, and not the name alone: another object elsewhere is not held against it."""
    now = int(time.time())
    first, second = bench.store("v/1.smp", dated(bench, b"1", now)), bench.store("v/2.smp", dated(bench, b"2", now - 9))
    for place in (first, second, first):
        view = bench.client.wait(bench.client.submit(GetSpec(place)).id)
        assert view.state == "done", view.error
        assert view.result
        bench.client.vault_remove(view.result.vault_id)


def test_an_object_bound_to_a_place(bench: Bench) -> None:
    """Where its sender meant it to lie it is taken, elsewhere it is not, whatever a person accepts."""
    data = dated(bench, b"bound", int(time.time()), "bound/right.smp")
    view = bench.client.wait(bench.client.submit(GetSpec(bench.store("bound/right.smp", data))).id)
    assert view.state == "done", view.error
    assert view.result
    bench.client.vault_remove(view.result.vault_id)
    for name in ("right.smp", "unbound/right.smp", "bound/right.smp.bak"):
        view, (item,) = refused(bench, GetSpec(bench.store(name, data), accept_older=True))
        assert item.code == "misplaced"
        bench.client.cancel(view.id)


def test_what_is_tried_again_is_not_removed(bench: Bench) -> None:
    """While its job is at work an item can be shown; removing it, or trying it twice, is refused."""
    bad = flipped(bench.seal([os.urandom(4 * S)]), S + 9)
    with gated_s3({"a.smp": bad}) as (store, served):
        add_remote(bench.box, "gated-again", served)
        view, (item,) = refused(bench, GetSpec("gated-again:a.smp"))
        store.hold_after(0)
        bench.client.quarantine_retry(item.id)
        store.until_held(1)
        assert bench.client.quarantine_show(item.id).state == "running"
        for act in (bench.client.quarantine_remove, bench.client.quarantine_retry):
            with pytest.raises(StateError, match="being tried again"):
                act(item.id)
        store.release()
        assert bench.client.wait(view.id).state == "quarantined"
        (again,) = bench.client.quarantine(view.id)
        assert (again.id, again.times) == (item.id, 2)
        bench.client.quarantine_remove(item.id)
    bench.box.ctl("remote", "remove", "gated-again")


def test_a_person_sees_why(bench: Bench) -> None:
    """``show`` says all of it, ``rm`` asks first."""
    view, (item,) = refused(bench, GetSpec(bench.store("shown.smp", flipped(bench.good, S))))
    text = bench.box.ctl("quarantine", "show", item.id[:8]).stdout.decode()
    for part in (item.location, "corrupt", "segment", item.sender, "not verified", view.id):
        assert part in text
    status = bench.client.status()
    assert status.quarantine_items >= 1
    assert status.quarantine_bytes >= item.kept_bytes
    assert f"{status.quarantine_items} objects" in bench.box.ctl("status").stdout.decode()
    denied = bench.box.ctl("quarantine", "rm", item.id, check=False)
    assert denied.returncode == 2
    assert b"--yes" in denied.stderr
    bench.box.ctl("quarantine", "rm", item.id, "--yes")


@pytest.fixture
def own(tmp_path: Path) -> Any:
    """A box of its own, with room in its quarantine for one small object, and objects beside it."""
    machine = Box(tmp_path / "box", {"quarantine": {"max_bytes": 50_000}})
    try:
        machine.start()
        yield machine
    finally:
        machine.close()


def sealed(machine: Box, sender: Identity, content: bytes) -> bytes:
    with Client(str(machine.socket)) as client:
        public = PublicIdentity.parse(client.box_key().text)
    data = bytearray()
    writer = BundleWriter(data.extend, sender=sender, recipients=[public])
    writer.begin("a.bin")
    writer.write(content)
    writer.end()
    writer.finish()
    return bytes(data)


def test_a_full_quarantine_keeps_records_and_drops_nothing(own: Box, tmp_path: Path) -> None:
    """What comes beyond the limit has a record that says so; what is there stays, also over a restart."""
    sender = Identity.generate("clinic")
    (tmp_path / "store").mkdir()
    with Client(str(own.socket)) as client:
        client.trust_add("clinic", sender.public.text())
        own.ctl("remote", "add", "disk", f"file://{tmp_path / 'store'}")
        jobs = []
        for number in range(3):
            data = flipped(sealed(own, sender, os.urandom(30_000)), 99)
            (tmp_path / "store" / f"{number}.smp").write_bytes(data)
            jobs.append(client.wait(client.submit(GetSpec(f"disk:{number}.smp")).id).id)
        kept, *others = (client.quarantine(job)[0] for job in jobs)
        assert kept.whole
        assert kept.kept_bytes > 30_000
        assert all(not item.kept_bytes and "no room" in item.left_out for item in others)
    own.kill()
    own.start()
    with Client(str(own.socket)) as client:
        assert [client.quarantine(job)[0] for job in jobs] == [kept, *others]
        assert [path.name.partition(".")[0] for path in (own.state / "spool").iterdir()] == [kept.job]
        client.quarantine_remove(kept.id)
    # A job that was quarantined by an smpd that made no items, or that lost its last one to a crash.
    assert own.stop() == 0
    with contextlib.closing(sqlite3.connect(own.state / "smpd.db")) as db, db:
        db.execute("DELETE FROM quarantine WHERE job=?", (jobs[2],))
    own.start()
    with Client(str(own.socket)) as client:
        (made,) = client.quarantine(jobs[2])
        assert (made.code, made.location) == ("corrupt", "disk:2.smp")
        client.quarantine_retry(others[0].id)
        client.wait(jobs[1])
        assert client.quarantine(jobs[1])[0].whole
