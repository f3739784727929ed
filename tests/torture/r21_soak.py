"""R21: ten thousand small jobs through one daemon, several at once; what its processes hold must not grow with them.

Each trial is a job: a get, a run or a put, which must end ``done``; what it brought is removed again. Every so many
jobs the memory, descriptors and threads of smpd, fetch and compute are read from /proc. The median of the last quarter
must not be above that of the second by more than the bound: in the first, caches fill that have an end (the history of
events, pages of SQLite, threads that wait for work).
"""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from box import Box
from scene import done, faults, workers

from smp_proto.control import GetSpec, LocalConfig, RunSpec
from smp_proto.sealed.bundle import BundleWriter
from smp_proto.sealed.keys import PublicIdentity
from smpctl import Client
from smpd.jobs.retention import PIECE
from torture import acts
from torture.harness import Experiment, Trial, Trials
from torture.planted import planting

CLIENTS = 4
OBJECTS = 8
KEPT = 1000  # ended jobs, so that some are forgotten on the way
SAMPLES = 200  # about
JUDGED_MIN = 8  # samples, below which quarters mean nothing
# Each of smpd's threads may keep an arena of the allocator. Over the 5000 jobs between two medians 8 MiB are 1.7 KB a job.
MEMORY_BYTES, MEMORY_SHARE = 8 << 20, 0.05
# Descriptors and threads: pools grow to what the jobs at work at once can use, and how many are is chance.
MORE = 2 * CLIENTS
CONFIG = {
    "fetch": {"slots": 4, "slot_bytes": 1 << 20, "processes": 1},
    "compute": {"slots": 2, "result_slots": 2, "device": "cpu", "processors": ["digest"]},
    "jobs": {"running_max": CLIENTS, "ended_kept": KEPT},
    "control": {"requests_per_s": 1e6, "requests_burst": 1_000_000},
}


class Held(NamedTuple):
    """What a process holds."""

    memory: float  # bytes
    descriptors: float
    threads: float


