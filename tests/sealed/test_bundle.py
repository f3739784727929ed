"""Whole objects, in and out."""

import hashlib
import os
import threading
import time
import tracemalloc
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sealed.forge import forge, identity, trusting
from sealed.helpers import extract, reader, seal

from smp_proto.errors import IntegrityError, StateError, UsageError
from smp_proto.sealed import bundle as room
from smp_proto.sealed.bundle import BundleReader, BundleWriter
from smp_proto.sealed.layout import SEGMENT_BYTES, Layout

S = SEGMENT_BYTES
ALICE, BOB, CAROL = identity("alice"), identity("bob"), identity("carol")
CONTENT = hashlib.shake_256(b"content").digest(2 * S + 100)
SIZES = st.sampled_from([0, 1, 7, S - 57, S - 56, S - 55, S - 16, S, 2 * S - 72, 2 * S - 71])


def writer(out: bytearray) -> BundleWriter:
    return BundleWriter(out.extend, sender=ALICE, recipients=[BOB.public], created=5)


@settings(max_examples=20)
@given(st.lists(SIZES, min_size=1, max_size=4), st.integers(1, 2 * S + 5))
def test_round_trip(sizes: list[int], chunk: int) -> None:
    """Entries of any size, empty ones anywhere, written in any chunks, come back; the info is right."""
    chunk = max(chunk, 5000)
    out = bytearray()
    sealing = writer(out)
    contents = {f"d/{i}": CONTENT[i : i + size] for i, size in enumerate(sizes)}
    for name, content in contents.items():
        sealing.begin(name, "x/y", {"n": 1, "f": 1.0, "l": [True, "s"]})
        for at in range(0, len(content), chunk):
            sealing.write(memoryview(content)[at : at + chunk])
        entry = sealing.end()
        assert (name, len(content)) == (entry.name, entry.size)
    info = sealing.finish()
    assert (len(out), Layout(sum(sizes)).payload_bytes, sum(sizes)) == (
        info.object_bytes,
        info.payload_bytes,
        info.plain_bytes,
    )
    assert contents == extract(bytes(out), [BOB], [ALICE])
    with reader(bytes(out), [BOB], [ALICE]) as opened:
        assert info.entries == opened.entries
        assert (5, info.object_id, info.content_digest) == (
            opened.signed.created,
            opened.signed.object_id,
            opened.signed.content_digest,
        )
        assert opened.sender == ALICE.public
        assert opened.entries[0].attributes == {"n": 1, "f": 1.0, "l": [True, "s"]}


def test_who_signs_may_be_named_late_and_is_not_kept() -> None:
    """Whoever is named when it finishes signs; without anybody it is refused, and afterwards the writer has no keys."""
    out = bytearray()
    late = BundleWriter(out.extend, sender=None, recipients=[BOB.public])
    late.begin("a")
    late.end()
    with pytest.raises(StateError, match="nobody was named"):
        late.finish()
    late.sender = CAROL
    late.finish()
    assert late.sender is None
    with reader(bytes(out), [BOB], [CAROL]) as opened:
        assert opened.sender == CAROL.public


@settings(max_examples=25)
@given(st.lists(st.one_of(st.none(), st.integers(0, 70_000)), min_size=1, max_size=60))
def test_what_there_is_room_for_is_not_written(sizes: list[int | None]) -> None:
    """None writes just as much as there is room for; the sink is called for what is beyond that, and not before."""
    me, written = identity("me"), 0

    def sink(view: memoryview) -> None:
        nonlocal written
        written += len(view)

    writer = BundleWriter(sink, sender=me, recipients=[me.public])
    writer.begin("a")
    for size in sizes:
        room, before = writer.room, written
        data = bytes(room if size is None else size)
        writer.write(data)
        assert (written > before) == (len(data) > room)
    writer.abort()


def test_writes_take_any_buffer() -> None:
    """Views of other item types count in bytes."""
    out = bytearray()
    sealing = writer(out)
    sealing.begin("a")
    sealing.write(memoryview(bytearray(range(16))).cast("I"))
    sealing.write(bytearray(b"x"))
    sealing.end()
    sealing.finish()
    assert extract(bytes(out), [BOB], [ALICE]) == {"a": bytes(range(16)) + b"x"}


