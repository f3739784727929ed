"""Trying the command that tells somebody what is wrong."""

import msgspec

from smp_proto.control.base import Request


class NotifyTest(Request, tag="notify-test"):
    """Tell somebody that it is a test. Reply: NotifyTested. Errors: bad_config with no command set, notify_failed."""


class NotifyTested(msgspec.Struct):
    """The command took it, within so many seconds."""

    seconds: float
