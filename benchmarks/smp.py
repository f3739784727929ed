"""SMP as a contestant: a real ``smpd`` with a state of its own, workers warm, asked through a kept connection."""

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.results import ROOT, Sample
from benchmarks.servers import ACCESS_KEY, BUCKET, SECRET_KEY, Store
from benchmarks.watch import costs
from smp_proto.control import GetSpec, JobView, Mode, Priority, RunSpec, S3Config, S3Secret
from smp_proto.sealed.keys import Identity, PublicIdentity
from smpctl import Client
from smpd.config import Compute, Fetch

sys.path.insert(0, str(ROOT / "tests"))
from box import Box

SINK = "bench.sink"
ENDS_AS = "plaintext in the processor's memory; tags, content digest, signature and sender checked; audited, committed"


class JobFailedError(Exception):
    """A job did not end as done; says why."""


class Smp:
    """A daemon, its client, and the sender it trusts."""

    def __init__(self, box: Box, client: Client, sender: Identity) -> None:
        self.box = box
        self.client = client
        self.sender = sender
        self.key = PublicIdentity.parse(client.box_key().text)
        client.trust_add("sender", sender.public.text())

    @property
    def pid(self) -> int:
        """Of ``smpd``."""
        assert self.box.process
        return self.box.process.pid

    def s3(self, store: Store, name: str, mode: Mode = "streaming", *, tls: bool = False, endpoint: str = "") -> str:
        """Add the bucket of a server as a remote; its name and a colon."""
        config = S3Config(BUCKET, endpoint=endpoint or (store.https if tls else store.http), addressing="path")
        config.ca_pem = store.ca.read_text() if tls else ""
        self.client.remote_add(name, config, mode=mode, secret=S3Secret(ACCESS_KEY, SECRET_KEY))
        return f"{name}:"

    def submit(self, spec: GetSpec | RunSpec, priority: Priority = "normal") -> str:
        """Have a job accepted; its id."""
        return self.client.submit(spec, priority=priority).id

    def wait(self, job: str) -> JobView:
        """Wait for a job.

        Raises:
            JobFailedError: it did not end as done.
        """
        view = self.client.wait(job)
        if view.state != "done":
            why = f"{view.error.code}: {view.error.message}" if view.error else view.state
            raise JobFailedError(why)
        return view

    def measure(self, spec: GetSpec | RunSpec, size: int, objects: int = 1) -> Sample:
        """Submit a job and wait until it is done; ``size`` is that of the plaintext."""
        sample = Sample(0.0, bytes=size, objects=objects)
        with costs(self.pid, sample):
            self.wait(self.submit(spec))
        return sample

    def run(self, source: str, size: int, objects: int = 1) -> Sample:
        """The plaintext of an object, or of all below a prefix, to the sink."""
        return self.measure(RunSpec(source, SINK), size, objects)

    def get(self, spec: GetSpec, size: int) -> Sample:
        """An object into the vault, which is emptied afterwards."""
        sample = self.measure(spec, size)
        self.empty(size)
        return sample

    def empty(self, size: int) -> None:
        """Remove what is as large as such an object; the results of the sink stay, they are small."""
        for item in self.client.vault():
            if item.size > size:
                self.client.vault_remove(item.id)

    def sunk(self, view: JobView) -> dict[str, Any]:
        """What the sink said of a job."""
        assert view.result
        with tempfile.TemporaryDirectory() as folder:
            self.client.vault_open(view.result.vault_id, folder)
            found: dict[str, Any] = msgspec.json.decode((Path(folder) / "sink.json").read_bytes())
        return found

    def check(self, source: str, digest: str) -> None:
        """Run once with every byte hashed.

        Raises:
            JobFailedError: the processor was not given the plaintext that was sealed.
        """
        view = self.wait(self.submit(RunSpec(source, SINK, {"digest": True})))
        if self.sunk(view)["sha256"] != digest:
            raise JobFailedError(f"the plaintext of {source} is not what was sealed")


@contextlib.contextmanager
def daemon(folder: Path, sender: Identity, config: Mapping[str, Mapping[str, Any]] | None = None) -> Iterator[Smp]:
    """A daemon with the defaults of its configuration but for ``config``, on the CPU."""
    sections: dict[str, dict[str, Any]] = {
        # The box is made for tests, which want few slots; these are the defaults again.
        "fetch": {"slots": Fetch().slots},
        "compute": {"slots": Compute().slots, "device": "cpu", "processors": [SINK]},
        "jobs": {"backoff_base_s": 2.0, "backoff_max_s": 60.0},
        "log": {"level": "warning"},
    }
    for name, values in (config or {}).items():
        sections.setdefault(name, {}).update(values)
    box = Box(folder, sections)
    box.env["PYTHONPATH"] = str(install_sink(folder / "plugins"))
    try:
        box.start()
        with Client(str(box.socket)) as client:
            yield Smp(box, client, sender)
    finally:
        box.close()


def install_sink(folder: Path) -> Path:
    """Leave the distribution ``smp-bench-sink`` in a folder, as an installer would; returns the folder."""
    info = folder / "smp_bench_sink-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "smp_bench_sink.py").write_text((ROOT / "benchmarks" / "sink" / "smp_bench_sink.py").read_text())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: smp-bench-sink\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[smpd.processors]\n{SINK} = smp_bench_sink:sink\n")
    return folder


def until(happened: Any, timeout_s: float = 60.0) -> None:
    """Ask again and again until something is true.

    Raises:
        TimeoutError: it was not in time.
    """
    deadline = time.monotonic() + timeout_s
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)