def test_writing_leaves_no_copy() -> None:
    """What is put together to a segment goes into the writer's own buffer, which it wipes, and nowhere else."""
    sealing = writer(bytearray())
    sealing.begin("a")
    data = CONTENT[: S // 2]
    tracemalloc.start()
    sealing.write(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    sealing.abort()
    assert peak < S // 8


def test_selected_entries_and_progress() -> None:
    """The sink gets the wanted entries by offset, an empty one once; progress ends at the payload length."""
    data = seal([("a", CONTENT[:100]), ("empty", b""), ("b", CONTENT)], ALICE, [BOB])
    with reader(data, [BOB], [ALICE]) as opened:
        calls: list[tuple[str, int, int]] = []
        done: list[int] = []
        opened.extract(
            lambda e, at, view: calls.append((e.name, at, len(view))),
            entries={"b", "empty"},
            progress=done.append,
        )
        assert calls[0] == ("empty", 0, 0)
        assert {name for name, _, _ in calls} == {"b", "empty"}
        ends = [0, *(at + size for name, at, size in calls if name == "b")]
        assert [at for name, at, _ in calls if name == "b"] == ends[:-1]
        assert ends[-1] == len(CONTENT)
        assert (opened.signed.payload_bytes, sorted(done)) == (done[-1], done)
        with pytest.raises(UsageError):
            opened.extract(lambda e, at, view: None, entries={"nothing"})
        opened.verify()


def test_the_others_are_checked_as_well() -> None:
    """A wrong SHA-256 of an entry nobody asked for is found."""
    entries = [
        {"name": n, "offset": i, "size": 1, "sha256": d, "media_type": "", "attributes": {}}
        for i, (n, d) in enumerate([("a", hashlib.sha256(b"x").digest()), ("b", bytes(32))])
    ]
    data = forge(b"xy", entries, sender=ALICE, recipients=[BOB.public])
    with reader(data, [BOB], [ALICE]) as opened, pytest.raises(IntegrityError):
        opened.extract(lambda e, at, view: None, entries={"a"})


def test_the_sink_cannot_write_and_finds_nothing_later() -> None:
    """Views are read-only, and the plaintext is wiped once all is read."""
    data = seal([("a", b"secret")], ALICE, [BOB])
    kept: list[memoryview] = []
    with reader(data, [BOB], [ALICE]) as opened:
        opened.extract(lambda e, at, view: kept.append(view[:]))
    assert kept[0].readonly
    assert bytes(6) == bytes(kept[0])


def test_memory_is_constant() -> None:
    """Sealing and opening 24 MiB takes a few segments of memory, and each write is a segment at most."""
    out = bytearray(26 << 20)
    at = 0

    def write(view: memoryview) -> None:
        nonlocal at
        assert len(view) <= S
        out[at : at + len(view)] = view
        at += len(view)

    def read_into(offset: int, view: memoryview) -> None:
        view[:] = memoryview(out)[offset : offset + len(view)]

    tracemalloc.start()
    try:
        sealing = BundleWriter(write, sender=ALICE, recipients=[BOB.public])
        sealing.begin("a")
        for _ in range(24):
            sealing.write(bytes(S))
        sealing.end()
        info = sealing.finish()
        with BundleReader(read_into, info.object_bytes, identities=[BOB], trust=trusting(ALICE)) as opened:
            opened.verify()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * S


def test_the_thread_that_hashes_ends_with_the_writer() -> None:
    """Large pieces are hashed in a thread, which is gone when the bundle is finished, and when it failed midway."""

    def hashers() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.startswith("smp-sha256")]

    def full(view: memoryview) -> None:
        raise OSError("full")

    for write in (bytearray().extend, full):
        sealing = BundleWriter(write, sender=ALICE, recipients=[BOB.public])
        sealing.begin("a")
        sealing.write(CONTENT[: S - 100])
        (hasher,) = hashers()
        if write is full:
            with pytest.raises(OSError, match="full"):
                sealing.write(CONTENT)
        else:
            sealing.end()
            sealing.finish()
        hasher.join(10)
        assert hashers() == []


def test_order_of_calls() -> None:
    """A bundle is written as begin, write, end, finish; anything else is refused."""
    out = bytearray()
    sealing = writer(out)
    for call in (lambda: sealing.write(b""), sealing.end):
        with pytest.raises(StateError):
            call()
    sealing.begin("a")
    for call in (lambda: sealing.begin("b"), sealing.finish):
        with pytest.raises(StateError):
            call()
    sealing.end()
    sealing.finish()
    for call in (lambda: sealing.begin("b"), sealing.finish, lambda: sealing.write(b"")):
        with pytest.raises(StateError):
            call()
    sealing.abort()
    assert extract(bytes(out), [BOB], [ALICE]) == {"a": b""}


@pytest.mark.parametrize("name", ["../a", "A", "a/b", ""])
def test_names_are_refused_at_once(name: str) -> None:
    """A bad or clashing name is refused when its entry begins, not after hours of writing."""
    sealing = writer(bytearray())
    sealing.begin("a")
    sealing.end()
    with pytest.raises(UsageError) as caught:
        sealing.begin(name)
    assert caught.value.code == "bad_name"


def test_other_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """No entry, a media type or attribute that no reader takes, an index that grows too large."""
    with pytest.raises(UsageError):
        writer(bytearray()).finish()
    sealing = writer(bytearray())
    for number, (media_type, attributes) in enumerate(
        [
            ("", {"n": 1 << 70}),
            ("", {"n": None}),
            ("", {"n": [[1]]}),
            ("", {1: 1}),
            ("a\n", {}),
            ("é", {}),
            ("", {"n": "x" * 65_536}),
        ]
    ):
        with pytest.raises(UsageError) as caught:
            sealing.begin(str(number), media_type, attributes)  # type: ignore[arg-type]
        assert caught.value.code == "bad_request"
    monkeypatch.setattr(room, "VALUES_MAX", 3)
    sealing.begin("few", "", {"n": [1, 2]})
    sealing.end()
    with pytest.raises(UsageError, match="at most 3 values"):
        sealing.begin("more", "", {"n": 1})
    monkeypatch.setattr(room, "_INDEX_MAX_BYTES", 10)
    with pytest.raises(UsageError):
        writer(bytearray()).begin("a")


@pytest.mark.parametrize("fail_at", [1, 2, 3, 4])
def test_a_failed_write_wipes(fail_at: int) -> None:
    """When the destination fails, the key and the plaintext are wiped and the writer is done."""
    calls = 0

    def write(view: memoryview) -> None:
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise OSError("disk full")

    sealing = BundleWriter(write, sender=ALICE, recipients=[BOB.public])
    key, plain = sealing._file_key.material, sealing._plain

    def run() -> None:
        sealing.begin("a")
        sealing.write(b"\xaa" * (S + 1))
        sealing.end()
        sealing.finish()

    with pytest.raises(OSError, match="disk full"):
        run()
    assert not any(key)
    assert not any(plain[:])
    with pytest.raises(StateError):
        sealing.begin("b")


def test_closing_wipes_the_key() -> None:
    """After the context, the file key is zero."""
    with reader(seal([("a", b"x")], ALICE, [BOB]), [BOB], [ALICE]) as opened:
        key = opened._opened.file_key.material
    assert not any(key)


def test_a_signal_while_another_thread_hashes_is_what_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that a buffer cannot be let go of, which is so until the other thread is done with it."""
    writer = BundleWriter(lambda _: None, sender=None, recipients=[])
    writer.begin("a")
    out, into = os.pipe()
    begun, real, calls = threading.Event(), Future.result, 0

    def result(self: Future[Any], timeout: float | None = None) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            assert begun.wait(10)
            time.sleep(0.05)
            raise KeyboardInterrupt
        os.write(into, b"x")
        return real(self, timeout)

    class Slow:
        def update(self, data: memoryview) -> None:
            begun.set()
            os.readv(out, [data])  # which holds the buffer, as hashlib does

    monkeypatch.setattr(Future, "result", result)
    writer._sha256 = Slow()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        writer.write(bytearray(1 << 20))
    os.close(into)
    os.close(out)
    writer.abort()
