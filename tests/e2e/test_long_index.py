"""Objects of so many entries that their index does not come along with their end: the first ranges come meanwhile."""

from collections.abc import Iterator

import pytest
from box import Box
from box import box as running
from scene import client, faults, read_digests, sha256, spool_empties

from smp_proto.control import JobView, LocalConfig, RunSpec
from smp_proto.sealed.bundle import BundleWriter
from smp_proto.sealed.keys import Identity, PublicIdentity
from smp_proto.sealed.layout import TRAILER_BYTES, Trailer
from smpctl import Client
from smpd.transfer.openers import LONG_INDEX_BYTES

COUNT = 6000
MIB = 1 << 20
TAIL_BYTES = 256 << 10  # what comes along


class Archive:
    """A box, a folder as its remote, and a sealed object in it whose index is long."""

    def __init__(self, machine: Box, caller: Client) -> None:
        self.box, self.client = machine, caller
        self.folder = machine.folder / "store"
        self.folder.mkdir()
        caller.remote_add("archive", LocalConfig(str(self.folder)), mode="streaming")
        me = self.sender = Identity.generate("scanner")
        caller.trust_add("scanner", me.public.text())
        self.contents = {f"series/{number:05}.dcm": b"%d" % number * 500 for number in range(COUNT)}
        data = bytearray()
        key = PublicIdentity.parse(caller.box_key().text)
        writer = BundleWriter(data.extend, sender=me, recipients=[key])
        for name, content in self.contents.items():
            writer.begin(name)
            writer.write(content)
            writer.end()
        writer.finish()
        self.good = bytes(data)
        self.trailer = Trailer.parse(self.good, len(self.good))

    def run(self, data: bytes) -> JobView:
        """Run the processor over an object, to its end."""
        (self.folder / "object.smp").write_bytes(data)
        return self.client.wait(self.client.submit(RunSpec("archive:object.smp", "digest")).id)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    config = {"fetch": {"slots": 4, "slot_bytes": MIB, "processes": 1}, "compute": {"processors": ["digest"]}}
    with running(tmp_path_factory.mktemp("archive") / "box", config) as machine:
        with client(machine) as caller:
            yield Archive(machine, caller)
        assert faults(machine) == []


def right(archive: Archive, view: JobView) -> None:
    assert view.error is None
    assert view.result
    out = archive.box.folder / f"out-{view.id}"
    archive.client.vault_open(view.result.vault_id, out)
    assert read_digests(out) == {name: sha256(content) for name, content in archive.contents.items()}


def test_every_byte_is_asked_for_once(archive):
    """And the processor has each entry as it was sealed."""
    assert archive.trailer.envelope_bytes > 2 * TAIL_BYTES
    assert archive.trailer.payload_bytes > 4 * MIB
    view = archive.run(archive.good)
    right(archive, view)
    assert view.transfer.fetched_bytes == archive.trailer.payload_bytes


def test_an_index_that_is_changed_is_refused(archive):
    """What came meanwhile is given up: nothing waits in a lane, and the next job is right."""
    changed = bytearray(archive.good)
    changed[-TRAILER_BYTES - TAIL_BYTES] ^= 1
    view = archive.run(bytes(changed))
    assert view.error
    assert view.error.code == "corrupt"
    assert [line.in_use for line in archive.client.status().loads] == [0]
    spool_empties(archive.box)
    right(archive, archive.run(archive.good))


def test_long_indexes_below_one_prefix_come_one_after_the_other(archive):
    """Each is let go of before the next is opened; the processor has the entries of all."""
    key = PublicIdentity.parse(archive.client.box_key().text)
    (archive.folder / "many").mkdir()
    for number in range(3):
        data = bytearray()
        writer = BundleWriter(data.extend, sender=archive.sender, recipients=[key])
        for each in range(75):
            writer.begin(f"{each}", "", {"a": "x" * 65_000})
            writer.end()
        writer.finish()
        assert Trailer.parse(bytes(data), len(data)).envelope_bytes > LONG_INDEX_BYTES
        (archive.folder / f"many/{number}.smp").write_bytes(data)
    view = archive.client.wait(archive.client.submit(RunSpec("archive:many/", "digest")).id)
    assert view.error is None
    assert view.result
    out = archive.box.folder / f"out-{view.id}"
    archive.client.vault_open(view.result.vault_id, out)
    for number in range(3):
        assert len(read_digests(out / f"{number}")) == 75
