"""A box that is killed, what it is given to do meanwhile, and what must hold afterwards (R1, R2, R5)."""

import contextlib
import ctypes
import json
import os
import random
import signal
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from box import Box
from counting_s3 import CountingS3, counting_s3
from scene import sha256, spooled

from smp_proto.control import GetSpec, JobSpec, JobView, LocalConfig, RunSpec, SyncSpec
from smp_proto.errors import DaemonError
from smp_proto.sealed.bundle import BundleReader, BundleWriter
from smp_proto.sealed.keys import Identity, PublicIdentity
from smpctl import Client
from torture.faults.steps import Switch
from torture.planted import planting

SMALL_BYTES = 5_000
TRIAL_MAX_S = 60.0
CROWD, CROWD_OBJECTS = "crowd/", 600  # so many that processes open them
SYNC, WATCHED, RESULTS = "watch", "inbox/", "results/"
LARGE_BYTES = 9 << 20  # of several ranges, and as a result of several parts
CONFIG: Mapping[str, Mapping[str, Any]] = {
    "fetch": {"processes": 1, "slots": 4, "slot_bytes": 1 << 20, "connections": 4},
    "compute": {"slots": 2, "result_slots": 2},
    "jobs": {"backoff_base_s": 0.01, "backoff_max_s": 0.05, "attempts": 8},
}


