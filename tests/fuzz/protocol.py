"""The control protocol and the links to the workers."""

from collections.abc import Callable
from typing import Any

Parse = Callable[[bytes], None]


def frame() -> Parse:
    """Frames in pieces: the first byte says how long each piece is. What is kept stays below one frame."""
    from smp_proto import wire

    most = wire.HEADER_BYTES + wire.BODY_MAX_BYTES

    def parse(data: bytes) -> None:
        decoder = wire.FrameDecoder()
        step = 1 + (data[0] if data else 0)
        for start in range(1, len(data), step):
            decoder.feed(data[start : start + step])
            for each in decoder.frames():
                again = wire.FrameDecoder()
                again.feed(wire.encode_frame(*each))
                assert list(again.frames()) == [each]
            assert len(decoder._buffer) < most

    return parse


def request() -> Parse:
    """A request of a client, and what is asked of it before its verb runs."""
    from smp_proto.channel import decode, encode
    from smp_proto.control import AnyRequest
    from smp_proto.errors import DeniedError
    from smpd.control.permissions import NEEDS, NOTHING, check

    kind: Any = AnyRequest

    def parse(data: bytes) -> None:
        asked = decode(data, kind)
        assert decode(encode(asked), kind) == asked or b"\xff" in data  # a NaN is not equal to itself
        if type(asked) in NEEDS:
            needs = list(NEEDS[type(asked)](asked))
            try:
                check(NOTHING, "somebody(1)", needs)
            except DeniedError:
                return
            assert not needs

    return parse


def _any_of(kinds: list[Any]) -> Parse:
    """One of several messages: the first byte says which."""
    from smp_proto.channel import decode

    def parse(data: bytes) -> None:
        decode(data[1:], kinds[data[0] % len(kinds)] if data else kinds[0])

    return parse


def reply() -> Parse:
    """What a daemon answers with, or a client sends as DATA."""
    from smp_proto import control as c
    from smp_proto.aio import End

    return _any_of(
        [
            End, c.Hello, c.Status, c.Doctor, c.JobView, c.Jobs, c.Event, c.Remotes, c.RemoteTested, c.Objects, c.Vault,
            c.Entries, c.Processors, c.Trusted, c.PublicKey, c.AuditLines, c.AuditProof, c.PutFile, c.OpenInto, c.Sealing,
        ]
    )  # fmt: skip


def fetch_link() -> Parse:
    """Both directions of the link to a fetch process."""
    from smp_proto import control as c
    from smpd.links import fetching as f

    return _any_of([f.AnyRequest, f.Walls, f.Listed, f.More, f.ManyRead, f.Progress, f.Probed, c.ObjectInfo])


def compute_link() -> Parse:
    """Both directions of the link to a compute process."""
    from smpd.links import computing as k

    return _any_of([k.AnyRequest, k.AnyToCompute, k.AnyFromCompute, k.Ready, k.Done])


def opening_link() -> Parse:
    """Both directions of the link to an opening process."""
    from smpd.opening import link

    return _any_of([link.AnyRequest, link.Walls, link.Opened])
