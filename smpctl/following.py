"""Waiting for a job with a bar, and what its end means for the exit code."""

from smp_proto.control import FINAL_STATES, JobView
from smp_proto.errors import CODES, SmpError, StateError
from smpctl.progress import bar
from smpctl.render import duration, plain, size
from smpctl.session import Session

EXIT_INTERRUPTED = 130


class Interrupted(Exception):  # noqa: N818 - no error: the job goes on
    """The person stopped waiting; ``job`` goes on."""

    def __init__(self, job: JobView) -> None:
        super().__init__(job.id)
        self.job = job


def follow(session: Session, job: JobView) -> JobView:
    """Wait until a job is final, showing how far it is.

    Raises:
        Interrupted: on Ctrl-C.
    """
    if job.state in FINAL_STATES:
        return job
    try:
        with bar(f"{job.kind} {job.id[:8]}", quiet=session.as_json) as shown:
            told = ""

            def seen(found: JobView) -> None:
                nonlocal told
                if found.state == "waiting" and found.error and found.error.message != told:
                    told = found.error.message
                    session.note(f"smpctl: the job waits and will be tried again: {plain(told)}")
                    session.note(f"hint: {plain(found.error.hint)}")
                text = f"{found.state}, {found.phase}" if found.phase else found.state
                shown.update(text, found.done_bytes, found.total_bytes)

            seen(job)
            return session.client.wait(job.id, seen)
    except KeyboardInterrupt:
        raise Interrupted(job) from None


def exit_code(job: JobView) -> int:
    """0 for a job that is done, else that of its error; a cancelled job is a state."""
    if job.state == "done":
        return 0
    if job.state == "cancelled":
        return StateError.exit_code
    if job.error is not None and job.error.code in CODES:
        return CODES[job.error.code].family.exit_code
    return SmpError.exit_code if job.state in FINAL_STATES else 0


def interrupted(session: Session, stopped: Interrupted) -> int:
    """Say that the job goes on."""
    job = stopped.job
    session.note(f"smpctl: job {job.id} goes on without us")
    session.note(f"hint: smpctl job wait {job.id[:8]} to wait again, smpctl job cancel {job.id[:8]} to end it")
    return EXIT_INTERRUPTED


def closing(job: JobView) -> str:
    """One line about what a job did."""
    result, moved = job.result, job.transfer
    if result is None:
        return f"job {job.id} is {job.state}"
    many = f"{result.objects} objects, listed by: smpctl vault ls --job {job.id[:8]}"
    where = result.target or (f"vault {result.vault_id}" if result.vault_id else many)
    speed = f", {size(moved.fetched_bytes / moved.seconds)}/s" if moved.seconds and moved.fetched_bytes else ""
    resumed = f", {size(moved.resumed_bytes)} were here already" if moved.resumed_bytes else ""
    took = f" in {duration(moved.seconds)}" if moved.seconds else ""
    return f"{where}: {result.entries} entries, {size(result.plain_bytes)}{took}{speed}{resumed}"


def report_failed(session: Session, job: JobView) -> None:
    """Say why a final job is not done."""
    if job.error is None:
        session.note(f"smpctl: job {job.id} is {job.state}")
        return
    from smpctl.__main__ import report  # noqa: PLC0415 - it imports all of this

    report(SmpError.from_body(job.error))
    if job.state == "quarantined":
        session.note(f"hint: the object was kept apart; see: smpctl job show {job.id[:8]}")
