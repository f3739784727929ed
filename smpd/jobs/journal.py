"""The jobs as they are on disk. Each change is one transaction, checked against the table of moves.

Object names occur only inside sealed columns. The order of jobs is the order of submission, and the wall clock is
written for display only. Progress of a running job, what it moved included, is kept in memory and written when the job
moves.
All calls block; asynchronous code goes through ``anyio.to_thread``.
"""

import contextlib
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from smp_proto.control import FINAL_STATES, AnyJobSpec, Priority, Result
from smp_proto.errors import DaemonError, ErrorBody, IntegrityError, NotFoundError, SmpError, StateError
from smpd.jobs.database import Database
from smpd.jobs.deliveries import Deliveries, Delivery
from smpd.jobs.endings import Endings
from smpd.jobs.job import Job, Progress, Source, new_job_id
from smpd.jobs.records import Records, unknown_job
from smpd.jobs.rows import INSERT, SELECT, UPDATE
from smpd.jobs.seal import StateSeal
from smpd.jobs.states import ENDED, Move, next_state
from smpd.jobs.timeline import Stages, added, left

# ``owner`` is compared row by row: a user's unfinished jobs are bounded by the limit that this is for.
_UNFINISHED = "SELECT count(*) FROM jobs WHERE owner=? AND state IN ('queued', 'waiting', 'running', 'paused')"
_SOURCE = "SELECT body FROM sources WHERE job=?"

_decode = msgspec.msgpack.decode


