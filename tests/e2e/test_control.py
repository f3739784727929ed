"""Jobs under a person's control, many at once, and one after the other for a long time."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from box import Box, box
from gated_s3 import GatedS3, gated_s3
from scene import (
    Following,
    Person,
    Site,
    add_remote,
    believe,
    box_key,
    client,
    digests,
    done,
    faults,
    read_digests,
    spool_empties,
    spooled,
    workers,
)

from smp_proto.control import GetSpec, JobView, Priority, RunSpec
from smpctl import Client

MIB = 1 << 20
VOLUME = 12 * MIB


@dataclass
class One:
    """A box that runs one job at a time, and a gated server with one object."""

    box: Box
    store: GatedS3

    def submit(self, priority: Priority = "normal", processor: str = "") -> JobView:
        spec = RunSpec("gated:volume.smp", processor) if processor else GetSpec("gated:volume.smp")
        with client(self.box) as ctl:
            return ctl.submit(spec, priority=priority)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[One]:
    """The box and the server."""
    folder = tmp_path_factory.mktemp("one")
    config = {"jobs": {"running_max": 1}, "fetch": {"slots": 3, "slot_bytes": MIB, "processes": 1}}
    with box(folder / "box", config) as machine, gated_s3({}) as (store, served):
        sender = Person(machine, folder, "hospital")
        sender.knows(box_key(machine, folder), "box")
        believe(machine, sender)
        add_remote(machine, "gated", served)
        (folder / "volume.bin").write_bytes(np.random.default_rng(3).bytes(VOLUME))
        store.objects["volume.smp"] = sender.seal([folder / "volume.bin"], folder / "volume.smp").read_bytes()
        add_remote(machine, "plain", served, mode="standard")
        yield One(machine, store)
        assert not faults(machine)


def test_a_mistake_in_a_parameter_is_told_before_all_is_sealed(one):
    """What comes in the clear is sealed first, which may take hours."""
    one.store.objects["volume.bin"] = bytes(VOLUME)
    one.store.hold_after(VOLUME // 4)
    try:
        with client(one.box) as ctl:
            view = ctl.wait(ctl.submit(RunSpec("plain:volume.bin", "digest", {"widht": 1})).id)
        assert view.error
        assert view.error.code == "bad_parameter"
        assert "no parameter 'widht'" in view.error.message
        assert view.state == "failed"
    finally:
        one.store.release()


def test_what_was_sealed_just_now_was_not_here_already(one):
    """A person is told of what an earlier attempt left, and of nothing else."""
    one.store.objects["volume.bin"] = bytes(VOLUME)
    with client(one.box) as ctl:
        view = done(ctl.wait(ctl.submit(RunSpec("plain:volume.bin", "digest")).id))
    assert (view.transfer.fetched_bytes, view.transfer.resumed_bytes) == (VOLUME, 0)


@pytest.mark.parametrize("processor", ["", "digest"])
def test_pause_and_resume(one, processor):
    """A paused job keeps what it fetched and lets others run; resumed, it fetches only the rest."""
    with Following(one.box) as following:
        one.store.hold_after(VOLUME // 2)
        job = one.submit(processor=processor)
        following.until(job.id, lambda view: view.done_bytes > VOLUME // 4)
        assert one.box.json("job", "pause", job.id)["state"] == "paused"
        assert spooled(one.box) == [f"{job.id}.part"]
        one.store.release()
        done(following.final(one.submit().id))
        assert one.box.json("job", "show", job.id)["state"] == "paused"
        assert one.box.ctl("job", "pause", job.id, check=False).returncode == 10
        one.box.ctl("job", "resume", job.id)
        view = done(following.final(job.id))
    assert view.transfer.resumed_bytes >= VOLUME // 4
    spool_empties(one.box)


@pytest.mark.parametrize("state", ["running", "paused", "queued"])
def test_cancel_leaves_nothing(one, state):
    """A cancelled job leaves no file in the spool, whatever it was doing, and cannot go on."""
    with Following(one.box) as following:
        one.store.hold_after(VOLUME // 2)
        first = one.submit()
        following.until(first.id, lambda view: view.done_bytes > VOLUME // 4)
        job = one.submit() if state == "queued" else first
        if state == "paused":
            one.box.ctl("job", "pause", job.id)
        assert one.box.json("job", "cancel", job.id)["state"] == "cancelled"
        assert one.box.ctl("job", "wait", job.id, check=False).returncode == 10
        assert one.box.ctl("job", "resume", job.id, check=False).returncode == 10
        one.store.release()
        if state == "queued":
            done(following.final(first.id))
    spool_empties(one.box)


def test_priorities_overtake(one):
    """With one place, a high job goes before normal ones that came earlier; a critical one runs beside them at once."""
    with Following(one.box) as following:
        one.store.hold_after(VOLUME // 2)
        first = one.submit()
        following.until(first.id, lambda view: view.done_bytes > VOLUME // 4)
        low, normal, high = (one.submit(priority) for priority in ("low", "normal", "high"))
        critical = one.submit("critical")
        following.until(critical.id, lambda view: view.state == "running")
        assert one.box.json("job", "show", first.id)["state"] == "running"
        one.store.release()
        for job in (low, normal, high, critical, first):
            done(following.final(job.id))
        order = following.order(state="running")
    assert [order.index(job.id) for job in (first, critical, high, normal, low)] == sorted(
        order.index(job.id) for job in (first, critical, high, normal, low)
    )


def test_wait_goes_on_across_a_restart(one):
    """``smpctl job wait`` outlives a restart of the daemon that it waits at."""
    one.store.hold_after(VOLUME // 2)
    job = one.submit()
    with one.box.ctl_begun("job", "wait", job.id) as waiting:
        while f"get {job.id[:8]}" not in waiting.stderr.readline():
            assert waiting.poll() is None
        assert one.box.stop() == 0
        one.store.release()
        one.box.start()
        out, said = waiting.communicate(timeout=100)
        assert waiting.returncode == 0, said
        assert job.id in out


@pytest.fixture(scope="module")
def small(site: Site, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A sealed object of three small files in both remotes, the same as loose files, and their digests."""
    folder = tmp_path_factory.mktemp("small")
    for number, size in enumerate((10, 70_000, 2 * MIB + 1)):
        (folder / f"{number}.bin").write_bytes(np.random.default_rng(number).bytes(size))
    for place in site.folders.values():
        site.sender.seal(sorted(folder.iterdir()), place / "small.smp")
        (place / "small").mkdir()
        for path in folder.iterdir():
            (place / "small" / path.name).write_bytes(path.read_bytes())
    return digests(folder)