def held(pid: int) -> Held:
    """From proc(5); memory is all that is resident, rings included."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    descriptors = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return Held(int(status["VmRSS"].split()[0]) << 10, descriptors, int(status["Threads"]))


class Soak:
    """A daemon, two folders that are its remotes, and what was read of its processes."""

    def __init__(self, trials: Trials) -> None:
        self.folder = trials.folder
        self.lake, self.ward = self.folder / "lake", self.folder / "ward"
        self.box = Box(self.folder / "box", CONFIG)
        self.samples: dict[str, list[Held]] = {}
        self.pids: dict[str, int] = {}
        self._every = max(1, len(trials) // SAMPLES)
        self._finished = 0
        self._lock = threading.Lock()

    def begin(self, client: Client) -> None:
        """Remotes, objects, and a few jobs, with which the workers start."""
        public = PublicIdentity.parse(client.box_key().text)
        client.trust_add("person", acts.person().public.text())
        for name, folder in (("lake", self.lake), ("ward", self.ward)):
            folder.mkdir()
            client.remote_add(name, LocalConfig(str(folder)))
        for number in range(OBJECTS):
            sealed = bytearray()
            writer = BundleWriter(sealed.extend, sender=acts.person(), recipients=[public])
            writer.begin("scan.bin")
            writer.write(acts.body(number)[: 1000 * (number + 1)])
            writer.end()
            writer.finish()
            (self.lake / f"{number}.smp").write_bytes(sealed)
        (self.folder / "plain").write_bytes(acts.body(0)[:5000])
        for kind in KINDS.values():
            kind(self, client, 0, "first")
        self.pids = self._pids()
        self.samples = {role: [] for role in self.pids}

    def _pids(self) -> dict[str, int]:
        assert self.box.process
        found = {"smpd": self.box.process.pid}
        for role in ("fetch", "compute"):  # each remote has a fetch process
            found |= {f"{role} {n}": pid for n, pid in enumerate(sorted(workers(self.box, role)), 1)}
        return found

    # ── jobs ─────────────────────────────────────────────────────────────────────────────────────────────────

    def get(self, client: Client, number: int, _: str) -> None:
        """An object comes into the vault, and goes."""
        self._brought(client, GetSpec(f"lake:{number}.smp"))

    def run(self, client: Client, number: int, _: str) -> None:
        """A processor's result comes into the vault, and goes."""
        self._brought(client, RunSpec(f"lake:{number}.smp", "digest"))

    def _brought(self, client: Client, spec: GetSpec | RunSpec) -> None:
        view = done(client.wait(client.submit(spec).id))
        client.vault_remove(view.result.vault_id)

    def put(self, client: Client, _: int, name: str) -> None:
        """A file is sealed and arrives, and goes."""
        view = client.put([self.folder / "plain"], f"ward:{name}.smp", [acts.person().public.text()])
        done(client.wait(view.id))
        (self.ward / f"{name}.smp").unlink()

    def finished(self) -> None:
        """A job was done: perhaps it is time to look."""
        with self._lock:
            self._finished += 1
            if self._finished % self._every == 0:
                for role, pid in self.pids.items():
                    self.samples[role].append(held(pid))

    # ── the judgement ────────────────────────────────────────────────────────────────────────────────────────

    def check(self, trials: Trials) -> None:
        """Nothing grew, no worker was started anew, and the daemon found nothing wrong."""
        assert self._pids() == self.pids, "a worker was started anew"
        assert not faults(self.box), faults(self.box)[:3]
        grown = []
        for role, samples in self.samples.items():
            quarter = len(samples) // 4
            if len(samples) < JUDGED_MIN:
                continue
            early = Held(*map(median, zip(*samples[quarter : 2 * quarter], strict=True)))
            late = Held(*map(median, zip(*samples[-quarter:], strict=True)))
            bound = Held(max(MEMORY_BYTES, MEMORY_SHARE * early.memory), MORE, MORE)
            for name, first, before, after, more in zip(Held._fields, samples[0], early, late, bound, strict=True):
                unit = 1 << 20 if name == "memory" else 1
                values = " → ".join(f"{value / unit:.4g}" for value in (first, before, after))
                trials.figures[f"{role}, {name}{' in MiB' * (unit > 1)}: first, second and last quarter"] = values
                if after > before + more:
                    grown.append(f"{name} of {role}: {values}")
        assert not grown, grown

    def check_kept(self, trials: Trials) -> None:
        """Of the jobs no more than are to be kept are in the database that a stop leaves."""
        assert self.box.stop() == 0
        path = self.box.state / "smpd.db"
        with closing(sqlite3.connect(path)) as connection:
            (jobs,) = connection.execute("SELECT count(*) FROM jobs").fetchone()
        trials.figures["jobs left in the database"] = jobs
        trials.figures["database at the end, KiB"] = path.stat().st_size >> 10
        assert jobs <= KEPT + 2 * PIECE, jobs


KINDS: dict[str, Callable[[Soak, Client, int, str], None]] = {"get": Soak.get, "run": Soak.run, "put": Soak.put}


def run(trials: Trials) -> None:
    """All but the last job from several clients at once; after the last, the judgement."""
    soak = Soak(trials)
    numbers, last = iter(trials), len(trials) - 1
    taking = threading.Lock()
    left = [last]

    def take() -> Trial | None:
        with taking:
            left[0] -= 1
            return next(numbers) if left[0] >= 0 else None

    def work() -> None:
        with Client(str(soak.box.socket)) as client:
            while (trial := take()) is not None:
                with trial:
                    _job(soak, client, trial)

    try:
        soak.box.start()
        with Client(str(soak.box.socket)) as client:
            soak.begin(client)
            begun = time.monotonic()
            threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
            for each in threads:
                each.start()
            for each in threads:
                each.join()
            trials.figures["jobs per second"] = round(last / (time.monotonic() - begun), 1)
            for trial in numbers:
                with trial:
                    _job(soak, client, trial)
                    soak.check(trials)
                    soak.check_kept(trials)
    finally:
        soak.box.close()


def _job(soak: Soak, client: Client, trial: Trial) -> None:
    kind = trial.rng.choice(sorted(KINDS))
    KINDS[kind](soak, client, trial.rng.randrange(OBJECTS), str(trial.number))
    soak.finished()


def _planted(fault: str) -> Callable[[], AbstractContextManager[None]]:
    @contextmanager
    def plant() -> Iterator[None]:
        with planting(f"torture.faults.leaking:{fault}"):
            yield

    return plant


EXPERIMENT = Experiment(
    "R21",
    "a soak: small gets, runs and puts through one daemon, four at once",
    "every job done; memory, descriptors and threads of smpd, fetch and compute flat",
    10_000,
    60,
    run,
    {name: _planted(name) for name in ("descriptors", "memory", "threads")},
    40,
)
