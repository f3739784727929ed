"""The values of the metrics. All methods belong to the event loop's thread and only touch memory."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import NamedTuple

from smp_proto.control import MetricFamily, MetricSample
from smpd.metrics.catalog import FAMILIES, Family

Labels = tuple[str, ...]


class Gauge(NamedTuple):
    """A value as of now, or a counter that somebody else keeps."""

    name: str
    value: float
    labels: Labels = ()


class _Histogram:
    __slots__ = ("counts", "sum")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * (buckets + 1)  # not cumulative; the last is for what is beyond all buckets
        self.sum = 0.0


class Metrics:
    """What was counted since smpd started."""

    def __init__(self) -> None:
        self._values: dict[str, dict[Labels, float]] = {name: {} for name in FAMILIES}
        self._histograms: dict[str, dict[Labels, _Histogram]] = {
            name: {} for name, family in FAMILIES.items() if family.kind == "histogram"
        }

    def count(self, name: str, *labels: str, by: float = 1) -> None:
        """Add to a counter."""
        values = self._values[name]
        values[labels] = values.get(labels, 0) + by

    def set(self, name: str, value: float, *labels: str) -> None:
        """Set a gauge."""
        self._values[name][labels] = value

    def observe(self, name: str, seconds: float, *labels: str) -> None:
        """Count an observation into a histogram."""
        buckets = FAMILIES[name].buckets
        found = self._histograms[name].get(labels)
        if found is None:
            found = self._histograms[name][labels] = _Histogram(len(buckets))
        found.counts[bisect_left(buckets, seconds)] += 1
        found.sum += seconds

    def total(self, name: str) -> float:
        """A counter, of all its labels together."""
        return sum(self._values[name].values())

    def forget(self, label: str, value: str) -> None:
        """Leave out from now on what has this label: its remote was removed."""
        for family in FAMILIES.values():
            if label in family.labels:
                at = family.labels.index(label)
                for kept in (self._values[family.name], self._histograms.get(family.name, {})):
                    for labels in [each for each in kept if each[at] == value]:
                        del kept[labels]

    def families(self, gauges: Mapping[str, Mapping[Labels, float]]) -> Iterator[MetricFamily]:
        """Every metric in the order of the catalog, those without a value too.

        Args:
            gauges: by name and labels, what is not counted here.
        """
        for name, family in FAMILIES.items():
            values = {**self._values[name], **gauges.get(name, {})}
            samples = [_sample(family, labels, value) for labels, value in values.items()]
            for labels, histogram in self._histograms.get(name, {}).items():
                samples += _histogram(family, labels, histogram)
            yield MetricFamily(name, family.kind, family.help, samples)


def gathered(gauges: Iterator[Gauge]) -> dict[str, dict[Labels, float]]:
    """Gauges by name and labels; those with the same labels are added up."""
    found: dict[str, dict[Labels, float]] = {}
    for name, value, labels in gauges:
        values = found.setdefault(name, {})
        values[labels] = values.get(labels, 0) + value
    return found


def _sample(family: Family, labels: Labels, value: float, suffix: str = "", **more: str) -> MetricSample:
    return MetricSample(family.name + suffix, dict(zip(family.labels, labels, strict=True)) | more, value)


def _histogram(family: Family, labels: Labels, found: _Histogram) -> Iterator[MetricSample]:
    bounds = [*map(str, family.buckets), "+Inf"]
    for bound, count in zip(bounds, accumulate(found.counts), strict=True):
        yield _sample(family, labels, count, "_bucket", le=bound)
    yield _sample(family, labels, found.sum, "_sum")
    yield _sample(family, labels, sum(found.counts), "_count")
