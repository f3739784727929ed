"""Trying what tells somebody what is wrong."""

import msgspec

from smp_proto.control.base import Request
from smp_proto.errors import ErrorBody


class NotifyTest(Request, tag="notify-test"):
    """Tell somebody that it is a test. Reply: NotifyTested. Errors: bad_config with neither a command nor a URL set."""


class NotifyTried(msgspec.Struct):
    """One way: the program or the webhook's server, how many seconds it took, and why the message was not taken."""

    by: str
    seconds: float = 0.0
    error: ErrorBody | None = None


class NotifyTested(msgspec.Struct):
    """What became of each way that is configured: a failure is in ``error``, which is ``notify_failed``."""

    tried: list[NotifyTried]
