"""The journal against a model, in random order, with crashes (R13)."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from smp_proto.control import GetSpec, Result
from smp_proto.errors import ErrorBody, StateError
from smpd.jobs.database import Database
from smpd.jobs.job import Progress
from smpd.jobs.journal import Journal
from smpd.jobs.seal import StateSeal
from smpd.jobs.states import MOVES, STATES

ERROR = ErrorBody("remote_busy", "later")


class JournalModel(RuleBasedStateMachine):
    """What a dictionary says must be what the file says."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.copy = 0
        self.wall = 0.0
        self.expected: dict[str, dict] = {}
        self.keys: dict[str, str] = {}
        self.open("smp.db")

    def open(self, name: str) -> None:
        self.path = self.folder / name
        self.db = Database(str(self.path))
        self.journal = Journal(self.db, StateSeal(bytearray(32)), wall=lambda: self.wall)

    @rule(target=jobs, key=st.integers(0, 20))
    def submit(self, key: int) -> str:
        job, created = self.journal.add(GetSpec(f"a:{key}"), owner="1:x", key=str(key))
        assert created == (str(key) not in self.keys)
        assert self.keys.setdefault(str(key), job.id) == job.id
        if created:
            self.expected[job.id] = {"state": "queued", "attempt": 0, "ranges": {}, "moved": 0}
        return job.id

    @rule(job=jobs, move=st.sampled_from(sorted({move for moves in MOVES.values() for move in moves})))
    def move(self, job: str, move: str) -> None:
        model = self.expected[job]
        to = MOVES[model["state"]].get(move)
        facts = {"error": ERROR} if move in ("hold", "retry", "fail", "quarantine") else {}
        if move == "succeed":
            facts = {"result": Result(vault_id="v")}
        if to is None:
            with pytest.raises(StateError):
                self.journal.move(job, move, **facts)
            return
        if move == "succeed":
            progress = Progress(self.journal.get(job), lambda: None)
            progress.transfer.fetched_bytes = 7
            self.journal.track(job, progress)
        moved = self.journal.move(job, move, **facts)
        model["state"] = to
        model["attempt"] = {"start": model["attempt"] + 1, "resume": 0}.get(move, model["attempt"])
        if move == "recover":
            model["attempt"] = max(0, model["attempt"] - 1)
        if move == "succeed":
            model["moved"] += 7
        if to in ("done", "cancelled"):
            model["ranges"] = {}
        assert (moved.error is not None) == (to in ("waiting", "failed", "quarantined"))
        assert (moved.result is not None) == (to == "done")

    @rule(job=jobs, index=st.integers(0, 5), leaves=st.binary(min_size=1, max_size=40))
    def mark(self, job: str, index: int, leaves: bytes) -> None:
        self.journal.mark_ranges(job, {index: leaves})
        self.expected[job]["ranges"][index] = leaves

    @rule(job=jobs)
    def start_over(self, job: str) -> None:
        self.journal.clear_ranges(job)
        self.expected[job]["ranges"] = {}

    @rule(jump=st.sampled_from([-3.2e8, -3600.0, 3600.0, 3.2e8]))
    def clock_jumps(self, jump: float) -> None:
        self.wall += jump

    @rule()
    def crash(self) -> None:
        """The files as they are now, without closing, are what a killed process leaves."""
        self.copy += 1
        for suffix in ("", "-wal"):
            if (old := Path(f"{self.path}{suffix}")).exists():
                shutil.copyfile(old, self.folder / f"crash{self.copy}.db{suffix}")
        self.db.close()
        self.open(f"crash{self.copy}.db")
        recovered = self.journal.recover()
        assert set(recovered) == {job for job, model in self.expected.items() if model["state"] == "running"}
        for job in recovered:
            model = self.expected[job]
            model.update(state="queued", attempt=max(0, model["attempt"] - 1))

    @invariant()
    def file_says_what_the_model_says(self) -> None:
        found = self.journal.list()
        assert [job.id for job in found] == list(self.expected)[::-1]
        for job in found:
            model = self.expected[job.id]
            assert (job.state, job.attempt) == (model["state"], model["attempt"])
            assert job.transfer.fetched_bytes == model["moved"]
            assert self.journal.ranges(job.id) == model["ranges"]
        states = [model["state"] for model in self.expected.values()]
        assert self.journal.counts() == {state: states.count(state) for state in STATES}

    def teardown(self) -> None:
        self.db.close()
        shutil.rmtree(self.folder)


TestJournalModel = JournalModel.TestCase
TestJournalModel.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
