"""R7: somebody fills the disk, while the spool, the journal, the audit log or the vault is to be written.

One daemon on a tmpfs of 24 MiB lives through all trials. Somebody else fills the disk at the moment that the trial is
about, now and then also what the reserve gave way. After each trial everything must go on by itself, and what was
done must be what was recorded.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from box import Box
from refusals import PLAIN
from scene import Following, client
from small_disk import Disk, no_small_disk, small_disk

from smp_proto.audit.note import VerifierKey
from smp_proto.audit.verify import verify_log
from smp_proto.control import GetSpec, JobView, LocalConfig
from smp_proto.errors import SmpError
from smp_proto.sealed.bundle import BundleWriter
from smp_proto.sealed.keys import Identity, PublicIdentity
from smpctl import Client
from torture.harness import Experiment, Trial, Trials
from torture.planted import planting

MIB = 1 << 20
RESERVE = 8 * MIB
WAIT_S = 60.0
KINDS = ("spool", "journal", "audit", "vault")
PASSING = {"disk_full", "audit_unwritable"}


class Scene:
    """A box on a small disk, and what was done on it."""

    def __init__(self, machine: Box, disk: Disk, caller: Client, following: Following) -> None:
        self.machine = machine
        self.disk = disk
        self.caller = caller
        self.following = following
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.waits = 0

    def act(self, event: str, call: Callable[[], object]) -> object:
        """Do something that is audited; None when it was refused for want of space."""
        try:
            found = call()
        except SmpError as error:
            if error.code not in PASSING or not error.hint or not error.retryable:
                raise
            self.refused[error.code] += 1
            return None
        self.done[event] += 1
        return found or True

    def submit(self) -> JobView | None:
        """A job, if it is accepted."""
        found = self.act("job.submit", lambda: self.caller.submit(GetSpec("disk:a.smp")))
        return found if isinstance(found, JobView) else None

    def waits_for_space(self, job: str) -> None:
        """A job waits, says why, and burns no attempt."""
        view = self.following.until(job, lambda view: view.state == "waiting")
        assert view.error is not None
        assert view.error.code in PASSING, view.error
        assert view.attempt == 0
        self.waits += 1

    def goes_on(self, jobs: list[str]) -> None:
        """With space, and without anybody's help, every job ends well and the reserve is made whole again."""
        self.disk.clear()
        for job in jobs:
            view = self.following.final(job)
            assert view.state == "done", view.error
            assert view.result
            self.remove(view.result.vault_id)
        deadline = time.monotonic() + WAIT_S
        while True:
            status = self.caller.status()
            if status.audit_ok and status.reserve_held_bytes == RESERVE:
                break
            assert time.monotonic() < deadline, "it did not go on by itself"
            time.sleep(0.02)
        assert status.short_jobs == 0

    def remove(self, item: str) -> None:
        """With room, an item goes."""
        self.caller.vault_remove(item)
        self.done["vault.remove"] += 1

    def check(self) -> None:
        """Nothing was done without its record, and the log verifies."""
        _, proof = self.caller.audit_read(0)
        lines = [line.rstrip(b"\n") + b"\n" for line in self.caller.audit_lines()]
        notes = [note.encode() for note in proof.checkpoints]
        verify_log(lines, notes, [VerifierKey(proof.origin, proof.public_key)])
        records = [msgspec.json.decode(line) for line in lines]
        recorded = Counter(record["event"] for record in records)
        for event, count in self.done.items():
            assert recorded[event] >= count, f"{count} times {event}, {recorded[event]} records of it"
        stored = {record["job"] for record in records if record["event"] == "object.store"}
        opened = {record["job"] for record in records if record["event"] == "object.open"}
        finished = {job.id for job in self.caller.jobs(("done",), limit=1000)}
        assert finished <= stored & opened
        files = {path.stem for path in (self.machine.state / "vault" / "objects").iterdir()}
        assert files == {item.id for item in self.caller.vault()}


def _spool(scene: Scene, trial: Trial) -> list[str]:
    """Less is free than the object takes."""
    scene.disk.leave(trial.rng.randrange(0, 2 * MIB))
    job = scene.submit()
    assert job, "with the reserve there is room to accept a job"
    scene.waits_for_space(job.id)
    assert scene.caller.status().short_jobs == 1
    return [job.id]


