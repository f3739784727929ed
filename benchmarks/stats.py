"""Pure arithmetic over samples: medians, spreads, ratios taken round by round."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """The middle of some figures and how far they lie apart."""

    median: float
    low: float
    high: float
    taken: int

    def format(self, digits: int = 2) -> str:
        """``1.23 (1.10 to 1.31)``; the median alone where there is only one figure."""
        if self.taken == 1:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def spread(figures: Sequence[float]) -> Spread | None:
    """Median, least and greatest; None of nothing."""
    if not figures:
        return None
    return Spread(statistics.median(figures), min(figures), max(figures), len(figures))


def paired(mine: Sequence[float], other: Sequence[float]) -> list[float]:
    """Ratios of figures that were taken in the same round.

    What the machine does beside falls on both of a round, so these spread less than the figures themselves. A round
    that one of the two lacks (it failed later on) is left out, as is one in which the other is 0.
    """
    return [a / b for a, b in zip(mine, other, strict=False) if b]


def percentile(figures: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the least figure that at least ``percent`` % of them do not exceed.

    Raises:
        ValueError: there are no figures, or ``percent`` is not in (0, 100].
    """
    if not figures or not 0 < percent <= 100:
        raise ValueError(f"no {percent}th percentile of {len(figures)} figures")
    rank = -(-len(figures) * percent // 100)
    return sorted(figures)[int(rank) - 1]
