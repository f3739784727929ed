"""What is counted of the daemon as a whole: its jobs as they move, and its event loop."""

import time

import anyio

from smp_proto.control import FINAL_STATES
from smpd.jobs.job import Job
from smpd.metrics.counting import Metrics

PROBE_S = 10.0


def count_job(metrics: Metrics, job: Job) -> None:
    """Count a move of a job that is durable now."""
    kind = str(job.spec.__struct_config__.tag)
    if job.error is not None and job.state in ("waiting", "failed", "quarantined"):
        metrics.count("smp_job_errors_total", kind, job.error.code)
    if job.state in FINAL_STATES:
        metrics.count("smp_jobs_ended_total", kind, job.state, job.priority)
    if job.state == "done":
        metrics.observe("smp_job_seconds", max(0.0, job.updated - job.created), kind)


async def probe_loop(metrics: Metrics) -> None:
    """See how late the event loop is, for ever."""
    while True:
        due = time.monotonic() + PROBE_S
        await anyio.sleep(PROBE_S)
        metrics.observe("smp_loop_lag_seconds", max(0.0, time.monotonic() - due))
