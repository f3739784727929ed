"""Metrics as text: Prometheus' exposition format 0.0.4, which its servers and node_exporter's textfile collector read.

https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

import math
from collections.abc import Iterable

from smp_proto.control import MetricFamily, MetricSample

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_HELP = str.maketrans({"\\": r"\\", "\n": r"\n"})
_LABEL = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def render(families: Iterable[MetricFamily]) -> str:
    """All metrics that have a value."""
    lines = []
    for family in families:
        if family.samples:
            lines.append(f"# HELP {family.name} {family.help.translate(_HELP)}")
            lines.append(f"# TYPE {family.name} {family.kind}")
            lines += map(_line, family.samples)
    return "".join(f"{line}\n" for line in lines)


def _line(sample: MetricSample) -> str:
    labels = ",".join(f'{name}="{value.translate(_LABEL)}"' for name, value in sample.labels.items())
    return f"{sample.name}{{{labels}}} {_number(sample.value)}" if labels else f"{sample.name} {_number(sample.value)}"


def _number(value: float) -> str:
    if math.isfinite(value):
        return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
