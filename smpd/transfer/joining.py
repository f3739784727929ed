"""Has fetch processes of a remote take part as they pay: looks at those that do, and starts one more beside them.

:mod:`smpd.transfer.packing` decides; this gives it what it judges by.
"""

import anyio
from anyio.abc import TaskGroup

from smp_proto.control import LocalConfig, RemoteConfig, S3Config
from smp_proto.errors import SmpError
from smpd.host.process import cpu_seconds
from smpd.transfer.lanes import Lanes
from smpd.transfer.pacing import Pacing
from smpd.transfer.packing import LONG_S, Packing
from smpd.transfer.processes import Processes


def only_receives(config: RemoteConfig) -> bool:
    """Whether a fetch process has nothing to decipher of what comes: plain HTTP, and folders."""
    match config:
        case LocalConfig():
            return True
        case S3Config(endpoint=endpoint):
            return endpoint.lower().startswith("http://")
        case _:
            return False


class Joining:
    """Looks after the processes of one remote.

    Args:
        slots: how many lanes each process has.
        closing: set once no process is to be started any more.
        group: where a start is waited for.
    """

    def __init__(
        self,
        packing: Packing,
        processes: Processes,
        lanes: Lanes,
        pacing: Pacing,
        slots: int,
        closing: anyio.Event,
        group: TaskGroup,
    ) -> None:
        self._packing = packing
        self._processes = processes
        self._lanes = lanes
        self._pacing = pacing
        self._slots = slots
        self._closing = closing
        self._group = group

    def came(self, now: float, seconds: float) -> None:
        """A range came, and took so long."""
        packing = self._packing
        if not packing.due(now):
            return
        spent = [cpu_seconds(host.pid) for host in self._processes.hosts[: packing.used]]
        lacking = seconds >= LONG_S and self._pacing.window > packing.used * self._slots
        if packing.look(now, spent, lacking=lacking):
            self._group.start_soon(self._join)

    async def _join(self) -> None:
        """Start one process more; it takes part once it is there."""
        there = False
        try:
            if not self._closing.is_set():
                async with self._processes.hosts[self._packing.used].use():
                    there = True
        except SmpError:
            pass  # whoever has to have it is told what kept it
        finally:
            self._packing.joined(there=there)
            self._lanes.wake()
