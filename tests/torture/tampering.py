"""Sealed objects that were tampered with, and everything here that opens one: by range, as a whole, with smpctl's reader.

What must hold for each: it is refused with an IntegrityError, nothing of a bad segment gets out, and where its plaintext
would have been, in the plain ring, there are zeros.
"""

import contextlib
import hashlib
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec
from box import Box
from cryptography.exceptions import InvalidTag
from sealed.forge import identity, trusting
from sealed.helpers import reads

from smp_proto.control import GetSpec, LocalConfig, QuarantineItem
from smp_proto.errors import IntegrityError
from smp_proto.sealed import payload
from smp_proto.sealed.bundle import BundleReader
from smp_proto.sealed.entries import Entry
from smp_proto.sealed.envelope import Wire, open_envelope, seal_envelope
from smp_proto.sealed.filekey import FileKey
from smp_proto.sealed.keys import Identity, PublicIdentity
from smp_proto.sealed.layout import HEADER_BYTES, SEGMENT_BYTES, TRAILER_BYTES, Layout, Trailer
from smpctl import Client
from smpd.host.folders import ensure_dir
from smpd.links.ring import Ring
from smpd.opening.ranges import Opener, from_ring, open_whole
from smpd.transfer.cutting import Cutting
from smpd.vault import keys as box_keys
from torture.harness import Trial

S = SEGMENT_BYTES
SLOT_BYTES = 2 * S
UNTOUCHED = b"\xa5"
_UNTOUCHED_SLOT = UNTOUCHED * SLOT_BYTES
SENDER, BOX, OTHER = identity("torture sender"), identity("torture box"), identity("torture other")


def untouched(data: bytes) -> bool:
    """Whether nothing was written there."""
    return data.count(UNTOUCHED) == len(data)


class Keys(NamedTuple):
    """What makes the segments of two objects interchangeable for their tags."""

    file_key: bytes
    object_id: bytes
    header: bytes


def new_keys(rng: random.Random) -> Keys:
    """Keys of one object."""
    header = bytes([HEADER_BYTES]) + rng.randbytes(HEADER_BYTES - 1)
    return Keys(rng.randbytes(32), rng.randbytes(16), header)


def sealed(
    plain: bytes,
    keys: Keys,
    *,
    sender: Identity = SENDER,
    recipients: Sequence[PublicIdentity] = (BOX.public, OTHER.public),
    created: int = 1_790_000_000,
) -> bytes:
    """An object of two entries, under keys of our choice."""
    half = len(plain) // 3
    parts = [("Doe^Jane/1.dcm", 0, plain[:half]), ("Doe^Jane/2.dcm", half, plain[half:])]
    entries = [Entry(name, at, len(data), hashlib.sha256(data).digest()) for name, at, data in parts]
    layout = Layout(len(plain))
    file_key = FileKey(bytearray(keys.file_key))
    sealer = payload.PayloadSealer(file_key.payload_key(), keys.object_id)
    sealer.header = keys.header
    sealer._cipher = payload._cipher(file_key.payload_key(), keys.header, keys.object_id)
    made, out, leaves = bytearray(keys.header), bytearray(S), []
    for k in range(layout.segments):
        start, end = layout.plain_span(k)
        made += out[: sealer.seal_segment(k, plain[start:end], out, last=k == layout.segments - 1)]
        leaves.append(payload.leaf(made[slice(*layout.leaf_span(k))]))
    envelope = seal_envelope(
        file_key=file_key,
        object_id=keys.object_id,
        header=keys.header,
        layout=layout,
        leaves_digest=payload.content_digest(leaves),
        entries=entries,
        sender=sender,
        recipients=recipients,
        created=created,
    )
    return bytes(made) + envelope + Trailer(len(made), len(envelope)).pack()


def parts(data: bytes) -> tuple[list[bytes], bytes, bytes]:
    """The segments of an object (the header is with the first), its envelope, its trailer."""
    trailer = Trailer.parse(data[-TRAILER_BYTES:], len(data))
    end = trailer.payload_bytes
    return [data[at : min(at + S, end)] for at in range(0, end, S)], data[end:-TRAILER_BYTES], data[-TRAILER_BYTES:]


def wire_of(data: bytes) -> Wire:
    """Its envelope, decoded."""
    return msgspec.msgpack.decode(parts(data)[1], type=Wire)


