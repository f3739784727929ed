"""Files handed over that lie on a disk which answers nothing: the daemon goes on for everybody."""

import array
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from box import Box
from hung_disk import FLUSH, GETATTR, READ, HungDisk, hung_disk
from scene import client, done

from smp_proto.aio import encode
from smp_proto.control import Hello, JobsRequest, LocalConfig, PutFile, PutSpec, Submit
from smp_proto.wire import FrameType, encode_frame


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Box]:
    """A box with a folder to put into."""
    made = Box(tmp_path / "box", {"compute": {"processors": []}})
    try:
        made.start()
        (tmp_path / "lake").mkdir()
        (tmp_path / "mine").write_bytes(b"mine")
        with client(made) as caller:
            caller.remote_add("lake", LocalConfig(str(tmp_path / "lake")))
        yield made
    finally:
        made.close()


@pytest.fixture
def disk(machine: Box, tmp_path: Path) -> Iterator[HungDisk]:
    """A disk that answers at first; it is gone before the box is, which waits for it even when it is killed."""
    with hung_disk(tmp_path / "disk") as made:
        yield made


def connection(machine: Box) -> socket.socket:
    """One on which HELLO was said."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(machine.socket))
    sock.sendall(encode_frame(FrameType.HELLO, 0, encode(Hello(1, 1, "test"))))
    assert sock.recv(1 << 16)
    return sock


def hand_over(sock: socket.socket, kind: FrameType, stream: int, body: object, fd: int) -> None:
    """Send a frame with a descriptor."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    sock.sendmsg([encode_frame(kind, stream, encode(body), 1)], rights)


def answered(disk: HungDisk, opcode: int) -> None:
    """Wait until smpd has asked for what is not answered."""
    assert disk.asked[opcode].acquire(timeout=30)


@pytest.mark.parametrize("hung", [GETATTR, READ, FLUSH])
def test_a_file_that_is_sealed(machine: Box, disk: HungDisk, hung: int) -> None:
    """It hangs when it is looked at, read, or closed: others are answered, and put files of their own."""
    with client(machine) as caller, connection(machine) as sock:
        key = caller.box_key().text
        disk.hung = (hung,)
        sock.sendall(encode_frame(FrameType.REQUEST, 1, encode(Submit(PutSpec("lake:x.smp", [key]), "k"))))
        hand_over(sock, FrameType.DATA, 1, PutFile("a", 5, last=True), disk.fd)
        answered(disk, hung)
        assert caller.status()
        with client(machine) as other:
            done(other.wait(other.put([machine.folder.parent / "mine"], "lake:mine.smp", [key]).id))


def test_what_no_request_takes(machine: Box, disk: HungDisk) -> None:
    """Closing it hangs: where it comes with a request, after the end of one, or with what is no message of a client."""
    with client(machine) as caller:
        disk.hung = (FLUSH,)
        for kind, stream, body in (
            (FrameType.REQUEST, 1, JobsRequest()),
            (FrameType.DATA, 7, PutFile("a", 5)),
            (FrameType.END, 1, b""),
        ):
            with connection(machine) as sock:
                hand_over(sock, kind, stream, body, disk.fd)
                answered(disk, FLUSH)
                assert caller.status()
