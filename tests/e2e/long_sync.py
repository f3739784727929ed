"""``make soak SECONDS=600``: two syncs at work while everything around them changes, and what must be there at the end.

Objects of an S3 bucket go through a processor to an SFTP server, and the other way round. Meanwhile objects are added,
replaced and removed, servers and workers are killed, and the daemon is reloaded, killed, stopped and started again. At the
end every version that stayed has exactly one result, which is right; nothing else is there; the audit log verifies.

One result: of a path, jobs that were done and began between the appearance of one version and of the next are counted.
A version's size tells it from the one before, since SFTP tells modification times in seconds only.
"""

import argparse
import contextlib
import json
import os
import random
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from box import Box
from scene import add_remote, faults, sha256, spool_empties, workers
from servers import Served, rclone_s3, rclone_sftp

from smp_proto.audit.record import parse_line
from smp_proto.control import JobView, SyncSpec, SyncView
from smp_proto.errors import SmpError
from smp_proto.sealed.bundle import BundleReader, BundleWriter
from smp_proto.sealed.keys import Identity, PublicIdentity
from smpctl import Client

PATHS = 30  # of each place, so that most changes replace or remove
SETTLE_S = 300.0
CONFIG = {
    "fetch": {"slots": 2, "slot_bytes": 1 << 20, "processes": 2, "probe_s": 0.5, "probe_max_s": 2.0},
    "compute": {"slots": 2, "result_slots": 2, "device": "cpu", "processors": ["digest"]},
    "jobs": {"running_max": 4},
    "control": {"requests_per_s": 1e6, "requests_burst": 1_000_000},
}


@dataclass
class Place:
    """A remote whose objects are watched, and the folder behind it."""

    name: str
    serve: Callable[[int], contextlib.AbstractContextManager[Served]]
    root: Path
    versions: dict[str, list[tuple[float, str]]] = field(default_factory=lambda: defaultdict(list))
    there: dict[str, str] = field(default_factory=dict)  # path to digest

    def __post_init__(self) -> None:
        self._running = contextlib.ExitStack()
        self.served = self._running.enter_context(self.serve(0))

    def stop(self) -> None:
        """Kill the server."""
        self._running.close()

    def start(self) -> None:
        """Start it again where it was."""
        config = self.served.config
        port = int(getattr(config, "port", 0) or str(getattr(config, "endpoint", "")).rpartition(":")[2])
        self._running.enter_context(self.serve(port))


