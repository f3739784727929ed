"""One audit record and its one encoding.

Canonical JSON here is RFC 8785 (JCS) over a narrower set of values: all members present, keys in ASCII and
sorted, no space, UTF-8 with only the escapes that are needed, integers of at most 53 bits and a sign, neither
floats nor null. The leaf of the tree is that encoding; in a file it is followed by one newline. A line that
does not come out the same when decoded and encoded again is not a record.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from smp_proto.errors import UsageError

MAX_LINE_BYTES = 65_536
SEQ_MAX = 2**53 - 1

_SUBJECT = re.compile(r"\A([0-9a-f]{64})?\Z")
# Digits are named: those that \d means are of all scripts.
_TIME = (
    r"\A[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
    r"T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{6}Z\Z"
)
_BASE64 = r"\A(?:[A-Za-z0-9+/]{4})*+(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?\Z"
_Text = Annotated[str, Meta(max_length=256)]
_Whole = Annotated[int, Meta(ge=-(2**53) + 1, le=2**53 - 1)]
_FieldName = Annotated[str, Meta(pattern=r"\A[a-z][a-z0-9_]{0,31}\Z")]
FieldValue = str | int | bool


class AuditRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What happened, to what, by whom. No member may hold patient data in the clear.

    Args:
        seq: number of the record, from 0; also its leaf index.
        time: UTC, RFC 3339 with microseconds and ``Z``.
        event: what is about to be done, as ``object.open``.
        actor: who asked.
        job: id of the job, or empty.
        subject: pseudonym of the object (hex HMAC-SHA-256 of its name), or empty.
        outcome: how it went, for a record that follows an act; or empty.
        fields: up to 16 small facts.
        detail: base64 of a blob sealed under the subject's own key, or empty.
    """

    seq: Annotated[int, Meta(ge=0, le=SEQ_MAX)]
    time: Annotated[str, Meta(pattern=_TIME)]
    event: Annotated[str, Meta(pattern=r"\A[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+\Z", max_length=64)]
    actor: Annotated[str, Meta(min_length=1, max_length=256)]
    job: _Text
    subject: Annotated[str, Meta(pattern=_SUBJECT.pattern)]
    outcome: _Text
    fields: Annotated[dict[_FieldName, _Text | _Whole | bool], Meta(max_length=16)]
    detail: Annotated[str, Meta(pattern=_BASE64)]


_encoder = msgspec.json.Encoder(order="sorted")
_decoder = msgspec.json.Decoder(AuditRecord)


def format_time(seconds: float) -> str:
    """Seconds since the epoch as a record's time."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def encode_line(record: AuditRecord) -> bytes:
    """The record's line: canonical JSON and a newline.

    Raises:
        UsageError: ``bad_request``, when a member is not of its form or the line is too long.
    """
    try:
        line = _encoder.encode(record) + b"\n"
        parse_line(line)
    except ValueError as exc:
        raise UsageError(
            "bad_request",
            f"audit record {record.event!r} cannot be written: {exc}",
            hint="shorten or rename its fields; they are small facts in strings, integers and booleans",
        ) from exc
    return line


def encode_lines(first: AuditRecord, subjects: Sequence[str]) -> list[bytes]:
    """The lines of records that differ in their number, counted on from ``first``, and their subject.

    What they share is looked at once, and of each of the others what it does not share. Raises as :func:`encode_line`.
    """
    lines = [encode_line(msgspec.structs.replace(first, subject=subject)) for subject in subjects[:1]]
    for seq, subject in enumerate(subjects[1:], first.seq + 1):
        record = msgspec.structs.replace(first, seq=seq, subject=subject)
        line = _encoder.encode(record) + b"\n"
        if not _SUBJECT.fullmatch(subject) or seq > SEQ_MAX or len(line) > MAX_LINE_BYTES:
            line = encode_line(record)  # which says why
        lines.append(line)
    return lines


def parse_line(line: bytes) -> AuditRecord:
    """The record of a line, newline included.

    Raises:
        ValueError: the line is not the canonical encoding of a record.
    """
    if not line.endswith(b"\n") or len(line) > MAX_LINE_BYTES:
        raise ValueError("the line is incomplete or too long")
    record = _decoder.decode(line[:-1])
    if _encoder.encode(record) != line[:-1]:
        raise ValueError("the line is not in canonical form")
    return record