class Arrivals:
    """Counts what came to be under a name in any of some folders, by renaming or linking (inotify(7))."""

    _MASK = 0x80 | 0x100  # IN_MOVED_TO, IN_CREATE

    def __init__(self, *paths: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        for path in paths:
            assert libc.inotify_add_watch(self._fd, os.fsencode(path), self._MASK) > 0
        self._seen: Counter[str] = Counter()

    def count(self, name: str) -> int:
        """How often so far."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._fd, 1 << 16):
                while data:
                    length = struct.unpack_from("iIII", data)[3]
                    self._seen[data[16 : 16 + length].rstrip(b"\0").decode()] += 1
                    data = data[16 + length :]
        return self._seen[name]

    def close(self) -> None:
        """Stop."""
        os.close(self._fd)


@dataclass
class Task:
    """A job that is given, and what is to come of it."""

    kind: str
    key: str
    spec: JobSpec | None = None  # of a put there is a file instead
    file: Path | None = None
    target: str = ""
    sources: tuple[str, ...] = ()
    job: str = ""
    acknowledged: bool = False


@dataclass
class Site:
    """A box with a bucket and a folder, a sender whom it believes, and the switch that kills it."""

    box: Box
    store: CountingS3
    folder: Path
    arrivals: Arrivals
    switch: Switch
    sender: Identity
    doctor: Identity
    public: PublicIdentity
    digests: dict[str, str] = field(default_factory=dict)  # of the content, by object of the bucket
    audited: int = 0
    number: int = 0

    def client(self) -> Client:
        """A client of the daemon as it is now."""
        return Client(str(self.box.socket))

    def tasks(self, kinds: list[str], *, large: bool) -> list[Task]:
        """New jobs of these kinds."""
        return [self._task(kind, large=large) for kind in kinds]

    def _task(self, kind: str, *, large: bool) -> Task:
        self.number += 1
        key, source = f"key-{self.number}", "large.smp" if large else "small.smp"
        if kind == "sync":  # an object that appears where a sync watches
            name = f"{WATCHED}{self.number}.smp"
            self.digests[name] = sha256(content := f"{self.number}".encode() * SMALL_BYTES)
            self.store.store(name, _sealed(content, "scan.bin", self.sender, self.public))
            return Task(kind, key, target=f"disk:{RESULTS}{self.number}.smp", sources=(name,))
        if kind == "get":
            return Task(kind, key, GetSpec(f"lake:{source}"), sources=(source,))
        if kind == "prefix":
            names = tuple(sorted(name for name in self.digests if name.startswith("study/")))
            return Task(kind, key, GetSpec("lake:study/"), sources=names)
        where = ("lake", "disk")[self.number % 2]
        target = f"{where}:out-{self.number}.smp"
        if kind == "crowd":
            spec = RunSpec(f"stream:{CROWD}", "digest", target=target, recipients=[self.doctor.public.text()])
            return Task(kind, key, spec, target=target, sources=("small.smp",))
        if kind == "run":
            spec = RunSpec(f"lake:{source}", "digest", target=target, recipients=[self.doctor.public.text()])
            return Task(kind, key, spec, target=target, sources=(source,))
        return Task(kind, key, None, self.box.folder / ("large.bin" if large else "small.bin"), target)

    def submit(self, task: Task) -> None:
        """Have a task accepted; one that was before is the same job."""
        with self.client() as caller:
            if task.kind == "sync":
                view = self._job_of_sync(caller, task)
            elif task.spec is not None:
                view = caller.submit(task.spec, key=task.key)  # type: ignore[arg-type]
            else:
                assert task.file
                view = caller.put([task.file], task.target, [self.doctor.public.text()], key=task.key)
        assert task.job in ("", view.id), "the same key gave another job"
        task.job, task.acknowledged = view.id, True

    def _job_of_sync(self, caller: Client, task: Task) -> JobView:
        """Have the sync look, and wait for the job that it makes of the object; there is one."""
        if not any(sync.spec.name == SYNC for sync in caller.syncs()):
            caller.sync_add(
                SyncSpec(
                    name=SYNC,
                    source=f"lake:{WATCHED}",
                    processor="digest",
                    target=f"disk:{RESULTS}",
                    recipients=[self.doctor.public.text()],
                    every_s=3600.0,
                )
            )
        caller.sync_control(SYNC, "now")
        while True:
            found = [view for view in caller.jobs(limit=1000) if view.source == f"lake:{task.sources[0]}"]
            assert len(found) < 2, f"one object became {len(found)} jobs"
            if found:
                return found[0]

    def try_tasks(self, tasks: list[Task]) -> None:
        """Submit and wait, until all is done or the daemon is gone."""
        with contextlib.suppress(DaemonError):
            for task in tasks:
                self.submit(task)
            with self.client() as caller:
                for _ in caller.watch(jobs=[task.job for task in tasks], resume=False):
                    pass

    def start_or_die(self, tasks: list[Task]) -> None:
        """Start a daemon that the switch may kill on the way, and wait until it is gone or all is done."""
        self.box.start(wait=False)
        assert self.box.process
        while self.box.process.poll() is None:
            with contextlib.suppress(DaemonError), self.client() as caller:
                caller.connect()
                break
            time.sleep(0.005)
        self.try_tasks(tasks)

    def finish(self, tasks: list[Task]) -> list[JobView]:
        """With a daemon that is not killed any more: nothing acknowledged is lost, and all of it ends."""
        with self.client() as caller:
            known = {view.id for view in caller.jobs(limit=1000)}
        for task in tasks:
            assert not task.acknowledged or task.job in known, f"the acknowledged {task.kind} {task.job} is lost"
            self.submit(task)
        with self.client() as caller:
            return [caller.wait(task.job, patience_s=1.0) for task in tasks]

    def kill_all(self) -> None:
        """SIGKILL of the daemon, if it still runs, and of every worker: none can clear up after itself."""
        self.box.kill()
        self.kill_workers()

    def kill_workers(self, role: str = "smpd.") -> int:
        """SIGKILL of those that there are; says how many."""
        mark, found = self.switch.fault.encode(), 0
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                line = path.read_bytes()
                if mark in line and role.encode() in line.rpartition(b"--")[2] and b"config" not in line:
                    os.kill(int(path.parent.name), signal.SIGKILL)
                    found += 1
        return found

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """A daemon that does not come to an end within a block is killed, so that whoever waits for it is told."""
        assert self.box.process
        timer = threading.Timer(TRIAL_MAX_S, self.box.process.kill)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def recovered(self, tasks: list[Task], how: str) -> None:
        """Start it once more, undisturbed: all that was acknowledged ends as it must. A failure says how it was killed."""
        self.switch.arm(0)
        self.box.start()
        try:
            with self.ending():
                self.check(tasks)
        except AssertionError as error:
            raise AssertionError(f"{how}: {error}") from error

    # ── what must hold ─────────────────────────────────────────────────────────────────────────────────

    def check(self, tasks: list[Task]) -> None:
        """Every job is done, its effect is there once and right, and nothing else is left anywhere."""
        for task, view in zip(tasks, self.finish(tasks), strict=True):
            assert view.state == "done", f"{task.kind}: {view.state} {view.error}"
            if task.target:
                self._delivered(task)
            else:
                self._kept(task)
        assert eventually(lambda: not spooled(self.box)), f"{spooled(self.box)} stayed in the spool"
        assert not self.store.uploads, f"uploads are left: {self.store.uploads}"
        left = [path.name for path in self.folder.rglob(".smp-*")]
        assert not left, f"temporary files are left: {left}"
        self._recorded(tasks)

    def _delivered(self, task: Task) -> None:
        name = task.target.partition(":")[2]
        if task.target.startswith("lake:"):
            data, times = self.store.objects[name], self.store.effects[name]
        else:
            data, times = (self.folder / name).read_bytes(), self.arrivals.count(name.removeprefix(RESULTS))
        assert times == 1, f"the result of a {task.kind} came to be {times} times under its name"
        entries = opened(data, self.doctor, self.public)
        if task.kind in ("run", "sync"):
            found = json.loads(entries["digests.json"])
            assert [each["sha256"] for each in found] == [self.digests[task.sources[0]]]
        elif task.kind == "crowd":
            told = [json.loads(entry) for name, entry in entries.items() if name.endswith("digests.json")]
            digests = [each["sha256"] for found in told for each in found]
            assert digests == [self.digests[task.sources[0]]] * CROWD_OBJECTS
        else:
            assert task.file
            assert [sha256(each) for each in entries.values()] == [sha256(task.file.read_bytes())]

    def _kept(self, task: Task) -> None:
        with self.client() as caller:
            items = caller.vault(task.job)
            assert len(items) == len(task.sources), f"the vault has {len(items)} objects of a {task.kind}"
            found = Counter(
                sha256((self.box.state / "vault" / "objects" / f"{item.id}.smp").read_bytes()) for item in items
            )
            assert found == Counter(sha256(self.store.objects[name]) for name in task.sources)
            for item in items:
                caller.vault_remove(item.id)

    def _recorded(self, tasks: list[Task]) -> None:
        """One record of each submission, delivery and end; what is written a second time says so."""
        records: list[dict[str, Any]] = []

        def all_ended() -> bool:
            with self.client() as caller:
                records[:] = [msgspec.json.decode(line) for line in caller.audit_lines(self.audited)]
            ended = {each["job"] for each in records if each["event"] == "job.done"}
            return ended >= {task.job for task in tasks}

        assert eventually(all_ended), "the end of a job is not recorded"
        self.audited += len(records)
        for task in tasks:
            of_job = [each for each in records if each.get("job") == task.job]
            every = Counter(each["event"] for each in of_job)
            first = Counter(each["event"] for each in of_job if not each["fields"].get("again"))
            for event in ("job.done", "object.deliver"):
                assert first[event] <= 1, f"{first[event]} records {event} of a {task.kind} say they are the first"
            assert bool(every["object.deliver"]) == bool(task.target), f"records of a {task.kind}: {every}"
            assert every["job.submit"] >= 1


def eventually(test: Callable[[], object]) -> bool:
    """Whether something comes to hold soon that nobody tells of: what follows the announcement of a job's end."""
    return any(test() or time.sleep(0.01) for _ in range(1000))


def opened(data: bytes, identity: Identity, sender: PublicIdentity) -> dict[str, bytes]:
    """The entries of a sealed object, by name."""

    def read_into(offset: int, view: memoryview) -> None:
        view[:] = data[offset : offset + len(view)]

    reader = BundleReader(read_into, len(data), identities=[identity], trust=lambda _: sender)
    found: dict[str, bytearray] = {}
    reader.extract(lambda entry, _, part: found.setdefault(entry.name, bytearray()).extend(part))
    return {name: bytes(content) for name, content in found.items()}


def _sealed(content: bytes, name: str, sender: Identity, to: PublicIdentity) -> bytes:
    data = bytearray()
    writer = BundleWriter(data.extend, sender=sender, recipients=[to])
    writer.begin(name)
    writer.write(content)
    writer.end()
    writer.finish()
    return bytes(data)


@contextlib.contextmanager
def site(folder: Path, *faults: str, conditional: bool = True) -> Iterator[Site]:
    """A box that runs, with the switch in it, not armed, and what further faults are named."""
    (folder / "disk" / RESULTS).mkdir(parents=True)
    switch = Switch(folder / "switch")
    with contextlib.ExitStack() as stack:
        store, served = stack.enter_context(counting_s3(conditional=conditional))
        stack.enter_context(planting(switch.fault, *faults))
        machine = Box(folder / "box", CONFIG)
        stack.callback(machine.close)
        arrivals = Arrivals(folder / "disk", folder / "disk" / RESULTS)
        stack.callback(arrivals.close)
        machine.start()
        sender, doctor = Identity.generate("hospital"), Identity.generate("doctor")
        with Client(str(machine.socket)) as caller:
            public = PublicIdentity.parse(caller.box_key().text)
            caller.trust_add("hospital", sender.public.text())
            caller.remote_add("lake", served.config, secret=served.secret)
            caller.remote_add("stream", served.config, mode="streaming", secret=served.secret)
            caller.remote_add("disk", LocalConfig(str(folder / "disk")))
            audited = caller.status().audit_size
        made = Site(machine, store, folder / "disk", arrivals, switch, sender, doctor, public, audited=audited)
        sizes = {"small": SMALL_BYTES, "large": LARGE_BYTES, **{f"study/{n}": SMALL_BYTES + n for n in range(3)}}
        for number, (name, size) in enumerate(sizes.items()):
            content = random.Random(number).randbytes(size)
            if "/" not in name:
                (machine.folder / f"{name}.bin").write_bytes(content)
            made.digests[f"{name}.smp"] = sha256(content)
            store.store(f"{name}.smp", _sealed(content, "scan.bin", sender, public))
        for number in range(CROWD_OBJECTS):
            store.store(f"{CROWD}{number:03}.smp", store.objects["small.smp"])
        store.forget()
        yield made