class Readers:
    """The ways in which a sealed object is opened, over rings like those of a daemon."""

    def __init__(self, plain: bytes) -> None:
        self.plain = plain
        self._slots = -(-len(plain) // SLOT_BYTES) + 1
        self._cipher = Ring.create("torture-cipher", 1, 2 * self._slots * SLOT_BYTES)
        self._plain = Ring.create("torture-plain", self._slots, SLOT_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._cipher.close()
        self._plain.close()

    def refuse(self, data: bytes, bad: int | None = None) -> str:
        """See that each refuses it, and what is left behind; returns the code.

        Args:
            bad: the segment that was touched, where it was one of the payload's and no other.
        """
        with self._cipher.slot(0) as slot:
            slot[: len(data)] = data
        codes = {self._by_range(data, bad), self._whole(data), self._reader(data, bad)}
        assert len(codes) == 1, f"they differ: {codes}"
        return codes.pop()

    def _by_range(self, data: bytes, bad: int | None) -> str:
        """As the pipeline opens it: the envelope, then range after range out of one ring into another."""
        self._fill()
        opener: Opener | None = None
        opened = 0
        try:
            trailer = Trailer.parse(data[-TRAILER_BYTES:], len(data))
            envelope = data[trailer.payload_bytes : -TRAILER_BYTES]
            opener = Opener(open_envelope(envelope, trailer, [BOX], trusting(SENDER)))
            leaves = b""
            for index, segments in enumerate(Cutting(opener.layout, SLOT_BYTES, lambda: SLOT_BYTES).all()):
                read = from_ring(self._cipher, 0, opener.layout.span(segments)[0])
                with self._plain.slot(index) as slot:
                    leaves += opener.open(segments, read, slot, None)
                opened += 1
            opener.check_content(leaves)
        except IntegrityError as error:
            self._look(opener, opened, bad)
            return error.code
        finally:
            if opener is not None:
                opener.envelope.file_key.wipe()
        raise AssertionError("it was opened range by range")

    def _look(self, opener: Opener | None, opened: int, bad: int | None) -> None:
        """What is in the plain ring after a refusal."""
        ring = [os.pread(self._plain.fd, SLOT_BYTES, index * SLOT_BYTES) for index in range(self._slots)]
        if opener is None:
            assert all(map(untouched, ring)), "something was opened although the envelope is bad"
            return
        if bad is None:
            return
        failed = range(opened * SLOT_BYTES // S, min((opened + 1) * SLOT_BYTES // S, opener.layout.segments))
        assert bad in failed, f"range {opened} failed, the bad segment is {bad}"
        first = opener.layout.plain_span(failed[0])[0]
        start, end = opener.layout.plain_span(bad)
        slot = ring[opened]
        assert slot[: start - first] == self.plain[first:start]
        assert slot[start - first : end - first] == bytes(end - start), (
            "the slot is not zero where the bad segment was opened"
        )
        assert untouched(slot[end - first :]), "something was opened after the bad segment"
        assert all(map(untouched, ring[opened + 1 :]))

    def _whole(self, data: bytes) -> str:
        """As objects of a prefix are opened: all of it at once."""
        self._fill()
        read = from_ring(self._cipher, 0)
        with contextlib.ExitStack() as stack:
            into = memoryview(bytearray(UNTOUCHED * (len(self.plain) + 9)))
            stack.callback(into.release)
            try:
                open_whole(read, len(data), [BOX], trusting(SENDER), into, None)
            except IntegrityError as error:
                left = into.tobytes()
                assert left.count(0) + left.count(UNTOUCHED) == len(left), "plaintext of an object that was refused"
                return error.code
        raise AssertionError("it was opened as a whole")

    def _reader(self, data: bytes, bad: int | None) -> str:
        """As smpctl opens a file."""
        got = bytearray()
        try:
            with BundleReader(reads(data), len(data), identities=[BOX], trust=trusting(SENDER)) as reader:
                reader.extract(lambda entry, offset, view: got.extend(view))
        except IntegrityError as error:
            if bad is not None:
                assert bytes(got) == self.plain[: Layout(len(self.plain)).plain_span(bad)[0]], (
                    "more got out than was good"
                )
            return error.code
        raise AssertionError("smpctl's reader took it")

    def accept(self, data: bytes) -> None:
        """See that what was not touched is taken: else it would be refused for another reason."""
        with BundleReader(reads(data), len(data), identities=[BOX], trust=trusting(SENDER)) as reader:
            reader.verify()

    def _fill(self) -> None:
        for index in range(self._slots):
            with self._plain.slot(index) as slot:
                slot[:] = _UNTOUCHED_SLOT


class Sample:
    """Tampered objects for a real daemon: one job over all of them, which must refuse each with the same reason."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._objects: dict[str, tuple[Trial, str]] = {}
        (folder / "store").mkdir(parents=True)

    def add(self, trial: Trial, data: bytes, code: str) -> None:
        """Have one judged at the end."""
        name = f"{trial.number:06}.smp"
        (self._folder / "store" / name).write_bytes(data)
        self._objects[f"disk:{name}"] = (trial, code)

    def judge(self) -> int:
        """Start a daemon with the identity of the box, and have it get them all; returns how many there were."""
        if not self._objects:
            return 0
        with self._daemon() as client:
            view = client.wait(client.submit(GetSpec("disk:")).id)
            items = {item.location: item for item in client.quarantine(view.id)}
            events = self._records(client, view.id)
            for location, (trial, code) in self._objects.items():
                with trial:
                    self._one(items.get(location), code, view.state)
                    assert not client.vault(view.id), "something got into the vault"
                    assert events["quarantine.add"] == len(self._objects)
            client.cancel(view.id)
            assert not client.quarantine()
        return len(self._objects)

    @staticmethod
    def _one(item: QuarantineItem | None, code: str, state: str) -> None:
        assert state == "quarantined"
        assert item is not None, "it is not in quarantine"
        assert item.code == code, f"{item.code} for {code}: {item.message}"
        assert item.message
        assert item.kept_bytes or item.left_out

    @staticmethod
    def _records(client: Client, job: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for line in client.audit_lines():
            record = msgspec.json.decode(line)
            if record["job"] == job:
                found[record["event"]] = found.get(record["event"], 0) + 1
        return found

    @contextlib.contextmanager
    def _daemon(self) -> Iterator[Client]:
        machine = Box(self._folder / "box", {"fetch": {"slots": 2, "slot_bytes": SLOT_BYTES}})
        install(machine, BOX)
        try:
            machine.start()
            with Client(str(machine.socket)) as client:
                client.trust_add("sender", SENDER.public.text())
                client.remote_add("disk", LocalConfig(str(self._folder / "store")))
                yield client
        finally:
            machine.close()


def install(machine: Box, who: Identity) -> None:
    """Give a box that never ran an identity that we know."""
    folder = str(machine.state / "keys")
    ensure_dir(str(machine.state))
    ensure_dir(folder)
    secret = box_keys.random_secret(32)
    state_key = box_keys.wrap_state(who, box_keys.random_secret(32))
    box_keys.write_file(folder, box_keys.CREDENTIAL, bytes(secret))
    box_keys.write_file(folder, box_keys.STATE_KEY, state_key)
    box_keys.write_file(folder, box_keys.IDENTITY, who.to_file(credential=secret))


def flipped(data: bytes, at: int, rng: random.Random) -> bytes:
    """With one bit of byte ``at`` flipped."""
    changed = bytearray(data)
    changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


def opened_anyway(opener: Any, k: int, ciphertext: Any, out: Any) -> int:
    """A fault: what does not open is handed on as it was left."""
    start, end = opener._layout.segment_span(k)
    length = end - start - 16
    with contextlib.suppress(InvalidTag):
        nonce = payload._nonce(opener._header, k, k == opener._layout.segments - 1)
        opener._cipher.decrypt_into(nonce, ciphertext, None, memoryview(out)[:length])
    return length


def not_zeroed(opener: Any, k: int, ciphertext: Any, out: Any) -> int:
    """A fault: it is refused, and left in the buffer."""
    start, end = opener._layout.segment_span(k)
    try:
        nonce = payload._nonce(opener._header, k, k == opener._layout.segments - 1)
        return opener._cipher.decrypt_into(nonce, ciphertext, None, memoryview(out)[: end - start - 16])
    except InvalidTag:
        raise IntegrityError("corrupt", "left in the buffer", details={"segment": k}) from None