class Soak:
    """A box, two places, and what was done to them."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.rng = rng
        self.sender = Identity.generate("sender")
        self.box = Box(folder / "box", CONFIG)
        self.folder = folder
        (folder / "s3" / "scans" / "in").mkdir(parents=True)
        (folder / "sftp" / "in").mkdir(parents=True)
        s3 = Place("s3", lambda port: rclone_s3(folder / "s3", port=port), folder / "s3" / "scans")
        sftp = Place("sftp", lambda port: rclone_sftp(folder / "sftp", folder, port), folder / "sftp")
        self.places = {"s3": s3, "sftp": sftp}
        self.goes_to = {"s3": sftp, "sftp": s3}
        self.jobs: dict[str, JobView] = {}
        self.done: Counter[str] = Counter()
        self._number = 0

    def begin(self) -> None:
        """Start the daemon, and the syncs."""
        self.box.start()
        with Client(str(self.box.socket)) as client:
            self.public = PublicIdentity.parse(client.box_key().text)
            client.trust_add("sender", self.sender.public.text())
            for place in self.places.values():
                add_remote(self.box, place.name, place.served)
            for name, other in self.goes_to.items():
                spec = SyncSpec(name=name, source=f"{name}:in/", processor="digest", target=f"{other.name}:of-{name}/")
                spec.every_s, spec.include = 1.0, ["**/*.smp"]
                client.sync_add(spec)

    # ── what happens ───────────────────────────────────────────────────────────────────────────────────

    def change(self) -> None:
        """An object comes, is replaced, or goes."""
        place = self.rng.choice(list(self.places.values()))
        number = self.rng.randrange(PATHS)
        path = f"{number % 3}/{number}.smp"
        file = place.root / "in" / path
        if path in place.there and self.rng.random() < 0.3:
            file.unlink()
            del place.there[path]
            self.done["removed"] += 1
            return
        self._number += 1
        content = b"%d " % self._number + bytes(self._number)
        sealed = bytearray()
        writer = BundleWriter(sealed.extend, sender=self.sender, recipients=[self.public])
        writer.begin("scan.bin")
        writer.write(content)
        writer.end()
        writer.finish()
        part = self.folder / "part"
        part.write_bytes(sealed)
        file.parent.mkdir(exist_ok=True)
        place.versions[path].append((time.time(), sha256(content)))
        os.replace(part, file)
        self.done["replaced" if path in place.there else "added"] += 1
        place.there[path] = sha256(content)

    def disturbances(self) -> dict[str, Callable[[], None]]:
        """What goes wrong, each by its name."""
        return {
            "S3 server restarted": lambda: self._restart("s3"),
            "daemon killed": self._kill,
            "SFTP server restarted": lambda: self._restart("sftp"),
            "fetch process killed": lambda: self._kill_worker("fetch"),
            "daemon stopped": self._stop,
            "compute process killed": lambda: self._kill_worker("compute"),
            "daemon reloaded": self._reload,
        }

    def _restart(self, name: str) -> None:
        place = self.places[name]
        place.stop()
        for _ in range(self.rng.randrange(3)):
            self.change()  # while it is away
        place.start()

    def _kill(self) -> None:
        self.look()
        self.box.kill()
        self.change()
        self.box.start()

    def _stop(self) -> None:
        self.look()
        assert self.box.stop() == 0
        self.change()
        self.box.start()

    def _reload(self) -> None:
        assert self.box.process
        self.box.configure(jobs={"running_max": self.rng.randint(2, 6)})
        self.box.process.send_signal(signal.SIGHUP)

    def _kill_worker(self, role: str) -> None:
        with contextlib.suppress(ProcessLookupError):
            for pid in workers(self.box, role)[:1]:
                os.kill(pid, 9)

    def look(self) -> None:
        """Learn of the jobs there are."""
        with Client(str(self.box.socket)) as client:
            self.jobs |= {job.id: job for job in client.jobs(limit=1000)}

    # ── the end ────────────────────────────────────────────────────────────────────────────────────────

    def settle(self) -> None:
        """List twice more, which is at least once from start to end, and wait until nothing is left to do."""
        with Client(str(self.box.socket)) as client:
            for name in self.places:
                for _ in range(2):
                    asked = time.time()
                    client.sync_control(name, "now")
                    self._until(client, name, lambda view, asked=asked: view.last_poll > asked and not view.listing)  # type: ignore[misc]
                self._until(client, name, lambda view: not view.waiting + view.in_flight + view.failed)
        self.look()
        spool_empties(self.box)

    def _until(self, client: Client, name: str, test: Callable[[SyncView], bool]) -> None:
        end = time.monotonic() + SETTLE_S
        while not test(view := client.sync_show(name).sync):
            if view.failed:
                client.sync_control(name, "retry")
                self.done["tried again by hand"] += view.failed
            assert time.monotonic() < end, f"{name} does not come to rest: {client.sync_show(name)}"
            time.sleep(0.1)

    def violations(self) -> Iterator[str]:
        """All that is not as it must be."""
        for name, place in self.places.items():
            yield from self._wrong_results(name, place)
            yield from self._wrong_jobs(name, place)
            kept = {path.name for path in place.root.iterdir()}
            if extra := kept - {"in", *(f"of-{other}" for other in self.places)}:
                yield f"{name}: left behind: {sorted(extra)}"
        with Client(str(self.box.socket)) as client:
            for view in client.syncs():
                name = view.spec.name
                if view.quarantined or view.error:
                    yield f"{name}: {client.sync_show(name).troubles or view.error}"
            lines, _ = client.audit_read()
        recorded = {record.job for record in map(parse_line, lines) if record.event == "job.submit"}
        if missing := self.jobs.keys() - recorded:
            yield f"the log has no word of {sorted(missing)}"
        if b"whole and in order" not in self.box.ctl("audit", "verify").stdout:
            yield "the audit log does not verify"
        yield from faults(self.box)

    def _wrong_results(self, name: str, place: Place) -> Iterator[str]:
        out = self.goes_to[name].root / f"of-{name}"
        found = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
        for path in place.there.keys() - found.keys():
            yield f"{name}:{path} has no result"
        for path, file in found.items():
            known = [digest for _, digest in place.versions.get(path, [])]
            try:
                digest = self._digest(file)
            except SmpError as error:
                yield f"the result of {name}:{path} does not open: {error}"
                continue
            if path in place.there and digest != place.there[path]:
                yield f"the result of {name}:{path} is not of the version that stayed but of {known.index(digest)}"
            elif digest not in known:
                yield f"{name}: {path} is the result of nothing"

    def _digest(self, file: Path) -> str:
        data, found = memoryview(file.read_bytes()), dict[str, bytearray]()

        def read_into(offset: int, view: memoryview) -> None:
            view[:] = data[offset : offset + len(view)]

        def take(entry: object, _offset: int, piece: memoryview) -> None:
            found.setdefault(entry.name, bytearray()).extend(piece)  # type: ignore[attr-defined]

        with BundleReader(read_into, len(data), identities=[self.sender], trust=lambda _id: self.public) as reader:
            reader.extract(take)
        return str(json.loads(found["digests.json"])[0]["sha256"])

    def _wrong_jobs(self, name: str, place: Place) -> Iterator[str]:
        began = defaultdict[str, list[float]](list)
        for job in self.jobs.values():
            if job.state == "done" and job.source.startswith(f"{name}:in/"):
                began[job.source.removeprefix(f"{name}:in/")].append(job.created)
        for path, versions in place.versions.items():
            times = [when for when, _ in versions] + [float("inf")]
            for (start, _), end in zip(versions, times[1:], strict=True):
                jobs = [when for when in began[path] if start <= when < end]
                last = end == float("inf") and path in place.there
                if len(jobs) > 1 or (last and not jobs):
                    yield f"{name}:{path}: a version has {len(jobs)} results"

    def close(self) -> None:
        """Stop everything."""
        self.box.close()
        for place in self.places.values():
            place.stop()


def soak(folder: Path, seconds: float, rng: random.Random) -> tuple[str, list[str]]:
    """Do it all for so long; one line that says what was done, and what was wrong."""
    found = Soak(folder, rng)
    try:
        found.begin()
        begun = time.monotonic()
        disturbances = found.disturbances()
        pause_s = min(10.0, seconds / len(disturbances))
        due, names = begun + pause_s / 2, list[str]()
        while (now := time.monotonic()) < begun + seconds or names:
            found.change()
            if now >= due:
                names = names or rng.sample(sorted(disturbances), len(disturbances))
                name = names.pop()
                disturbances[name]()
                found.done[name] += 1
                due = time.monotonic() + rng.uniform(0.5, 1.5) * pause_s
            time.sleep(rng.uniform(0.0, 0.4))  # how fast objects come
        lasted = time.monotonic() - begun
        found.settle()
        wrong = list(found.violations())
        results = sum(job.state == "done" for job in found.jobs.values())
        said = ", ".join(f"{name} {count}" for name, count in sorted(found.done.items()))
        stayed = sum(len(place.there) for place in found.places.values())
        return f"{lasted:.0f} s: {said}; {len(found.jobs)} jobs, {results} results, {stayed} objects stayed", wrong
    finally:
        found.close()


def main() -> int:
    """1 when anything was wrong."""
    parser = argparse.ArgumentParser(prog="long_sync", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--keep", type=Path, help="do it in this folder, and leave that there")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="smp-soak-")))
        line, wrong = soak(folder, options.seconds, random.Random(options.seed))
    for each in wrong[:20]:
        print(f"  {each}"[:1000])
    print(f"{line}; {len(wrong)} violations; seed {options.seed}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
