"""The daemon as a service: its configuration read anew."""

import msgspec

from smp_proto.control.base import Request


class Reload(Request, tag="reload"):
    """Read the configuration again and take up what can change at once; no job is dropped. Reply: Reloaded.

    One with a mistake is refused whole (``bad_config``), and the one before goes on.
    """


class LimitView(msgspec.Struct):
    """A limit that holds now: of one remote, or of all together where ``name`` is empty. A rate of 0 is none.

    ``quiet`` is that nothing is asked at all; ``changes_s`` is in how many seconds something else holds, 0 where that
    is not within a week. So many ranges and requests are ``waiting``.
    """

    name: str
    bytes_per_s: float = 0.0
    requests_per_s: float = 0.0
    quiet: bool = False
    changes_s: float = 0.0
    waiting: int = 0


class Reloaded(msgspec.Struct):
    """Keys that ``changed`` and hold now, and keys that differ from what is in effect and need a ``restart``."""

    changed: list[str]
    restart: list[str]
