"""Jobs as traces: one a job, a span for each of its stages, as lines of OTLP/JSON.

A line is what an OpenTelemetry collector's receiver ``otlpjsonfile`` reads
(https://opentelemetry.io/docs/specs/otel/protocol/file-exporter/). Ids follow from the job's, so that the same job
written twice is the same trace. Spans tell nothing of objects: no path, no name, no size.
"""

import hashlib
from typing import Any

from smp_proto import __version__
from smp_proto.control import JobView

_INTERNAL, _OK, _ERROR = 1, 1, 2  # SpanKind and Status.code of opentelemetry/proto/trace/v1/trace.proto
_SCOPE = "smpctl"


def trace_of(job: JobView, host: str) -> dict[str, Any]:
    """The trace of a job that has ended, as an ``ExportTraceServiceRequest``.

    Args:
        job: with its stages.
        host: the name of the box.
    """
    end = max([job.updated - job.created, *(each.at + each.seconds for each in job.stages)])
    attributes = {
        "smp.job.id": job.id,
        "smp.job.kind": job.kind,
        "smp.job.state": job.state,
        "smp.job.priority": job.priority,
        "smp.job.attempts": job.attempt,
        "smp.processor": job.processor,
        "smp.remote.source": job.source.partition(":")[0],
        "smp.remote.target": job.target.partition(":")[0],
        "smp.device": job.transfer.device,
        "smp.error.code": job.error.code if job.error else "",
    }
    root = _span(job, 0, f"job {job.kind}", 0.0, end, attributes)
    root["status"] = {"code": _OK} if job.state == "done" else {"code": _ERROR, "message": attributes["smp.error.code"]}
    spans = [root]
    for number, stage in enumerate(job.stages, 1):
        span = _span(job, number, stage.name, stage.at, stage.at + stage.seconds, {})
        spans.append({**span, "parentSpanId": root["spanId"]})
    resource = {"service.name": "smpd", "service.version": __version__, "host.name": host}
    scope = {"name": _SCOPE, "version": __version__}
    return {
        "resourceSpans": [
            {"resource": {"attributes": _attributes(resource)}, "scopeSpans": [{"scope": scope, "spans": spans}]}
        ]
    }


def _span(job: JobView, number: int, name: str, begin: float, end: float, attributes: dict[str, Any]) -> dict[str, Any]:
    return {
        "traceId": hashlib.sha256(f"smp trace {job.id}".encode()).hexdigest()[:32],
        "spanId": hashlib.sha256(f"smp span {job.id} {number}".encode()).hexdigest()[:16],
        "name": name,
        "kind": _INTERNAL,
        "startTimeUnixNano": _nanoseconds(job.created + begin),
        "endTimeUnixNano": _nanoseconds(job.created + end),
        "attributes": _attributes(attributes),
    }


def _nanoseconds(when: float) -> str:
    """A 64-bit number is text in JSON."""
    return str(max(0, round(when * 1e9)))


def _attributes(given: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}}
        for key, value in given.items()
        if value != ""
    ]
