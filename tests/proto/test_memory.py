"""Secrets in Python's immutable objects are overwritten where they lie."""

import subprocess
import sys

import pytest
from torture.memory import find

from smp_proto.aio import Channel
from smp_proto.channel import encode
from smp_proto.memory import take, wipe_bytes, wipe_text
from smp_proto.wire import FrameType, encode_frame


@pytest.mark.parametrize("length", [2, 15, 400])
def test_overwriting(length: int) -> None:
    """Text and bytes are zero afterwards; what was taken is what they held."""
    text, data = "".join(["s"] * length), bytes([7]) * length
    wipe_text(text)
    assert text == "\0" * length
    assert take(data) == bytes([7]) * length
    assert data == bytes(length)


def test_what_is_shared_stays() -> None:
    """Objects of one byte or none are those of the whole interpreter; text that is not ASCII is left alone."""
    for text in ("", "a", "\u00e9\u00e8"):
        wipe_text(text)
    for data in (b"", b"a"):
        wipe_bytes(data)
    assert ("".join(["", "a"]), bytes([97]), "\u00e9\u00e8"[0]) == ("a", b"a", "\u00e9")


async def test_a_secret_message_is_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer gets it whole; the body and the frame are zero when it was sent, and only if they are to be."""
    import socket

    from smp_proto import channel

    frames: list[bytes] = []
    make = channel.encode_frame

    def keeping(*arguments: object) -> bytes:
        frames.append(make(*arguments))  # type: ignore[arg-type]
        return frames[-1]

    monkeypatch.setattr(channel, "encode_frame", keeping)
    near, far = (Channel(each) for each in socket.socketpair())
    for secret in (True, False):
        body = encode({"secret": "hunter2"})
        await near.send(FrameType.DATA, 1, body, secret=secret)
        frame, _ = await far.receive()
        assert frame.body == encode({"secret": "hunter2"})
        assert (b"hunter2" in body, b"hunter2" in frames.pop()) == (not secret, not secret)
    near.close()
    far.close()


def test_smpctl_leaves_no_core(tmp_path) -> None:
    """Once it has read a secret it is not dumpable."""
    (tmp_path / "secret").write_text("hush")
    code = """
import ctypes, resource, sys
from smpctl.session import secret_bytes
dumpable = ctypes.CDLL(None).prctl
print(dumpable(3), bytes(secret_bytes(sys.argv[1], "passphrase")), dumpable(3), resource.getrlimit(resource.RLIMIT_CORE))
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "secret"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1 b'hush' 0 (0, 0)"


@pytest.mark.parametrize("text", ["key", sys.intern("".join(["pass", "word1"]))])
def test_what_the_interpreter_shares_is_left_alone(text):
    """A secret that reads like a name of the program would take that name away from everybody."""
    before = text.encode().decode()
    wipe_text(text)
    assert text == before
    assert dict(key=1) == {"".join(["k", "ey"]): 1}  # noqa: C408 - the name is what is looked at


class _Given:
    """A socket that gives one piece."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def setblocking(self, _: bool) -> None:
        """Nothing waits."""

    def setsockopt(self, *_: int) -> None:
        """Nothing is urgent."""

    def recvmsg(self, *_: int) -> tuple[bytes, list[object], int, None]:
        return self.data, [], 0, None


@pytest.mark.anyio
async def test_what_was_received_is_overwritten():
    """A request may hold a secret: what the socket gave does not keep it."""
    given = _Given(encode_frame(FrameType.REQUEST, 1, b"the secret of a remote"))
    channel = Channel(given)
    frame, _ = await channel.receive()
    assert frame.body == b"the secret of a remote"
    assert given.data == bytes(len(given.data))


# The secret is one text; what is printed is masked, so that it is nowhere else.
ENCODING = """
import os, sys
import msgspec
from smp_proto.memory import wipe_bytes
from smp_proto.wire import encode_secret

secret = os.urandom(20).hex()
message = {"kind": "s3", "endpoint": "http://127.0.0.1:9000", "secret": secret, "rest": ["x" * 40] * 40}
body = encode_secret(message)
assert len(msgspec.msgpack.decode(body, type=dict[str, msgspec.Raw])) == len(message)
wipe_bytes(body)
print(bytes(ord(each) ^ 0x5A for each in secret).hex(), flush=True)
sys.stdin.read()
"""


def test_a_secret_message_leaves_no_copy() -> None:
    """Its encoder's buffer does not grow: one that does leaves the secret behind in each that it gave up."""
    command = [sys.executable, "-c", ENCODING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        secret = bytes(each ^ 0x5A for each in bytes.fromhex(child.stdout.readline()))
        assert len(find(child.pid, {"secret": secret})["secret"]) == 1
