"""Changes of jobs that run: each is made for good, however long the disk does not take it."""

from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread

from smp_proto.errors import SmpError

T = TypeVar("T")
DISK_RETRY_S = 1.0


class Persisting:
    """Belongs to the event loop's thread.

    Args:
        on_fault: called with a job's id and why the disk does not take what became of it: once, since it may be full
            for days, and so would be the log.
    """

    def __init__(self, on_fault: Callable[[str, Exception], None]) -> None:
        self._on_fault = on_fault
        self._unwritten: dict[str, str] = {}  # by job, the code of the error

    @property
    def full(self) -> bool:
        """Whether the disk is too full for what became of some job."""
        return "disk_full" in self._unwritten.values()

    async def persist(self, change: Callable[[], T], job_id: str) -> T:
        """Change a job, in a thread; what is under way is not torn.

        Raises:
            SmpError: it cannot be made, which waiting does not change.
        """
        try:
            while True:
                with anyio.CancelScope(shield=True):
                    try:
                        return await anyio.to_thread.run_sync(change)
                    except SmpError as error:
                        if not error.retryable:
                            raise
                        if job_id not in self._unwritten:
                            self._on_fault(job_id, error)
                        self._unwritten[job_id] = error.code
                await anyio.sleep(DISK_RETRY_S)
        finally:
            self._unwritten.pop(job_id, None)