def _journal(scene: Scene, trial: Trial) -> list[str]:
    """Nothing is free for the journal but what the reserve gives, and somebody takes of that too."""
    jobs = []
    for _ in range(trial.rng.randrange(2, 8)):
        scene.disk.leave(0)
        if job := scene.submit():
            jobs.append(job.id)
        scene.caller.status()
    if jobs and trial.rng.random() < 0.5 and scene.act("job.cancel", lambda: scene.caller.cancel(jobs[0])):
        del jobs[0]
    return jobs


def _audit(scene: Scene, trial: Trial) -> list[str]:
    """Everything is taken until the log cannot grow: then nothing is opened, and nothing deleted."""
    item = _kept(scene)
    for _ in range(50):
        scene.disk.leave(0)
        if not scene.act("vault.index", lambda: scene.caller.vault_entries(item)):
            break
    else:
        raise AssertionError("the disk never filled")
    if not scene.act("vault.remove", lambda: scene.caller.vault_remove(item)):
        assert item in [each.id for each in scene.caller.vault()]
        scene.disk.clear()
        scene.goes_on([])
        scene.remove(item)
    return []


def _vault(scene: Scene, trial: Trial) -> list[str]:
    """The disk fills while a job brings an object; what a person deletes gives it room."""
    item, job = _kept(scene), scene.submit()
    assert job
    if trial.rng.random() < 0.7:
        scene.following.until(job.id, lambda view: view.state == "running")
    scene.disk.leave(0)
    for _ in range(20):  # more records than fit into the page that the log has begun
        assert scene.act("vault.index", lambda: scene.caller.vault_entries(item)), "what is full cannot be looked at"
    assert scene.act("vault.remove", lambda: scene.caller.vault_remove(item)), "nothing can be deleted"
    assert item not in [each.id for each in scene.caller.vault()]
    return [job.id]


def _kept(scene: Scene) -> str:
    job = scene.submit()
    assert job
    view = scene.following.final(job.id)
    assert view.state == "done", view.error
    assert view.result
    return view.result.vault_id


TRIES: dict[str, Callable[[Scene, Trial], list[str]]] = {
    "spool": _spool,
    "journal": _journal,
    "audit": _audit,
    "vault": _vault,
}


@contextlib.contextmanager
def _scene(folder: Path) -> Iterator[Scene]:
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(small_disk(folder / "disk", 24 * MIB))
        config = {
            "paths": {"state": str(disk.path / "state")},
            "space": {"reserve_bytes": RESERVE},
            "fetch": {"slots": 2, "slot_bytes": MIB, "processes": 1},
            "audit": {"checkpoint_s": 0.1},
            "compute": {"processors": []},
        }
        machine = Box(folder / "box", config)
        machine.state = disk.path / "state"
        stack.callback(machine.close)
        machine.start()
        caller = stack.enter_context(client(machine))
        stored, sender = folder / "stored", Identity.generate("hospital")
        stored.mkdir()
        sealed = bytearray()
        own = PublicIdentity.parse(caller.box_key().text)
        writer = BundleWriter(sealed.extend, sender=sender, recipients=[own])
        writer.begin("a.bin")
        writer.write(PLAIN)
        writer.end()
        writer.finish()
        (stored / "a.smp").write_bytes(sealed)
        caller.trust_add("hospital", sender.public.text())
        caller.remote_add("disk", LocalConfig(str(stored)))
        yield Scene(machine, disk, caller, stack.enter_context(Following(machine)))
        assert machine.stop() == 0


def run(trials: Trials) -> None:
    """All trials, on one box."""
    with _scene(trials.folder) as scene:
        for trial in trials:
            with trial:
                try:
                    jobs = TRIES[KINDS[trial.number % len(KINDS)]](scene, trial)
                    scene.goes_on(jobs)
                    scene.check()
                finally:
                    scene.disk.clear()
        trials.figures["acts refused"] = ", ".join(f"{n} {code}" for code, n in scene.refused.items())
        trials.figures["jobs that waited"] = scene.waits


EXPERIMENT = Experiment(
    "R7",
    "disk full at spool, journal, audit, vault: ten times each",
    "no open or delete without its record; smpctl answers and frees space; all goes on when space returns",
    trials=40,
    short=4,
    run=run,
    plants={
        "no reserve": lambda: planting("torture.faults.space:no_reserve"),
        "unrecorded": lambda: planting("torture.faults.space:unrecorded"),
        "impatient": lambda: planting("torture.faults.space:impatient"),
    },
    planted_trials=4,
    missing=no_small_disk,
)
