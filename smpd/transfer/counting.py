"""What is counted of one remote."""

from smpd.metrics.counting import Metrics


class RemoteCounts:
    """Counts what goes on with one remote.

    Args:
        metrics: what is counted into.
        name: the remote's.
    """

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._metrics = metrics
        self._name = name

    def asked(self, outcome: str) -> None:
        """A request came to its end: ``ok``, or the code of its error."""
        self._metrics.count("smp_remote_requests_total", self._name, outcome)

    def took(self, seconds: float) -> None:
        """A request was answered after so long."""
        self._metrics.observe("smp_remote_request_seconds", seconds, self._name)

    def fetched(self, count: int) -> None:
        """So many bytes came."""
        self._metrics.count("smp_fetched_bytes_total", self._name, by=count)

    def put(self, count: int) -> None:
        """So many bytes of an upload were taken."""
        self._metrics.count("smp_put_bytes_total", self._name, by=count)

    def opened(self, count: int) -> None:
        """So many bytes of plaintext were opened."""
        self._metrics.count("smp_opened_bytes_total", self._name, by=count)

    def retried(self, count: int) -> None:
        """So many ranges were asked for once more."""
        if count:
            self._metrics.count("smp_ranges_retried_total", self._name, by=count)

    def forget(self) -> None:
        """The remote was removed."""
        self._metrics.forget("remote", self._name)
