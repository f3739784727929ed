"""The jobs on disk as they are read: one, many of them, and how many there are. All calls block."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_args

from smp_proto.control import JobState, JobView, Priority
from smp_proto.errors import IntegrityError, NotFoundError
from smpd.jobs.database import Database
from smpd.jobs.job import Job, Progress, view
from smpd.jobs.rows import NUMBER, SELECT, JobRows
from smpd.jobs.seal import StateSeal
from smpd.jobs.states import ENDED, STATES

_PAGE = 500


class Records:
    """The table of the jobs.

    Args:
        db: where they are kept.
        seal: seals their specs and their ends.
    """

    def __init__(self, db: Database, seal: StateSeal) -> None:
        self._db = db
        self._jobs = JobRows(seal)
        self._live: dict[str, Progress] = {}  # of those that run

    def get(self, job_id: str) -> Job:
        """Return one job.

        Raises:
            NotFoundError: ``no_such_job``.
            IntegrityError: ``corrupt``, when its record is damaged.
        """
        rows = self._db.rows(f"{SELECT} WHERE id=?", (job_id,))
        if not rows:
            raise unknown_job(job_id)
        return self._opened(rows[0])

    def list(
        self,
        states: Iterable[JobState] = (),
        limit: int = -1,
        wanted: Callable[[Job], bool] | None = None,
        uid: int | None = None,
        begins: str = "",
    ) -> Sequence[Job]:
        """Return jobs in these states (none given: in any), newest first. Damaged records are left out.

        Args:
            states: which.
            limit: how many at most; -1 is all.
            wanted: whether one is to be among them.
            uid: of whose alone; the others' are not opened.
            begins: how their ids begin.
        """
        if wanted is None:
            return self._read(self._rows(states, limit, uid=uid, begins=begins))[0]
        found: list[Job] = []
        before = 0
        while rows := self._rows(states, _PAGE, before, uid, begins):
            found += filter(wanted, self._read(rows)[0])
            before = rows[-1][NUMBER]
            if 0 <= limit <= len(found):
                break
        return found[:limit] if limit >= 0 else found

    def _rows(
        self, states: Iterable[JobState], limit: int, before: int = 0, uid: int | None = None, begins: str = ""
    ) -> Sequence[tuple[Any, ...]]:
        chosen = tuple(states) or STATES
        marks = ",".join("?" * len(chosen))
        # A label ends with the number, whatever the name is.
        whose, label = ("", ()) if uid is None else ("AND owner LIKE ?", (f"%({uid})",))
        # The plus signs have ids looked up in their index, and the few that are found sorted.
        which, span = ("AND id>=? AND id<?", (begins, begins + chr(sys.maxunicode))) if begins else ("", ())
        plus = "+" if begins else ""
        sql = f"{SELECT} WHERE {plus}state IN ({marks}) AND (?=0 OR {plus}number<?) {whose} {which}"
        sql += f" ORDER BY {plus}number DESC LIMIT ?"
        return self._db.rows(sql, (*chosen, before, before, *label, *span, limit))

    def ids(self) -> frozenset[str]:
        """Return the ids of all jobs, damaged ones too."""
        return frozenset(str(row[0]) for row in self._db.rows("SELECT id FROM jobs"))

    def damaged(self) -> tuple[str, ...]:
        """Return the ids of jobs whose record does not open."""
        rows = self._db.pages(SELECT, NUMBER)
        return tuple(each for row in rows for each in self._read((row,))[1])

    @property
    def waiting(self) -> int:
        """How many changes wait for the disk."""
        return self._db.waiting

    def counts(self) -> dict[str, int]:
        """Return how many jobs are in each state; every state is named."""
        found = dict(self._db.rows("SELECT state, count(*) FROM jobs GROUP BY state"))
        return {state: found.get(state, 0) for state in STATES}

    def unfinished(self) -> Mapping[tuple[str, str], int]:
        """Return how many jobs there are of each state that is not the end, and each priority."""
        states = tuple(state for state in STATES if state not in ENDED)
        marks = ",".join("?" * len(states))
        sql = f"SELECT state, priority, count(*) FROM jobs WHERE state IN ({marks}) GROUP BY state, priority"  # noqa: S608
        found = {(state, priority): count for state, priority, count in self._db.rows(sql, states)}
        return {(state, each): found.get((state, each), 0) for state in states for each in get_args(Priority)}

    def needs_spool(self, job_id: str) -> bool:
        """Whether there is a job that what lies in the spool may be of use to; a damaged one counts."""
        try:
            return self.get(job_id).state not in ENDED
        except NotFoundError:
            return False
        except IntegrityError:
            return True

    def view(self, job: Job) -> JobView:
        """Return the job as shown."""
        return view(job)

    def _read(self, rows: Iterable[tuple[Any, ...]]) -> tuple[Sequence[Job], Sequence[str]]:
        """Split rows into jobs and the ids of damaged ones: one bad record must not hide the others."""
        jobs, damaged = [], []
        for row in rows:
            try:
                jobs.append(self._opened(row))
            except IntegrityError:
                damaged.append(str(row[0]))
        return jobs, damaged

    def _opened(self, values: tuple[Any, ...]) -> Job:
        job = self._jobs.job(values)
        live = self._live.get(job.id)
        return live.of(job) if live else job


def unknown_job(job_id: str) -> NotFoundError:
    """The error for an id that no job has, or none that the asker may see."""
    return NotFoundError("no_such_job", f"there is no job {job_id}", hint="smpctl jobs lists them")
