"""How large a remote's pool is."""

from typing import NamedTuple

from smpd.links import fetching
from smpd.transfer.breaker import BreakerSettings


class FetchSettings(NamedTuple):
    """Size of a remote's pool."""

    processes: int
    slots: int
    slot_bytes: int
    connections: int
    idle_s: float
    sandbox: str
    deadlines: fetching.Deadlines = fetching.Deadlines()
    breaker: BreakerSettings = BreakerSettings()
