"""What both clients do alike: the state of a resumable watch, the job inside an event, metrics in parts, pauses."""

import time
from collections.abc import Iterable

import msgspec

from smp_proto.control import Event, JobView, MetricFamily
from smp_proto.errors import DaemonError, SmpError
from smp_proto.structs import decoder

RECONNECT_FIRST_S = 0.25
RECONNECT_MAX_S = 5.0
PAUSE_MIN_S = 0.01


def job_of(event: Event) -> JobView | None:
    """The job that an event is about; None for an event of another kind.

    Raises:
        DaemonError: ``protocol``; the body is no job.
    """
    if event.kind not in ("snapshot", "job"):
        return None
    try:
        view: JobView = decoder(JobView).decode(event.body)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise DaemonError("protocol", f"an event does not fit the protocol: {error}") from None
    return view


def joined(parts: Iterable[MetricFamily]) -> list[MetricFamily]:
    """Metrics whose parts came one after the other, each in one piece."""
    families: list[MetricFamily] = []
    for part in parts:
        if families and families[-1].name == part.name:
            families[-1].samples += part.samples
        else:
            families.append(part)
    return families


class Cursor:
    """Where a watch goes on after it broke.

    Args:
        since: the sequence number to begin after; 0 for a snapshot.
        resume: whether to go on at all.
        patience_s: how long a daemon may be away.
    """

    def __init__(self, since: int, resume: bool, patience_s: float) -> None:
        self.since = since
        self._resume = resume
        self._patience_s = patience_s
        self._boot_id = ""
        self._waited_s = 0.0
        self._delay_s = RECONNECT_FIRST_S
        self._lags = 0

    def joined(self, boot_id: str) -> int:
        """A connection is there; the number to ask from. Another boot of the daemon counts from the start again."""
        if self._boot_id and boot_id != self._boot_id:
            self.since = 0
        self._boot_id = boot_id
        return self.since

    def saw(self, event: Event) -> None:
        """An event came."""
        self.since = max(self.since, event.seq)
        self._lags, self._waited_s, self._delay_s = 0, 0.0, RECONNECT_FIRST_S

    def after(self, error: SmpError) -> float:
        """Seconds to wait before going on.

        Raises:
            SmpError: the error itself, when it is not to be resumed from or the daemon is away for too long.
        """
        if not self._resume or error.code not in ("lagged", "daemon_down", "rate_limited") or not error.retryable:
            raise error
        if error.code == "lagged":
            # Too old even from where we were told to go on: begin again with a snapshot.
            self._lags += 1
            if self._lags > 2:
                raise error
            since = error.details.get("since")
            self.since = since if self._lags == 1 and isinstance(since, int) else 0
            return 0.0
        if self._waited_s >= self._patience_s:
            raise error
        told = error.details.get("retry_after")
        delay = max(self._delay_s, told) if isinstance(told, int | float) else self._delay_s
        self._waited_s += delay
        self._delay_s = min(RECONNECT_MAX_S, delay * 2)
        return delay


def pause_after(error: DaemonError, until: float) -> float:
    """Seconds to wait before asking once more, where the daemon wants to be asked more rarely and there is time.

    Raises:
        DaemonError: the error itself, otherwise.
    """
    wait = error.details.get("retry_after")
    if error.code != "rate_limited" or not isinstance(wait, int | float) or time.monotonic() + wait >= until:
        raise error
    return max(wait, PAUSE_MIN_S)
