"""The daemon as a service: its configuration read anew."""

import msgspec

from smp_proto.control.base import Request


class Reload(Request, tag="reload"):
    """Read the configuration again and take up what can change at once; no job is dropped. Reply: Reloaded.

    One with a mistake is refused whole (``bad_config``), and the one before goes on.
    """


class Reloaded(msgspec.Struct):
    """Keys that ``changed`` and hold now, and keys that differ from what is in effect and need a ``restart``."""

    changed: list[str]
    restart: list[str]
