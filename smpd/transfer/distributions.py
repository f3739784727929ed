"""Which compute process runs which processor: one process for each plugin distribution."""

import importlib.metadata
from collections.abc import Sequence
from difflib import get_close_matches

from anyio.abc import TaskGroup

from smp_proto.errors import NotFoundError
from smpd.metrics.counting import Metrics
from smpd.transfer.device import Compute, ComputeSettings
from smpd.transfer.workers import WorkerHost

ENTRY_POINTS = "smpd.processors"


class ComputePools:
    """Which compute process runs which processor.

    Only names that the configuration lists are known. What distribution a name belongs to is read from installed
    metadata: nothing of a plugin is imported here.
    """

    def __init__(
        self, enabled: Sequence[str], settings: ComputeSettings, group: TaskGroup, metrics: Metrics | None = None
    ) -> None:
        self.settings = settings
        owners = {
            point.name: point.dist.name if point.dist else ""
            for point in importlib.metadata.entry_points(group=ENTRY_POINTS)
        }
        #: Names that are enabled but not installed; ``doctor`` shows them.
        self.missing = [name for name in enabled if name not in owners]
        by_owner: dict[str, list[str]] = {}
        for name in enabled:
            if name in owners:
                by_owner.setdefault(owners[name], []).append(name)
        self.all = [Compute(owner, names, settings, group, metrics) for owner, names in sorted(by_owner.items())]

    @property
    def hosts(self) -> list[WorkerHost]:
        """The places of all compute processes."""
        return [compute.host for compute in self.all]

    def of(self, processor: str) -> Compute:
        """The process that has a processor.

        Raises:
            NotFoundError: ``no_such_processor``.
        """
        for compute in self.all:
            if processor in compute.processors:
                return compute
        if processor in self.missing:
            hint = "install its distribution into the environment of smpd, and restart smpd"
            raise NotFoundError("no_such_processor", f"processor {processor} is listed but not installed", hint=hint)
        near = get_close_matches(processor, [name for compute in self.all for name in compute.processors], n=1)
        raise NotFoundError(
            "no_such_processor",
            f"no processor is called {processor[:80]!r}" + (f"; did you mean {near[0]}?" if near else ""),
            hint="run: smpctl processors; a new one must be installed and listed in compute.processors",
        )
