"""Writes grafana/smp.json from the panels below. Run: python docs/render_dashboard.py."""

import json
from pathlib import Path
from typing import Any, NamedTuple

PAGE = Path(__file__).with_name("grafana") / "smp.json"
_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 3
_SOURCE = {"type": "prometheus", "uid": "${source}"}
_AT = 'instance=~"$instance"'


class Panel(NamedTuple):
    """A panel: its unit by Grafana's name, and queries with the name of each line; ``HERE``, ``AT``: the box chosen."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    stacked: bool = False


ROWS: dict[str, tuple[Panel, ...]] = {
    "How it is": (
        Panel("Up for", "s", (("smp_uptime_secondsHERE", "{{instance}}"),), "stat"),
        Panel("Audit log", "bool_yes_no", (("smp_audit_okHERE", "whole"),), "stat"),
        Panel(
            "For a person to look at",
            "short",
            (
                ('sum(smp_jobs{AT, state="failed"})', "failed jobs"),
                ("sum(smp_quarantine_objectsHERE)", "objects in quarantine"),
            ),
            "stat",
        ),
    ),
    "Jobs": (
        Panel(
            "Jobs under way",
            "short",
            (('sum by (state) (smp_jobs{AT, state!~"failed|quarantined"})', "{{state}}"),),
            stacked=True,
        ),
        Panel(
            "Jobs that ended, per second",
            "ops",
            (("sum by (kind, state) (rate(smp_jobs_ended_totalHERE[5m]))", "{{kind}} {{state}}"),),
        ),
        Panel(
            "Until a job is done",
            "s",
            (
                ("histogram_quantile(0.5, sum by (le) (rate(smp_job_seconds_bucketHERE[15m])))", "half of them"),
                ("histogram_quantile(0.95, sum by (le) (rate(smp_job_seconds_bucketHERE[15m])))", "95 of 100"),
            ),
        ),
        Panel(
            "Errors of jobs, per second", "ops", (("sum by (code) (rate(smp_job_errors_totalHERE[5m]))", "{{code}}"),)
        ),
        Panel(
            "Runs of processors, per second",
            "ops",
            (
                (
                    "sum by (distribution, outcome) (rate(smp_compute_runs_totalHERE[5m]))",
                    "{{distribution}} {{outcome}}",
                ),
            ),
        ),
        Panel(
            "Time of processors",
            "percentunit",
            (("sum by (distribution) (rate(smp_compute_run_seconds_sumHERE[5m]))", "{{distribution}}"),),
        ),
    ),
    "Remotes": (
        Panel(
            "Bytes",
            "Bps",
            (
                ("sum by (remote) (rate(smp_fetched_bytes_totalHERE[5m]))", "{{remote}} fetched"),
                ("sum by (remote) (rate(smp_opened_bytes_totalHERE[5m]))", "{{remote}} opened"),
                ("sum by (remote) (rate(smp_put_bytes_totalHERE[5m]))", "{{remote}} put"),
            ),
        ),
        Panel(
            "Requests, 95 of 100 within",
            "s",
            (
                (
                    "histogram_quantile(0.95, sum by (remote, le) (rate(smp_remote_request_seconds_bucketHERE[5m])))",
                    "{{remote}}",
                ),
            ),
        ),
        Panel(
            "Requests that failed, per second",
            "ops",
            (
                (
                    'sum by (remote, outcome) (rate(smp_remote_requests_total{AT, outcome!="ok"}[5m]))',
                    "{{remote}} {{outcome}}",
                ),
                ("sum by (remote) (rate(smp_ranges_retried_totalHERE[5m]))", "{{remote}} ranges retried"),
            ),
        ),
        Panel(
            "Not up",
            "short",
            (('smp_remote_state{AT, state!="up"}', "{{remote}} {{state}}"),),
        ),
        Panel(
            "Lanes",
            "short",
            (
                ("smp_lanes_in_useHERE", "{{remote}} in use"),
                ("smp_lanes_windowHERE", "{{remote}} window"),
                ("smp_lanesHERE", "{{remote}} all"),
            ),
        ),
        Panel(
            "Slots of compute processes",
            "short",
            (
                ("smp_compute_slots_in_useHERE", "{{distribution}} in use"),
                ("smp_compute_slotsHERE", "{{distribution}} all"),
            ),
        ),
    ),
    "Syncs": (
        Panel("Lag of the oldest object", "s", (("smp_sync_lag_secondsHERE", "{{sync}}"),)),
        Panel(
            "Objects not done",
            "short",
            (('smp_sync_objects{AT, state!~"done|gone"}', "{{sync}} {{state}}"),),
        ),
        Panel(
            "Objects done, per hour",
            "short",
            (('delta(smp_sync_objects{AT, state="done"}[1h])', "{{sync}}"),),
        ),
    ),
    "The box": (
        Panel(
            "Memory",
            "bytes",
            (
                ("smp_process_resident_bytesHERE", "smpd"),
                ("smp_worker_resident_bytesHERE", "{{role}} {{label}}"),
                ("smp_ring_bytesHERE", "rings, counted once"),
                ("smp_memory_left_bytesHERE", "left"),
            ),
        ),
        Panel(
            "Disk",
            "bytes",
            (
                ("smp_disk_free_bytesHERE", "free"),
                ("smp_disk_claimed_bytesHERE", "claimed"),
                ("smp_spool_bytesHERE", "spool"),
                ("smp_vault_bytesHERE", "vault"),
                ("smp_quarantine_bytesHERE", "quarantine"),
            ),
        ),
        Panel(
            "Event loop, 95 of 100 wake-ups late by",
            "s",
            (("histogram_quantile(0.95, sum by (le) (rate(smp_loop_lag_seconds_bucketHERE[30m])))", "at most"),),
        ),
        Panel(
            "Control requests, 95 of 100 within",
            "s",
            (
                (
                    "histogram_quantile(0.95, sum by (op, le) (rate(smp_control_request_seconds_bucketHERE[5m])))",
                    "{{op}}",
                ),
            ),
        ),
        Panel(
            "Control requests refused or failed, per second",
            "ops",
            (
                (
                    'sum by (op, outcome) (rate(smp_control_requests_total{AT, outcome!="ok"}[5m]))',
                    "{{op}} {{outcome}}",
                ),
            ),
        ),
        Panel(
            "Behind",
            "short",
            (
                ("smp_audit_unsigned_recordsHERE", "audit records unsigned"),
                ("smp_journal_waitingHERE", "journal changes waiting"),
            ),
        ),
    ),
}


def here(query: str) -> str:
    """A query with the choice of a box in it."""
    return query.replace("HERE", f"{{{_AT}}}").replace("AT,", f"{_AT},")


def render() -> str:
    """The dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        panels.append(
            _placed({"type": "row", "title": title, "collapsed": False, "panels": []}, len(panels), 0, top, 24, 1)
        )
        top += 1
        for number, panel in enumerate(row):
            x, y = number % _COLUMNS * _WIDTH, top + number // _COLUMNS * _HEIGHT
            panels.append(_placed(_panel(panel), len(panels), x, y, _WIDTH, _HEIGHT))
        top += -(-len(row) // _COLUMNS) * _HEIGHT
    dashboard = {
        "title": "SMP",
        "uid": "smp",
        "description": "A box that runs smpd; docs/reference/metrics.md says what each metric is.",
        "tags": ["smp"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                {
                    "name": "instance",
                    "label": "Box",
                    "type": "query",
                    "datasource": _SOURCE,
                    "refresh": 2,
                    "query": "label_values(smp_build_info, instance)",
                    "includeAll": True,
                    "multi": True,
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": panels,
    }
    return json.dumps(dashboard, indent=1) + "\n"


def _placed(panel: dict[str, Any], index: int, x: int, y: int, width: int, height: int) -> dict[str, Any]:
    return {"id": index + 1, **panel, "gridPos": {"x": x, "y": y, "w": width, "h": height}}


def _panel(panel: Panel) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + number), "datasource": _SOURCE, "expr": here(query), "legendFormat": legend}
        for number, (query, legend) in enumerate(panel.queries)
    ]
    custom = {"fillOpacity": 20, "stacking": {"mode": "normal"}} if panel.stacked else {}
    defaults = {"unit": panel.unit, "min": 0, "custom": custom}
    return {
        "type": panel.kind,
        "title": panel.title,
        "datasource": _SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
    }


if __name__ == "__main__":
    PAGE.write_text(render())
