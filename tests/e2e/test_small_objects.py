"""Very many small objects in one run: opened by processes of their own, with the verdicts that a thread gives."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from box import Box
from box import box as running
from scene import client, faults, read_digests, sha256, spool_empties, workers
from torture.planted import planting

from smp_proto.control import JobView, LocalConfig, RunSpec
from smp_proto.sealed.bundle import BundleWriter
from smp_proto.sealed.keys import Identity, PublicIdentity
from smpctl import Client

MIB = 1 << 20
COUNT = 600


class Ward:
    """A box that believes a scanner, and a folder as its remote that keeps nothing on the box."""

    def __init__(self, machine: Box, caller: Client) -> None:
        self.box, self.client = machine, caller
        self.folder = machine.folder / "store"
        self.scanner = Identity.generate("scanner")
        caller.trust_add("scanner", self.scanner.public.text())
        self.folder.mkdir()
        caller.remote_add("ward", LocalConfig(str(self.folder)), mode="streaming")
        self.contents = {f"{number:04}": b"%d" % number * 99 for number in range(COUNT)}
        for name, content in self.contents.items():
            self.seal(f"many/{name}", content)

    def seal(self, name: str, content: bytes, sender: Identity | None = None) -> Path:
        """An object for the key that the box has now."""
        path = self.folder / f"{name}.smp"
        path.parent.mkdir(exist_ok=True)
        key = PublicIdentity.parse(self.client.box_key().text)
        with path.open("wb") as file:
            writer = BundleWriter(file.write, sender=sender or self.scanner, recipients=[key])
            writer.begin("scan.bin")
            writer.write(content)
            writer.end()
            writer.finish()
        return path

    def run(self, prefix: str) -> JobView:
        """Run the processor over a folder, to its end."""
        return self.client.wait(self.client.submit(RunSpec(f"ward:{prefix}/", "digest")).id)

    def caught(self) -> tuple[list[int], str]:
        """Opening processes that are stopped, and a job whose objects have come."""
        for pid in (pids := self.warm()):
            os.kill(pid, signal.SIGSTOP)
        job = self.client.submit(RunSpec("ward:many/", "digest")).id
        while not self.client.job(job).transfer.fetched_bytes:
            pass
        return pids, job

    def warm(self) -> list[int]:
        """Have opening processes there: what many batches at once lead to."""
        while not (found := workers(self.box, "opening")):
            self.good(self.run("many"))
        return found

    def good(self, view: JobView) -> None:
        """It ended well, and the processor had each object as it was sealed."""
        assert view.error is None
        assert view.result
        out = self.box.folder / f"out-{view.id}"
        self.client.vault_open(view.result.vault_id, out)
        found = {name: read_digests(out / name)["scan.bin"] for name in self.contents}
        assert found == {name: sha256(content) for name, content in self.contents.items()}


def cpu_ns(pid: int) -> int:
    """How long a process has run, in ns (proc(5): schedstat)."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


CONFIG = {"fetch": {"slots": 8, "slot_bytes": MIB, "processes": 1}, "compute": {"processors": ["digest"]}}


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ward]:
    with running(tmp_path_factory.mktemp("ward") / "box", CONFIG) as machine:
        with client(machine) as caller:
            yield Ward(machine, caller)
        assert faults(machine) == []


def test_they_are_opened_by_processes_that_status_and_doctor_show(ward):
    """Each object arrives as it was sealed, before and after there are processes."""
    pids = ward.warm()
    before = sum(map(cpu_ns, pids))
    ward.good(ward.run("many"))
    assert sum(map(cpu_ns, pids)) - before > COUNT * 20_000  # the least that a decapsulation takes
    shown = {worker.pid for worker in ward.client.status().workers if worker.role == "opening"}
    assert set(pids) <= shown
    checks = {check.name: check.state for check in ward.client.doctor()}
    assert checks["opening seccomp"] == checks["opening landlock"] == "ok"
    assert 'smp_workers{role="opening"' in ward.box.ctl("metrics", "print").stdout.decode()


def test_the_daemon_works_in_bulk(ward):
    """It preempts nobody, and neither do its workers, whose every piece wakes somebody."""
    ward.warm()
    found = {worker.role: os.sched_getscheduler(worker.pid) for worker in ward.client.status().workers if worker.pid}
    assert found == dict.fromkeys(("compute", "fetch", "opening"), os.SCHED_BATCH)
    assert os.sched_getscheduler(ward.box.process.pid) == os.SCHED_BATCH


def test_a_process_that_is_killed_costs_an_attempt_at_most(ward):
    """The job is tried again by itself and every object arrives; smpd stays."""
    pids, job = ward.caught()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    view = ward.client.wait(job)
    assert view.attempt in (1, 2)  # the first, where they were killed just before it came to them
    ward.good(view)
    assert not set(pids) & set(workers(ward.box, "opening"))


def test_a_cancelled_job_leaves_the_processes_and_the_next_one_is_right(ward):
    """Also in the middle of a batch."""
    pids, job = ward.caught()
    with ward.box.ctl_begun("job", "cancel", job) as cancel:  # which waits for the batch
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        cancel.communicate()
        assert cancel.returncode == 0
    assert ward.client.wait(job).state == "cancelled"
    ward.good(ward.run("many"))
    assert set(pids) <= set(workers(ward.box, "opening"))


def test_what_is_not_to_be_trusted_is_refused_there_as_in_a_thread(ward):
    """A flipped bit, a stranger and an older object: each is named, and nothing is delivered."""
    ward.warm()
    stranger = Identity.generate("stranger")
    for name in ("bad", "strange"):
        for number in range(30):
            ward.seal(f"{name}/{number:02}", os.urandom(900))
    path = ward.folder / "bad" / "13.smp"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    view = ward.run("bad")
    assert view.error
    assert (view.state, view.error.code) == ("quarantined", "corrupt")
    assert "ward:bad/13.smp" in view.error.message
    ward.seal("strange/07", b"strange", stranger)
    view = ward.run("strange")
    assert view.error
    assert (view.state, view.error.code) == ("quarantined", "untrusted_sender")
    assert "no sender with key" in view.error.message
    assert "smpctl trust add" in view.error.hint
    ward.client.trust_add("stranger", stranger.public.text())  # the process is told of it with the next batch
    again = ward.client.resume(view.id)
    assert ward.client.wait(again.id).state == "done"
    ward.client.trust_remove("stranger")  # what the process knows of old does not count
    view = ward.run("strange")
    assert view.error
    assert "was removed on" in view.error.message
    spool_empties(ward.box)


def test_the_box_has_another_key(ward):
    """Objects for the key before it and for the new one, side by side, in processes that were there already."""
    pids = ward.warm()
    ward.client.box_rotate()
    for name in list(ward.contents)[::2]:
        ward.seal(f"many/{name}", ward.contents[name])
    ward.good(ward.run("many"))
    assert set(pids) <= set(workers(ward.box, "opening"))


def test_a_sender_that_the_processes_have_not_heard_of_yet(tmp_path):
    """Somebody who is believed since a moment ago: a batch with such an object is opened in a thread, each object once."""
    with planting("torture.faults.opening:strangers"), running(tmp_path / "box", CONFIG) as machine:
        with client(machine) as caller:
            ward = Ward(machine, caller)
            another = Identity.generate("another")
            caller.trust_add("another", another.public.text())
            for name in list(ward.contents)[3::7]:
                ward.seal(f"many/{name}", ward.contents[name], another)
            ward.warm()
            ward.good(ward.run("many"))
        assert faults(machine) == []
