"""Traces of jobs, for OpenTelemetry: printed, or appended to a file as jobs end."""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator

import click
import msgspec

from smp_proto import durable
from smp_proto.control import JobState, JobView
from smp_proto.errors import UsageError
from smpctl.client import Client
from smpctl.landing import disk_error
from smpctl.session import Session, VerbGroup
from smpctl.traces import trace_of
from smpctl.watching import job_of

_PATIENCE_S = 365 * 86_400.0  # with a daemon that is away: this is left alone
_FILE_MODE = 0o640
_REMEMBERED = 200_000  # more than a box keeps
_BEGINNING = b'{"resourceSpans"'
_BLOCK_BYTES = 1 << 16
_ENDED: tuple[JobState, ...] = ("done", "failed", "quarantined", "cancelled")


@click.group(cls=VerbGroup)
def traces() -> None:
    """Where the time of jobs went, as OpenTelemetry traces (lines of OTLP/JSON)."""


@traces.command("print")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option(
    "-n", "--limit", default=100, show_default=True, type=click.IntRange(1), help="Without ID, of so many jobs."
)
def print_(session: Session, ids: tuple[str, ...], limit: int) -> None:
    """Print the traces of jobs that have ended, newest first, or of those named."""
    client = session.client
    named = [session.job_id(each) for each in ids]
    for each in named or [job.id for job in client.jobs(_ENDED, limit=limit)]:
        click.echo(_line(client.job(each)), nl=False)


@traces.command()
@click.argument("file")
def append(session: Session, file: str) -> None:
    """Append the trace of each job to FILE as it ends, until Ctrl-C, across restarts of the daemon.

    Rotate the file by copying and truncating it.
    """
    try:
        fd = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _FILE_MODE)
        try:
            _mend(fd)
            for job in _ending(session.client):
                _write(fd, _line(job).encode())
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno == errno.ELOOP:
            hint = "name the file that it stands for"
            raise UsageError("bad_request", f"{file} is a symbolic link", hint=hint) from None
        raise disk_error(file, error) from None


def _mend(fd: int) -> None:
    """See that the file ends with a whole line: half a trace, which a full disk or a crash left, is cut off."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return
    size = start = os.fstat(fd).st_size
    tail = b""
    while start and b"\n" not in tail:
        start = max(0, start - _BLOCK_BYTES)
        tail = os.pread(fd, size - start, start)
    tail = tail[tail.rfind(b"\n") + 1 :]
    if tail.startswith(_BEGINNING) or (tail and _BEGINNING.startswith(tail)):
        os.ftruncate(fd, size - len(tail))
    elif tail:  # somebody else's
        durable.write_all(fd, b"\n")


def _write(fd: int, line: bytes) -> None:
    """Append a line, whole or not at all: at once, so that readers see whole ones."""
    before = os.fstat(fd).st_size
    try:
        durable.write_all(fd, line)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(fd, before)
        raise


def _ending(client: Client) -> Iterator[JobView]:
    """Each job that ends from now on, once, also those that end while the daemon is away from us.

    Which that are is told by what the first snapshot shows, and not by times: a clock may be set back.
    """
    first = True
    seen: dict[str, float] = {}  # a job that failed may be resumed, and end again
    for event in client.watch(patience_s=_PATIENCE_S):
        before = first and event.kind == "snapshot"
        first = before and not event.seq  # the last of a snapshot has a number
        job = job_of(event)
        if job is None or job.state not in _ENDED or seen.get(job.id) == job.updated:
            continue
        seen[job.id] = job.updated
        if len(seen) > _REMEMBERED:
            del seen[next(iter(seen))]
        if not before:
            yield job


def _line(job: JobView) -> str:
    return msgspec.json.encode(trace_of(job, socket.gethostname())).decode() + "\n"
