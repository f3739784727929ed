"""Pins: what must not change of an object while a job reads it. Opaque to everyone else."""

import re

from smp_proto.errors import RemoteError, UsageError

_ETAG = re.compile(r'[\x21\x23-\x7e]{1,250}|W/"[\x21\x23-\x7e]{1,250}"', re.ASCII)


def stat_pin(size: int, mtime_ns: int) -> str:
    """The pin of an object known by size and time only."""
    return f"stat:{size}:{mtime_ns}"


def bare_etag(etag: str) -> str:
    """A strong entity tag without its quotes, which some servers leave out in listings; a weak one as it is."""
    return etag[1:-1] if len(etag) > 2 and etag[0] == etag[-1] == '"' else etag


def etag_pin(size: int, etag: str) -> str:
    """The pin of an object of a bucket, ``etag:SIZE:ETAG``: the size so that a range's answer tells it all.

    Raises:
        RemoteError: ``remote_failed`` for an ETag that is missing or none.
    """
    etag = bare_etag(etag)
    if not _ETAG.fullmatch(etag):
        raise RemoteError(
            "remote_failed",
            "the server gives objects no ETag, so a change would go unseen",
            hint="use a server that does, or SFTP",
            retryable=False,
        )
    return f"etag:{size}:{etag}"


def parse_pin(pin: str) -> tuple[int, str]:
    """Size and ETag of a pin.

    Raises:
        UsageError: ``bad_request``.
    """
    kind, _, rest = pin.partition(":")
    size, _, etag = rest.partition(":")
    if kind != "etag" or not re.fullmatch(r"\d{1,19}", size, re.ASCII) or not _ETAG.fullmatch(etag):
        raise UsageError("bad_request", "the pin is not one of a bucket")
    return int(size), etag
