"""A real scheduler on a real journal under the keys of a real box, in this process; clocks that a test moves, crashes."""

import contextlib
import random
import shutil
from pathlib import Path
from typing import Any

import anyio

from smp_proto import durable
from smp_proto.control import GetSpec, Priority, Result
from smp_proto.errors import RemoteError
from smp_proto.sealed.keys import PublicIdentity
from smpd.config import Keys
from smpd.jobs.database import Database
from smpd.jobs.job import Job, Progress
from smpd.jobs.journal import Journal
from smpd.jobs.scheduler import Scheduler
from smpd.jobs.seal import StateSeal
from smpd.vault.keys import load_keys
from smpd.vault.rotation import Rotation
from torture.harness import replaced

INFO = b"sealed for the box"
STEPS = 6  # files that a rotation writes


class Clocks:
    """The wall clock, and the one that only goes forward."""

    def __init__(self) -> None:
        self.wall = 1_800_000_000.0
        self.forward = 100.0

    def asked(self) -> float:
        """What the scheduler is told."""
        return self.forward


class Died(BaseException):
    """The process would be gone by now."""


class Bench:
    """Jobs that fail as often as the test says; a crash leaves the files as they are."""

    def __init__(self, folder: Path, clocks: Clocks, seed: int) -> None:
        self.folder, self.clocks, self.seed = folder, clocks, seed
        self.started: list[str] = []
        self.failing: dict[str, int] = {}  # attempts of a job that are to fail
        self.copies = 0
        self.path = folder / "smp.db"
        self.keys_folder = folder / "keys"
        self.keys_folder.mkdir(0o700)
        self.announced: dict[PublicIdentity, bytes] = {}  # each key that senders were given, and what one sealed for it
        self.open()

    def open(self) -> None:
        """Open what is on the disk, as a daemon does."""
        self.keys = load_keys(str(self.keys_folder), Keys())
        self.announce()
        self.db = Database(str(self.path))
        self.journal = Journal(self.db, StateSeal(self.keys.state), wall=lambda: self.clocks.wall)
        self.scheduler = Scheduler(
            self.journal,
            self._run,
            running_max=1,
            attempts=100,
            backoff_base_s=2.0,
            backoff_max_s=60.0,
            on_change=lambda *_: None,
            on_final=self._final,
            on_fault=lambda *_: None,
            clock=self.clocks.asked,
            rng=random.Random(self.seed),
        )

    def crash(self) -> None:
        """Go on from a copy of the files as they are: what a killed process leaves."""
        self.copies += 1
        copy = self.folder / f"crash-{self.copies}.db"
        for suffix in ("", "-wal"):
            if (old := Path(f"{self.path}{suffix}")).exists():
                shutil.copyfile(old, f"{copy}{suffix}")
        self.db.close()
        self.keys.wipe()
        self.path = copy
        self.open()

    def announce(self) -> None:
        """Have somebody seal for the box's key as it is now."""
        public = self.keys.identity.public
        if public not in self.announced:
            self.announced[public] = public.wrap(bytearray(b"a file key"), INFO)

    def rotate(self, rng: random.Random) -> bool:
        """Give the box a new key; True if it died in the middle, with some of the files written."""
        deadly, publish = rng.choice((0, rng.randrange(2 * STEPS))), durable.publish
        calls = 0

        def dying(*arguments: Any, **more: Any) -> None:
            nonlocal calls
            calls += 2
            if calls >= deadly > 0:
                if deadly % 2:  # once it has its name
                    publish(*arguments, **more)
                raise Died
            publish(*arguments, **more)

        with contextlib.suppress(Died), replaced(durable, "publish", dying):
            with Rotation(str(self.keys_folder), Keys(), self.keys) as rotation:
                rotation.commit()
                assert rotation.finish() == []
            self.announce()
            return False
        return True

    def check_keys(self) -> None:
        """Whatever was sealed for one of the box's keys opens, and nothing was found to be damaged."""
        assert self.keys.mended == []
        by_key = {identity.public: identity for identity in self.keys.identities}
        assert self.announced.keys() <= by_key.keys(), "a key that senders were given is gone"
        for public, wrapped in self.announced.items():
            assert by_key[public].unwrap(wrapped, INFO) == b"a file key"
        assert self.keys.identity.sign(b"x")

    def add(self, name: str, priority: Priority = "normal", fails: int = 0) -> str:
        """A new job, some of whose attempts fail in a way that may pass."""
        job, created = self.journal.add(GetSpec(f"a:{name}"), owner="1:x", key=name, priority=priority)
        if created:
            self.failing[job.id] = fails
            self.scheduler.submitted(job)
        return job.id

    async def _run(self, job: Job, _: Progress) -> Result:
        self.started.append(job.id)
        if self.failing.get(job.id, 0) > 0:
            self.failing[job.id] -= 1
            raise RemoteError("remote_unreachable", "not now")
        return Result(vault_id="v")

    async def _final(self, _: Job) -> None:
        return None

    async def settle(self) -> None:
        """Let the scheduler run until nothing can go on before time passes."""
        async with anyio.create_task_group() as group:
            group.start_soon(self.scheduler.run)
            quiet = 0
            while quiet < 3:
                before = self.journal.counts(), len(self.started)
                self.scheduler.poke()
                await anyio.sleep(0.01)
                counts = self.journal.counts()
                due = [job for job in self.journal.list(("waiting",)) if job.due <= self.clocks.asked()]
                busy = counts["queued"] or counts["running"] or due
                quiet = quiet + 1 if before == (counts, len(self.started)) and not busy else 0
            group.cancel_scope.cancel()

    def state(self, job_id: str) -> str:
        """As the journal has it."""
        return self.journal.get(job_id).state
