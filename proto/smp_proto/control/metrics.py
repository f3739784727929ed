"""What the daemon counts, for whoever watches it from afar."""

from typing import Literal

import msgspec

from smp_proto.control.base import Request


class MetricSample(msgspec.Struct):
    """One number. Of a histogram ``name`` ends in ``_bucket``, ``_sum`` or ``_count``."""

    name: str
    labels: dict[str, str]
    value: float


class MetricFamily(msgspec.Struct):
    """One metric and its samples. A long one comes in parts, one after the other."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: list[MetricSample]


class MetricsRequest(Request, tag="metrics"):
    """DATA: MetricFamily, of every metric there is. Reply: None."""