class Journal(Records):
    """The job table, and what is kept of each job; what only reads it is in :class:`Records`.

    Args:
        db: an open database.
        seal: seals specs, errors, results, sources and leaves.
        wall: the clock for what is displayed.

    Attributes:
        deliveries: where the results of these jobs go.
        endings: which of their ends the audit log does not tell of yet.
    """

    def __init__(self, db: Database, seal: StateSeal, *, wall: Callable[[], float] = time.time) -> None:
        super().__init__(db, seal)
        self._seal = seal
        self._wall = wall
        self.deliveries = Deliveries(db, seal)
        self.endings = Endings(db)
        self._untried: set[str] = set()  # added here with nothing kept for them, and never started

    def add(
        self,
        spec: AnyJobSpec,
        *,
        owner: str,
        key: str,
        priority: Priority = "normal",
        job_id: str = "",
        unfinished_max: int = 0,
        source: Source | None = None,
    ) -> tuple[Job, bool]:
        """Keep a new job, queued. The same ``owner`` and ``key`` again return the job that is there.

        Args:
            spec: what to do.
            owner: ``uid:label``.
            key: the caller's idempotency key.
            priority: its place in the queue.
            job_id: from :func:`new_job_id`, where something on disk was named by it before; made here when empty.
            unfinished_max: how many jobs of this owner may be unfinished, this one included; 0 is no limit.
            source: what it is pinned to from the first: a job that needs one is never there without it.

        Returns:
            The job, and whether it was created.

        Raises:
            StateError: ``exists``, when the key was used for another spec.
            DaemonError: ``too_many_jobs``.
        """
        now = self._wall()
        job_id = job_id or new_job_id(now)
        token = self._seal.digest("job key", owner, key)
        with self._db.transaction() as connection:
            found = connection.execute(f"{SELECT} WHERE token=?", (token,)).fetchone()
            if found is not None:
                job = self._opened(found)
                if job.spec != spec:
                    raise StateError("exists", f"this key was used before, for job {job.id}", hint="use another key")
                return job, False
            if unfinished_max and connection.execute(_UNFINISHED, (owner,)).fetchone()[0] >= unfinished_max:
                message = f"{owner} has {unfinished_max} unfinished jobs, which is the most allowed"
                raise DaemonError("too_many_jobs", message, hint="wait until some have ended, or cancel some")
            job = Job(
                id=job_id,
                number=0,
                spec=spec,
                state="queued",
                priority=priority,
                owner=owner,
                created=now,
                updated=now,
            )
            number = connection.execute(INSERT, self._jobs.whole(job, spec, token)).lastrowid or 0
            if source is not None:
                self._pin(connection, job_id, source)
        if source is None:
            self._untried.add(job_id)
        return msgspec.structs.replace(job, number=number), True

    def start(self, job_id: str, room: Callable[[Job], SmpError | None]) -> Job | SmpError:
        """Move a job to ``running``, unless ``room`` says why it had better not. Errors as :meth:`move`."""
        with self._db.transaction() as connection:
            job = self._find(connection, job_id)
            short = room(job)
            if short is not None:
                return short
            moved = self._move(connection, job, "start", first=job_id in self._untried)
        self._untried.discard(job_id)
        return moved

    def move(
        self,
        job_id: str,
        move: Move,
        *,
        error: ErrorBody | None = None,
        result: Result | None = None,
        delay: float = 0.0,
        due: float = 0.0,
        counted: bool = True,
    ) -> Job:
        """Move a job along the table of states.

        Args:
            job_id: which job.
            move: which move.
            error: why; without it an earlier error is forgotten.
            result: what was delivered; without it an earlier result is forgotten.
            delay: for ``retry`` and ``hold``, seconds to wait.
            due: for ``retry`` and ``hold``, when it ends on the monotonic clock.
            counted: for ``retry``, whether the attempt that ends counts.

        A move to the end (``done``, ``cancelled``) also deletes what was kept for resuming, and what was quarantined. A
        final state is noted in :attr:`endings`.

        Raises:
            StateError: ``wrong_state``.
            NotFoundError: ``no_such_job``.
        """
        facts = {"error": error, "result": result, "delay": delay, "due": due}
        with self._db.transaction() as connection:
            moved = self._move_in(connection, job_id, move, counted=counted, **facts)
        return moved()

    def succeed_in(self, connection: sqlite3.Connection, job_id: str, result: Result) -> Callable[[], Job]:
        """Move a job to ``done`` within a transaction; what is returned is to be called once that is committed.

        So what a job brought is there, and the job done, at the same moment, and on the disk with one sync. Errors as
        :meth:`move`.
        """
        return self._move_in(connection, job_id, "succeed", result=result)

    def _move_in(self, connection: sqlite3.Connection, job_id: str, move: Move, **facts: Any) -> Callable[[], Job]:
        moved = self._move(connection, self._find(connection, job_id), move, **facts)
        if moved.state in ENDED:
            connection.execute("DELETE FROM ranges WHERE job=?", (job_id,))
            connection.execute("DELETE FROM sources WHERE job=?", (job_id,))
            connection.execute("DELETE FROM quarantine WHERE job=?", (job_id,))
            # What a cancelled upload left behind is still to be cleared away.
            left = "DELETE FROM deliveries WHERE job=? AND (?='done' OR NOT left)"
            connection.execute(left, (job_id, moved.state))
        ending = self.endings.add(connection, moved) if moved.state in FINAL_STATES else None

        def committed() -> Job:
            if ending is not None:
                self.endings.noted(ending)
            if moved.state != "running":
                self._live.pop(job_id, None)
            self._untried.discard(job_id)
            return moved

        return committed

    def _move(self, connection: sqlite3.Connection, job: Job, move: Move, *, counted: bool = True, **facts: Any) -> Job:
        attempt = {"start": job.attempt + 1, "resume": 0, "recover": max(0, job.attempt - 1)}.get(move, job.attempt)
        now = self._wall()
        fresh = {"delay": 0.0, "due": 0.0, "error": None, "result": None, "first": False}  # unless it is said again
        moved = msgspec.structs.replace(
            job,
            state=next_state(job.state, move, job.id),
            attempt=attempt if counted else max(0, attempt - 1),
            updated=now,
            stages=self._left(job, now),
            **(fresh | facts),
        )
        self._write(connection, moved)
        return moved

    def _left(self, job: Job, now: float) -> Stages:
        if job.id in self._live and job.stages:  # its runner has told, as of a moment ago
            return added(job.stages, job.stages[-1].name, 0.0, now - job.created)
        return left(job.stages, job.state, job.updated - job.created, now - job.created)

    def recover(self) -> tuple[str, ...]:
        """Put every job that was running when the daemon died back into the queue; return their ids.

        A crash is not the job's fault, so the attempt does not count.
        """
        ids = [str(row[0]) for row in self._db.rows("SELECT id FROM jobs WHERE state='running' ORDER BY number")]
        recovered = []
        for job_id in ids:
            with contextlib.suppress(IntegrityError, NotFoundError):  # a damaged one stays as it is, also one by its id
                recovered.append(self.move(job_id, "recover").id)
        return tuple(recovered)

    def keep_progress(self, job_id: str) -> None:
        """Write down how far a running job is that is going to be recovered; it is no longer tracked then."""
        with self._db.transaction() as connection:
            self._write(connection, self._find(connection, job_id))
        self._live.pop(job_id, None)

    def track(self, job_id: str, progress: Progress) -> None:
        """Show this progress with the job until it moves on."""
        self._live[job_id] = progress

    def keep_result(self, job_id: str, sealed: Source, delivery: Delivery | None = None) -> None:
        """Note that a job's results are sealed in the spool, and with that how far their delivery is.

        Replaces what the job was pinned to.
        """
        with self._db.transaction() as connection:
            _require(connection, job_id)
            self._pin(connection, job_id, sealed)
            if delivery is not None:
                self.deliveries.keep_in(connection, job_id, delivery)

    def result(self, job_id: str) -> Result | None:
        """What an earlier attempt sealed and did not yet deliver."""
        source = self.source(job_id)
        return _decode(source.envelope, type=Result) if source and source.envelope is not None else None

    def pin(self, job_id: str, pin: str, size: int) -> str:
        """Pin a job to an object unless it is pinned, and return the pin that holds.

        Ranges without a pin belong to an object that nobody knows any more: they are forgotten.
        """
        with self._db.transaction() as connection:
            pinned = self._source(job_id, connection.execute(_SOURCE, (job_id,)).fetchall())
            if pinned is not None:
                return pinned.pin
            _require(connection, job_id)
            connection.execute("DELETE FROM ranges WHERE job=?", (job_id,))
            self._pin(connection, job_id, Source(pin, size))
        return pin

    def _pin(self, connection: sqlite3.Connection, job_id: str, source: Source) -> None:
        body = self._seal.seal(msgspec.msgpack.encode(source), f"job {job_id} source")
        connection.execute("INSERT OR REPLACE INTO sources (job, body) VALUES (?, ?)", (job_id, body))

    def source(self, job_id: str) -> Source | None:
        """Return what a job is pinned to, None before it is. A damaged record counts as none: it is asked for again."""
        return self._source(job_id, self._db.rows(_SOURCE, (job_id,)))

    def _source(self, job_id: str, rows: Sequence[tuple[Any, ...]]) -> Source | None:
        if not rows:
            return None
        try:
            return _decode(self._seal.open(rows[0][0], f"job {job_id} source"), type=Source)
        except IntegrityError:
            return None

    def mark_ranges(self, job_id: str, ranges: Mapping[int, bytes]) -> None:
        """Record spooled ranges: the leaves (digests) of their segments, by the first one. Durable on return."""
        rows = [(job_id, i, self._seal.seal(leaves, _marked(job_id, i))) for i, leaves in ranges.items()]
        with self._db.transaction() as connection:
            _require(connection, job_id)
            connection.executemany("INSERT OR REPLACE INTO ranges (job, range, leaves) VALUES (?, ?, ?)", rows)

    def ranges(self, job_id: str) -> dict[int, bytes]:
        """Return what :meth:`mark_ranges` recorded. A record that is damaged is left out: it is fetched again.

        So are those of versions in which ranges had numbers.
        """
        found = {}
        for first, leaves in self._db.rows("SELECT range, leaves FROM ranges WHERE job=? ORDER BY range", (job_id,)):
            try:
                found[first] = self._seal.open(leaves, _marked(job_id, first))
            except IntegrityError:
                continue
        return found

    def give_up_ranges(self, job_id: str) -> bool:
        """Forget what was spooled of a job that failed, but not what it is pinned to.

        Returns:
            Whether it is failed; in every other state nothing is done.

        Raises:
            NotFoundError: ``no_such_job``.
            IntegrityError: its record is damaged.
        """
        with self._db.transaction() as connection:
            if failed := self._find(connection, job_id).state == "failed":
                connection.execute("DELETE FROM ranges WHERE job=?", (job_id,))
        return failed

    def clear_ranges(self, job_id: str) -> None:
        """Forget what was spooled and what it was pinned to: the job starts over."""
        with self._db.transaction() as connection:
            connection.execute("DELETE FROM ranges WHERE job=?", (job_id,))
            connection.execute("DELETE FROM sources WHERE job=?", (job_id,))

    def _find(self, connection: sqlite3.Connection, job_id: str) -> Job:
        row = connection.execute(f"{SELECT} WHERE id=?", (job_id,)).fetchone()
        if row is None:
            raise unknown_job(job_id)
        return self._opened(row)

    def _write(self, connection: sqlite3.Connection, job: Job) -> None:
        connection.execute(UPDATE, (*self._jobs.changing(job), job.id))


def _require(connection: sqlite3.Connection, job_id: str) -> None:
    """See that there is such a job; its record need not be opened for that."""
    if connection.execute("SELECT 1 FROM jobs WHERE id=?", (job_id,)).fetchone() is None:
        raise unknown_job(job_id)


def _marked(job_id: str, first: int) -> str:
    return f"job {job_id} segments from {first}"