def test_many_kinds_at_once(site, small, tmp_path):
    """Jobs of all kinds over all remotes, more than there are slots, all end right."""
    put = tmp_path / "put.bin"
    put.write_bytes(bytes(range(256)) * 20_000)
    commands = [
        [*head, source, "--export", str(tmp_path / f"{number}-{turn}")]
        for turn in range(2)
        for number, (head, source) in enumerate(
            [
                (["get"], "s3:small.smp"),
                (["get"], "sftp:small.smp"),
                (["get"], "s3-standard:small/"),
                (["run", "digest"], "s3:small.smp"),
                (["run", "digest"], "sftp-standard:small/"),
                (["run", "digest"], "sftp-streaming:small.smp"),
            ]
        )
    ]
    with ThreadPoolExecutor(len(commands) + 2) as threads:
        jobs = [threads.submit(site.box.ctl, *command) for command in commands]
        puts = [
            threads.submit(site.sender.ctl, "put", put, f"{place}:many-{place}.smp", "--to", "doctor", "--json")
            for place in site.folders
        ]
        for job in (*jobs, *puts):
            job.result()
    for command in commands:
        folder = Path(command[-1])
        assert (digests(folder) if command[0] == "get" else read_digests(folder)) == small
    spool_empties(site.box)


def counts(pid: int) -> tuple[int, int]:
    """Open descriptors and threads of a process."""
    return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))


def test_nothing_leaks_over_many_jobs(site, small):
    """After thirty more jobs, of which some fail, each process has as many descriptors as before and few threads."""
    assert site.box.process
    sources = ["s3:small.smp", "sftp:small.smp", "s3:nothing.smp", "s3-standard:small/"]

    def several(ctl: Client) -> None:
        specs = [GetSpec(source) for source in sources] + [RunSpec(source, "digest") for source in sources]
        for job in [ctl.submit(spec) for spec in [*specs, *specs[:2]]]:
            ctl.wait(job.id)
        spool_empties(site.box)

    with client(site.box) as ctl:
        for _ in range(2):
            several(ctl)
        pids = [site.box.process.pid, *workers(site.box, "fetch"), *workers(site.box, "compute")]
        before = {pid: counts(pid) for pid in pids}
        for _ in range(3):
            several(ctl)
        after = {pid: counts(pid) for pid in pids}
    for pid in pids:
        assert after[pid][0] <= before[pid][0] + 1, os.listdir(f"/proc/{pid}/fd")
        assert after[pid][1] <= 64
