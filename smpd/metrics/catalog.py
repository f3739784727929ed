"""Every metric that smpd has: its kind, labels and what it says. ``docs/reference/metrics.md`` is written from this.

Names follow https://prometheus.io/docs/practices/naming/: base units (seconds, bytes), and ``_total`` for counters.
"""

from typing import Literal, NamedTuple

REQUEST_S = (0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 60.0)
ANSWER_S = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0)
LAG_S = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5)
JOB_S = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 21_600.0)


class Family(NamedTuple):
    """A metric: counters grow while smpd runs, gauges are as of now, histograms count into ``buckets`` of seconds."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_ALL = (
    # the daemon
    Family("smp_build_info", "gauge", "1, with the version of smpd.", ("version",)),
    Family("smp_uptime_seconds", "gauge", "How long smpd runs."),
    Family("smp_process_resident_bytes", "gauge", "Resident memory of smpd, rings that it maps included."),
    Family("smp_process_cpu_seconds_total", "counter", "CPU time of smpd, without its workers."),
    Family("smp_process_open_files", "gauge", "Open file descriptors of smpd."),
    Family("smp_process_open_files_limit", "gauge", "The limit on open file descriptors of smpd."),
    Family("smp_loop_lag_seconds", "histogram", "How late smpd's event loop woke up, probed now and then.", (), LAG_S),
    Family(
        "smp_memory_left_bytes", "gauge", "What is left of the tightest memory limit of this machine or its groups."
    ),
    # jobs
    Family("smp_jobs", "gauge", "Jobs that have not ended well or been cancelled.", ("state", "priority")),
    Family("smp_jobs_ended_total", "counter", "Jobs that came to a final state.", ("kind", "state", "priority")),
    Family(
        "smp_job_errors_total", "counter", "Times that a job ended, or began to wait, for an error.", ("kind", "code")
    ),
    Family("smp_job_seconds", "histogram", "From the submission of a job until it was done.", ("kind",), JOB_S),
    Family("smp_journal_waiting", "gauge", "Changes of jobs that wait for the disk."),
    # remotes
    Family("smp_remote_state", "gauge", "1 for the state that a remote in use is in.", ("remote", "state")),
    Family("smp_remote_failures", "gauge", "Failures of a remote in a row.", ("remote",)),
    Family("smp_remote_requests_total", "counter", "Requests to a remote, by outcome.", ("remote", "outcome")),
    Family("smp_remote_request_seconds", "histogram", "How long requests to a remote took.", ("remote",), REQUEST_S),
    Family("smp_fetched_bytes_total", "counter", "Bytes that came from a remote.", ("remote",)),
    Family("smp_put_bytes_total", "counter", "Bytes of uploads that a remote took.", ("remote",)),
    Family("smp_opened_bytes_total", "counter", "Bytes of plaintext that were checked and opened.", ("remote",)),
    Family("smp_ranges_retried_total", "counter", "Ranges that had to be asked for once more.", ("remote",)),
    Family("smp_lanes", "gauge", "Slots of the rings that a remote's bytes come in through.", ("remote",)),
    Family("smp_lanes_in_use", "gauge", "Those slots that are in use.", ("remote",)),
    Family("smp_lanes_window", "gauge", "How many slots may be in use at once, as the throughput has it.", ("remote",)),
    Family("smp_range_bytes", "gauge", "How large a range of a large object is that is begun now.", ("remote",)),
    # what was refused
    Family("smp_tags_failed_total", "counter", "Segments whose authentication tag did not match.", ("remote",)),
    Family("smp_objects_refused_total", "counter", "Objects that were put into quarantine.", ("code",)),
    Family("smp_quarantine_objects", "gauge", "Objects in quarantine."),
    Family("smp_quarantine_bytes", "gauge", "Ciphertext that is kept in quarantine."),
    Family("smp_quarantine_limit_bytes", "gauge", "How much may be kept in quarantine."),
    # workers and the device
    Family("smp_workers", "gauge", "Worker processes that run.", ("role", "label")),
    Family(
        "smp_worker_resident_bytes", "gauge", "Resident memory of worker processes, rings included.", ("role", "label")
    ),
    Family("smp_worker_starts_total", "counter", "Starts of worker processes.", ("role", "label")),
    Family("smp_ring_bytes", "gauge", "Memory of the rings that are there."),
    Family("smp_compute_info", "gauge", "1, with what a compute process runs on.", ("distribution", "device", "name")),
    Family("smp_compute_busy", "gauge", "1 while a compute process works on a job.", ("distribution",)),
    Family("smp_compute_slots", "gauge", "Slots of the plain ring of a compute process.", ("distribution",)),
    Family("smp_compute_slots_in_use", "gauge", "Slots of that ring that are in use.", ("distribution",)),
    Family("smp_compute_runs_total", "counter", "Runs of processors, by outcome.", ("distribution", "outcome")),
    Family("smp_compute_run_seconds", "histogram", "How long runs of processors took.", ("distribution",), JOB_S),
    Family("smp_compute_kept_bytes", "gauge", "What a compute process keeps after its runs.", ("distribution",)),
    Family("smp_compute_growth_bytes", "gauge", "By how much that grows from run to run, of late.", ("distribution",)),
    Family("smp_compute_device_bytes", "gauge", "What its tensors hold of the device after a run.", ("distribution",)),
    Family(
        "smp_compute_recycled_total", "counter", "Processes replaced for what they kept.", ("distribution", "reason")
    ),
    # the disk
    Family("smp_disk_free_bytes", "gauge", "Free on the disk of the state folder."),
    Family("smp_disk_claimed_bytes", "gauge", "Of the free bytes, set aside by running jobs."),
    Family("smp_disk_reserve_bytes", "gauge", "The reserve for the journal and the audit log."),
    Family("smp_disk_reserve_held_bytes", "gauge", "What is held of the reserve."),
    Family("smp_spool_files", "gauge", "Files in the spool."),
    Family("smp_spool_bytes", "gauge", "What the spool takes of the disk."),
    Family("smp_vault_objects", "gauge", "Objects in the vault."),
    Family("smp_vault_bytes", "gauge", "Bytes of the objects in the vault."),
    # the audit log
    Family("smp_audit_ok", "gauge", "0 when the audit log cannot be written or is broken."),
    Family("smp_audit_records", "gauge", "Records of the audit log."),
    Family("smp_audit_unsigned_records", "gauge", "Records that no checkpoint covers yet."),
    # the control socket
    Family("smp_control_connections", "gauge", "Open connections of the control socket."),
    Family("smp_control_requests_total", "counter", "Requests on the control socket, by outcome.", ("op", "outcome")),
    Family("smp_control_request_seconds", "histogram", "How long they took, watches left out.", ("op",), ANSWER_S),
    # syncs
    Family("smp_sync_active", "gauge", "1, or 0 when a sync is paused.", ("sync",)),
    Family("smp_sync_objects", "gauge", "Object versions of a sync, by state.", ("sync", "state")),
    Family("smp_sync_seen_objects", "gauge", "Object versions that a sync found and knows.", ("sync",)),
    Family("smp_sync_lag_seconds", "gauge", "How long the oldest has waited that is not done.", ("sync",)),
    Family("smp_sync_listed_timestamp_seconds", "gauge", "When the last listing ended, 0 for never.", ("sync",)),
    Family("smp_sync_listing_ok", "gauge", "0 when the last listing failed.", ("sync",)),
)
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}
