"""The verb, against a whole daemon: what it tells, and to whom."""

import anyio
import pytest
from prometheus_client.parser import text_string_to_metric_families
from whole import OPERATORS, VIEWERS, Whole, whole

from smp_proto import control as c
from smp_proto.aio import Caller
from smp_proto.errors import DeniedError, NotFoundError
from smpctl.exposition import render
from smpctl.watching import joined
from smpd.config import Permission
from smpd.metrics.catalog import FAMILIES
from smpd.verbs import counting, metrics

ANNA, CHIEF = 70_001, 70_002
TABLES = {
    "anna": Permission(users=(str(ANNA),), read=("pacs",)),
    "chief": Permission(users=(str(CHIEF),), list=("pacs",), jobs="all"),
}


async def asked(caller: Caller) -> dict:
    """Name and labels to value, as Prometheus reads them; every metric has come, in the order of the catalog."""
    async with caller.open(c.MetricsRequest()) as exchange:
        parts = [part async for part in exchange.messages(c.MetricFamily)]
        await exchange.result(type(None))
    families = joined(parts)
    assert [family.name for family in families] == list(FAMILIES)
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(render(families))
        for sample in family.samples
    }


def watched(box: Whole, name: str, source: str) -> c.SyncSpec:
    return c.SyncSpec(name=name, source=source, every_s=86_400.0)


async def test_jobs_remotes_and_requests_are_counted(tmp_path):
    """A job that cannot be done shows as a job, as its error, as requests to its remote, and as what was asked of us."""
    (tmp_path / "store").mkdir()
    async with whole(tmp_path, scheduler=True) as box:
        box.daemon.remotes.add("disk", c.LocalConfig(str(tmp_path / "store")))
        async with box.client(0) as caller:
            job = await caller.call(c.Submit(c.GetSpec("disk:nothing"), "1", "high"), c.JobView)
            with anyio.fail_after(60):
                async with caller.open(c.Watch(jobs=[job.id])) as events:
                    async for _ in events.messages(c.Event):
                        pass
            with pytest.raises(NotFoundError):
                await caller.call(c.JobRequest("nothing"), c.JobView)
            found = await asked(caller)
    assert found["smp_jobs", "failed", "high"] == 1
    assert found["smp_jobs", "failed", "normal"] == 0
    assert found["smp_jobs_ended_total", "get", "failed", "high"] == 1
    assert found["smp_job_errors_total", "get", "no_such_object"] == 1
    assert found["smp_remote_requests_total", "disk", "no_such_object"] == 1
    assert found["smp_remote_state", "disk", "up"] == 1
    assert found["smp_control_requests_total", "job", "no_such_job"] == 1
    assert found["smp_control_request_seconds_count", "submit"] == 1
    assert found["smp_control_connections",] == 1
    assert found["smp_workers", "fetch", "disk"] == 1
    assert found["smp_worker_starts_total", "fetch", "disk"] == 1
    assert found["smp_audit_ok",] == 1
    assert found["smp_disk_free_bytes",] > 0
    assert found["smp_process_resident_bytes",] > 1 << 20


async def test_many_samples_come_in_parts(tmp_path, monkeypatch):
    """A metric that is too long for one message is whole again on the other side."""
    monkeypatch.setattr(metrics, "_SAMPLES", 3)
    async with whole(tmp_path) as box, box.client(0) as caller:
        found = await asked(caller)
    assert len([labels for labels in found if labels[0] == "smp_jobs"]) == 24


async def test_who_sees_what(tmp_path):
    """Numbers are of everybody's jobs, so who may see only their own is refused; of remotes and syncs one sees one's."""
    (tmp_path / "store").mkdir()
    async with whole(tmp_path, permissions=TABLES) as box:
        for name in ("pacs", "lake"):
            box.daemon.remotes.add(name, c.LocalConfig(str(tmp_path / "store")))
            await box.daemon.pools.get(name)
            await box.daemon.syncs.add(watched(box, f"of-{name}", f"{name}:"), "root(0)")
        async with box.client(ANNA, (VIEWERS, OPERATORS)) as anna:
            with pytest.raises(DeniedError):
                await asked(anna)
        async with box.client(CHIEF, (VIEWERS,)) as chief, box.client(0) as root:
            shown, everything = await asked(chief), await asked(root)
        with anyio.fail_after(60):  # their fetch processes are to end with the pools
            while not all(each.last_poll for each in await box.daemon.syncs.views()):
                await anyio.lowlevel.checkpoint()
        await box.daemon.pools.aclose()
    assert ("smp_lanes", "pacs") in shown
    assert ("smp_sync_active", "of-pacs") in shown
    assert ("smp_lanes", "lake") in everything
    assert ("smp_sync_active", "of-lake") in everything
    assert not [labels for labels in shown if "lake" in labels or "of-lake" in labels]


async def test_a_late_loop_is_seen(monkeypatch):
    """The probe tells how much later than asked it woke up."""
    monkeypatch.setattr(counting, "PROBE_S", 0.0)
    counted = counting.Metrics()
    async with anyio.create_task_group() as group:
        group.start_soon(counting.probe_loop, counted)
        with anyio.fail_after(60):
            while not (seen := counted._histograms["smp_loop_lag_seconds"]):
                await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    assert sum(seen[()].counts) >= 1
