"""Decoding message bodies: whatever comes in, a message or a DaemonError comes out."""

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smp_proto import control as c
from smp_proto.aio import End, decode, encode
from smp_proto.errors import CODES, DaemonError, ErrorBody, SmpError

KINDS = [*get_args(c.AnyRequest), c.Hello, c.Event, c.JobView, c.PutFile, c.OpenInto, End, ErrorBody]
TEXT = st.text("aé/\0\U0001f600", max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | TEXT | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
TAGS = st.sampled_from([kind.__struct_config__.tag for kind in get_args(c.AnyRequest)])
FIELDS = sorted({name for kind in KINDS for name in kind.__struct_fields__})


def attempt(body: bytes, kind: Any) -> None:
    try:
        decode(body, kind)
    except DaemonError as error:
        assert error.code == "protocol"


@given(st.binary(max_size=200))
def test_random_bytes(body):
    """Random bytes never raise anything but `protocol`."""
    for kind in (c.AnyRequest, *KINDS):
        attempt(body, kind)


@given(TAGS, st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6))
def test_random_fields(tag, fields):
    """Right tags with any values in any fields never raise anything but `protocol`."""
    attempt(msgspec.msgpack.encode({"op": tag, **fields}), c.AnyRequest)


@given(st.sampled_from(KINDS), VALUES)
def test_random_values(kind, value):
    """Any well-formed value never raises anything but `protocol`."""
    attempt(msgspec.msgpack.encode(value), kind)


@pytest.mark.parametrize("unit", [b"\x91", b"\x81\xa1a", b"\x81\xa6params", b"\xdd\0\0\0\1"])
@pytest.mark.parametrize("kind", [c.AnyRequest, c.Hello, c.Event, msgspec.Raw, Any])
def test_deep_nesting(unit, kind):
    """A hundred thousand levels are refused, not a crash."""
    with pytest.raises(DaemonError):
        decode(unit * 100_000 + b"\xc0", kind)


def test_deep_nesting_inside_an_open_field():
    """Depth hidden in a field that takes anything is refused, too."""
    head = msgspec.msgpack.encode({"op": "submit", "key": "k"})
    spec = b"\x84\xa4kind\xa3run\xa6source\xa1a\xa9processor\xa1p\xa6params" + b"\x81\xa1a" * 50_000 + b"\xc0"
    with pytest.raises(DaemonError):
        decode(bytes([head[0] + 1]) + head[1:] + b"\xa3job" + spec, c.AnyRequest)


@pytest.mark.parametrize(
    "body", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xa3\xff\xff\xff"]
)
def test_lengths_that_lie(body):
    """A length beyond the data, and text that is no UTF-8, are refused without allocating for them."""
    for kind in (Any, c.AnyRequest, list[int], str):
        with pytest.raises(DaemonError):
            decode(body, kind)


def test_new_fields_are_passed_over():
    """A field that this version does not know is no error: the protocol grows that way."""
    body = msgspec.msgpack.encode({"protocol_min": 1, "protocol_max": 2, "version": "9", "mood": "good"})
    assert decode(body, c.Hello) == c.Hello(1, 2, "9")


def test_events_of_a_newer_daemon():
    """An event of a kind unknown here is decoded with its body left alone."""
    body = encode({"seq": 1, "kind": "of-the-future", "body": {"x": 1}})
    assert msgspec.msgpack.decode(decode(body, c.Event).body) == {"x": 1}


def test_secrets_have_no_repr():
    """The repr of a request shows no secret of a remote."""
    s3, sftp = c.S3Secret("AKIA", "hunter2"), c.SftpSecret(private_key="hunter2", password="hunter2")
    for secret in (s3, sftp):
        request = c.RemoteAdd("r", c.LocalConfig("/"), secret=secret)
        assert "hunter2" not in repr(request) + repr([secret])
        assert "AKIA" not in repr(request)


@pytest.mark.parametrize("code", CODES)
def test_errors_travel(code):
    """Each error arrives as its own family with all it carried."""
    sent = CODES[code].family(code, "what", hint="do", details={"a": 1})
    got = SmpError.from_body(decode(encode(sent.body()), ErrorBody))
    assert type(got) is CODES[code].family
    assert (got.code, got.message, got.hint, got.retryable, got.details) == (
        code,
        "what",
        "do",
        sent.retryable,
        {"a": 1},
    )


def test_a_code_of_a_newer_peer_is_kept():
    """An unknown code becomes the base class and keeps its text."""
    error = SmpError.from_body(ErrorBody("on-fire", "it burns", retryable=True))
    assert type(error) is SmpError
    assert (error.code, error.retryable) == ("on-fire", True)
