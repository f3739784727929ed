"""What all messages share: roles, HELLO, and the base of the requests."""

from typing import Literal

import msgspec

from smp_proto.errors import ErrorBody

Role = Literal["viewer", "operator", "admin"]


class Hello(msgspec.Struct):
    """The first frame each way. The daemon answers once the client's has come.

    ``error`` is set when the daemon will not serve this connection, which it then closes.
    """

    protocol_min: int
    protocol_max: int
    version: str
    boot_id: str = ""
    role: str = ""
    error: ErrorBody | None = None


class Request(msgspec.Struct, tag_field="op"):
    """Base of the requests."""
