"""The contestant that works without a daemon does all of the work: what is not as it was sealed does not pass."""

import os

import pytest

from benchmarks.objects import MIB, seal_object
from benchmarks.servers import own_server
from benchmarks.work_alone import work_alone
from smp_proto.errors import IntegrityError
from smp_proto.sealed.keys import Identity


@pytest.fixture
def asked(tmp_path):
    """An object of some segments on a server, and how it is asked for."""
    key, sender, reader = os.urandom(32), Identity.generate("sender"), Identity.generate("reader")
    (tmp_path / "bucket").mkdir()
    path = tmp_path / "bucket" / "object.smp"
    seal_object(path, 3 * MIB + 5, sender, reader.public)
    (tmp_path / "reader.key").write_bytes(reader.to_file(credential=bytearray(key)))
    with own_server(tmp_path) as port:
        yield {
            "url": f"http://127.0.0.1:{port}/bucket/object.smp",
            "size": path.stat().st_size,
            "key_file": str(tmp_path / "reader.key"),
            "key": key.hex(),
            "sender": sender.public.text(),
        }


def test_it_opens_what_was_sealed(asked):
    """An object that is whole raises nothing."""
    work_alone(**asked)


@pytest.mark.parametrize("at", [0, 100, 2 * MIB + 7, -40])
def test_a_flipped_bit(asked, tmp_path, at):
    """In the header, a segment or the end of the envelope."""
    path = tmp_path / "bucket" / "object.smp"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises((IntegrityError, RuntimeError)):
        work_alone(**asked)


def test_another_sender(asked):
    """Whose signature it does not have."""
    with pytest.raises(IntegrityError) as caught:
        work_alone(**asked | {"sender": Identity.generate("other").public.text()})
    assert caught.value.code == "untrusted_sender"
