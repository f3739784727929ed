"""The sealed object, keys, and the audit log's format."""

import base64
from collections.abc import Callable
from typing import Any

Parse = Callable[[bytes], None]
SECRET = bytes(range(64))  # of the identity that the seeds were made for
CREDENTIAL = bytes(32)


def text_of(data: bytes) -> str:
    """Text as a command line or a file may bring it, lone surrogates included."""
    return data.decode("utf-8", "surrogateescape")


def trailer() -> Parse:
    """A trailer, with the object's length in the first eight bytes."""
    from smp_proto.sealed.layout import Layout, Trailer

    def parse(data: bytes) -> None:
        found = Trailer.parse(data[8:], int.from_bytes(data[:8], "big"))
        layout = Layout.from_payload_bytes(found.payload_bytes)
        last = layout.segments - 1
        assert layout.segment_span(last)[1] == found.payload_bytes
        assert layout.plain_span(last)[1] == layout.plain_bytes
        assert layout.span(range(layout.segments)) == (0, found.payload_bytes)

    return parse


def envelope() -> Parse:
    """An envelope without any key."""
    from smp_proto.sealed.envelope import Envelope

    def parse(data: bytes) -> None:
        found = Envelope.parse(data)
        assert 0 < len(found.recipients) <= 1024

    return parse


def opened_envelope() -> Parse:
    """An envelope whose signature is not looked at, so that what follows is: unwrapping, MAC, index."""
    from smp_proto.sealed.envelope import Envelope, open_envelope
    from smp_proto.sealed.keys import Identity
    from smp_proto.sealed.layout import Trailer

    identity = Identity(bytearray(SECRET))

    class Anybody:
        """A sender who is whoever the object says, and whose every signature holds."""

        key_id = b""

        def verify(self, _signature: bytes, _message: bytes) -> bool:
            return True

    sender: Any = Anybody()

    def parse(data: bytes) -> None:
        signed = Envelope.parse(data).signed
        sender.key_id = signed.sender
        opened = open_envelope(data, Trailer(signed.payload_bytes, len(data)), [identity], lambda _: sender)
        assert opened.entries
        opened.file_key.wipe()

    return parse


def index() -> Parse:
    """The index of an object, as it comes out of its seal."""
    from smp_proto.sealed.canonical import decode
    from smp_proto.sealed.entries import Entry, check_entries, guess_media_type

    def parse(data: bytes) -> None:
        entries = decode(tuple[Entry, ...], data)
        for entry in entries:
            guess_media_type(entry.name, data[:140])
        check_entries(entries, sum(entry.size for entry in entries))

    return parse


def payload() -> Parse:
    """A header and one short segment."""
    from smp_proto.sealed.layout import Layout
    from smp_proto.sealed.payload import PayloadOpener

    subkey = bytearray(SECRET[:32])

    def parse(data: bytes) -> None:
        segment = data[40:]
        layout = Layout(max(0, len(segment) - 16))
        out = bytearray(b"x" * (layout.plain_bytes + 1))
        try:
            PayloadOpener(subkey, data[:40], SECRET[:16], layout).open_segment(0, segment, out)
        except BaseException:
            assert not any(out[:-1]) or out.count(b"x") == len(out)  # zeroed, or never written
            raise

    return parse


def key_file() -> Parse:
    """A key file; with an odd first byte its text is made around the rest, so that base64 is no obstacle."""
    from smp_proto.sealed.keyfile import BEGIN, END
    from smp_proto.sealed.keys import Identity

    def parse(data: bytes) -> None:
        text = BEGIN + base64.encodebytes(data[1:]) + END if data[:1] and data[0] & 1 else data[1:]
        Identity.from_file(text, credential=bytearray(CREDENTIAL)).wipe()

    return parse


def public_key() -> Parse:
    """The text of a public key."""
    from smp_proto.sealed.keys import PublicIdentity

    def parse(data: bytes) -> None:
        found = PublicIdentity.parse(text_of(data))
        assert PublicIdentity.parse(found.text()) == found

    return parse


def checkpoint() -> Parse:
    """A signed note under a key of ours, its text as a checkpoint, and a file of notes."""
    from smp_proto.audit.note import Checkpoint, VerifierKey, iter_notes, open_note
    from smp_proto.sealed.keys import Identity

    identity = Identity(bytearray(SECRET))
    key = VerifierKey("smpd/x", identity.public.verify_key)

    def parse(data: bytes) -> None:
        assert b"".join(iter_notes(data.splitlines(keepends=True))) == data
        for note in iter_notes(data.splitlines(keepends=True)):
            if data[:1] != b"-":
                Checkpoint.parse(open_note(note, [key]))
        Checkpoint.parse(data[1:].decode(errors="replace"))

    return parse


def verifier_key() -> Parse:
    """The text of a verifier key."""
    from smp_proto.audit.note import VerifierKey

    def parse(data: bytes) -> None:
        found = VerifierKey.parse(text_of(data))
        assert VerifierKey.parse(str(found)) == found

    return parse


def audit_line() -> Parse:
    """A line of the audit log."""
    from smp_proto.audit.record import encode_line, parse_line

    def parse(data: bytes) -> None:
        assert encode_line(parse_line(data)) == data

    return parse
