"""What a crash costs: nothing that was acknowledged, and few bytes twice."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from box import Box, box
from gated_s3 import GatedS3, gated_s3
from scene import (
    Following,
    Person,
    add_remote,
    believe,
    box_key,
    bytes_below,
    client,
    digests,
    done,
    faults,
    read_digests,
    sha256,
    spool_empties,
    workers,
)
from servers import rclone_sftp
from torture.planted import planting

from smp_proto.control import GetSpec, JobView, RunSpec

MIB = 1 << 20
TOTAL = 96 * MIB
CONNECTIONS = 4
RANGE = 2 * MIB
CONFIG = {
    "fetch": {"processes": 1, "slots": 6, "slot_bytes": RANGE, "connections": CONNECTIONS},
    "compute": {"slots": 3},
}


@dataclass
class Scene:
    """A box, and a gated server that holds one object of 96 MiB."""

    box: Box
    store: GatedS3
    sha256: str
    sealed: int
    name: str = "volume.bin"


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 MiB of noise."""
    path = tmp_path_factory.mktemp("volume") / "volume.bin"
    path.write_bytes(np.random.default_rng(7).bytes(TOTAL))
    return path


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, volume: Path) -> Iterator[Scene]:
    """A box of its own, since it is killed again and again."""
    folder = tmp_path_factory.mktemp("crash")
    with box(folder / "box", CONFIG) as machine, gated_s3({}) as (store, served):
        sender = Person(machine, folder, "hospital")
        sender.knows(box_key(machine, folder), "box")
        believe(machine, sender)
        for mode in ("zero-knowledge", "standard"):
            add_remote(machine, mode, served, mode)
        sealed = sender.seal([volume], folder / "volume.smp").read_bytes()
        store.objects |= {"volume.smp": sealed, "volume.bin": volume.read_bytes()}
        yield Scene(machine, store, sha256(volume.read_bytes()), len(sealed))


@pytest.fixture(autouse=True)
def ready(scene: Scene) -> Iterator[None]:
    """Each test begins with a daemon that runs, and leaves the gate open."""
    if scene.box.process is None or scene.box.process.poll() is not None:
        scene.box.start()
    yield
    scene.store.release()
    assert not faults(scene.box)


def submit(scene: Scene, kind: str) -> JobView:
    source = "zero-knowledge:volume.smp"
    with client(scene.box) as ctl:
        return ctl.submit(GetSpec(source) if kind == "get" else RunSpec(source, "digest"))


def check(scene: Scene, job: JobView, folder: Path) -> None:
    """The job's result holds the digest of what was sealed."""
    done(job)
    assert job.result
    scene.box.ctl("vault", "open", job.result.vault_id, "-o", folder)
    found = digests(folder) if job.kind == "get" else read_digests(folder)
    assert found[scene.name] == scene.sha256
    spool_empties(scene.box)


@pytest.mark.parametrize("kind", ["get", "run"])
def test_sigkill_at_half(scene, tmp_path, kind):
    """After SIGKILL at half the next start ends the job by itself; at most two ranges a connection come twice."""
    with Following(scene.box) as following:
        scene.store.hold_after(TOTAL // 2)
        job = submit(scene, kind)
        following.until(job.id, lambda view: view.phase == "fetch" and view.done_bytes > TOTAL // 3)
        scene.box.kill()
        scene.store.release()
        scene.box.start()
        view = following.final(job.id)
    twice = scene.store.sent - scene.sealed
    assert view.transfer.resumed_bytes > TOTAL // 4
    assert twice <= 2 * RANGE * CONNECTIONS + MIB, f"{twice} bytes came twice"
    check(scene, view, tmp_path / "out")


@pytest.mark.parametrize("kind", ["get", "run"])
def test_sigkill_between_a_file_in_the_vault_and_its_row(scene, tmp_path, kind):
    """Into the place of that file a get fetches again, and a run computes from what is in the spool; it is there once."""
    assert scene.box.stop() == 0
    with planting("torture.faults.keeping:killed"):
        scene.box.start()
    sent = scene.store.sent
    job = submit(scene, kind)
    assert scene.box.process.wait(60) == -signal.SIGKILL
    named = scene.box.state / "vault" / "objects" / f"{job.id}.smp"
    assert named.exists()
    scene.box.start()
    with client(scene.box) as ctl:
        assert [item for item in ctl.vault() if item.job == job.id] == []
        view = ctl.wait(job.id)
        assert [item.id for item in ctl.vault() if item.job == job.id] == [job.id]
    fetched = (scene.store.sent - sent) / scene.sealed
    assert fetched >= 2 if kind == "get" else fetched < 1.1
    check(scene, view, tmp_path / "out")


@pytest.mark.parametrize("kind", ["get", "run"])
def test_sigterm_in_the_middle(scene, tmp_path, kind):
    """SIGTERM stops cleanly in the middle of a job; the next start ends it, and the stop is no fault of the job."""
    with Following(scene.box) as following:
        scene.store.hold_after(TOTAL // 2)
        job = submit(scene, kind)
        following.until(job.id, lambda view: view.phase == "fetch" and view.done_bytes > TOTAL // 3)
        assert scene.box.stop() == 0
        scene.store.release()
        scene.box.start()
        view = following.final(job.id)
    assert view.attempt == 1
    assert view.transfer.resumed_bytes > TOTAL // 4
    check(scene, view, tmp_path / "out")


def test_sigkill_while_recovering(scene, tmp_path):
    """A second SIGKILL, while what the first one left is being taken up again, changes nothing."""
    with Following(scene.box) as following:
        scene.store.hold_after(TOTAL // 3)
        job = submit(scene, "get")
        following.until(job.id, lambda view: view.done_bytes > TOTAL // 4)
        scene.box.kill()
        scene.box.start(wait=False)
        scene.box.kill()
        scene.box.start()
        following.until(job.id, lambda view: view.state == "running" and view.attempt == 1)
        scene.box.kill()
        scene.store.release()
        scene.box.start()
        view = following.final(job.id)
    assert view.transfer.resumed_bytes > TOTAL // 5
    check(scene, view, tmp_path / "out")


@pytest.mark.parametrize("role", ["fetch", "compute"])
def test_sigkill_of_a_worker(scene, tmp_path, role):
    """The daemon stays up when a fetch or a compute process is killed in the middle, and the job ends well."""
    assert scene.box.process
    pid = scene.box.process.pid
    with Following(scene.box) as following:
        scene.store.hold_after(TOTAL // 2)
        job = submit(scene, "run")
        following.until(job.id, lambda view: view.phase == "fetch" and view.done_bytes > TOTAL // 3)
        (worker,) = workers(scene.box, role)
        os.kill(worker, signal.SIGKILL)
        scene.store.release()
        view = following.final(job.id)
    assert scene.box.process.pid == pid
    assert scene.box.process.poll() is None
    assert worker not in workers(scene.box, role)
    assert view.attempt == (2 if role == "compute" else 1)
    check(scene, view, tmp_path / "out")


def test_a_stopped_compute_process_is_ended_by_a_cancel(scene):
    """A compute process that hangs is killed when its job is cancelled; the next job gets another."""
    with Following(scene.box) as following:
        scene.store.hold_after(TOTAL // 2)
        job = submit(scene, "run")
        following.until(job.id, lambda view: view.phase == "fetch" and view.done_bytes > TOTAL // 3)
        (worker,) = workers(scene.box, "compute")
        os.kill(worker, signal.SIGSTOP)
        scene.box.ctl("job", "cancel", job.id)
        assert worker not in workers(scene.box, "compute")
        spool_empties(scene.box)
        scene.store.release()
        view = following.final(submit(scene, "run").id)
    done(view)


def test_sigkill_in_standard_mode(scene, tmp_path):
    """What a standard remote's objects were sealed to is begun anew after SIGKILL, and ends with the same digest."""
    with Following(scene.box) as following, client(scene.box) as ctl:
        scene.store.hold_after(TOTAL // 2)
        job = ctl.submit(GetSpec("standard:volume.bin"))
        following.until(job.id, lambda view: view.phase == "seal" and view.done_bytes > TOTAL // 3)
        scene.box.kill()
        plain = scene.store.objects["volume.bin"]
        for path, data in bytes_below(scene.box.state):
            assert not [at for at in range(0, TOTAL, 4 * MIB) if plain[at : at + 64] in data], f"{path} holds plaintext"
        scene.store.release()
        scene.box.start()
        view = following.final(job.id)
    check(scene, view, tmp_path / "out")


def test_a_put_survives_sigkill(scene, tmp_path, volume):
    """A put that was acknowledged goes up after SIGKILL, though the files it was made of are gone."""
    with rclone_sftp(tmp_path / "root", tmp_path) as served, Following(scene.box) as following:
        add_remote(scene.box, "archive", served)
        assert served.process
        served.process.send_signal(signal.SIGSTOP)
        (tmp_path / "scan.bin").write_bytes(volume.read_bytes()[: 24 * MIB])
        hospital = scene.box.folder.parent / "hospital" / "public"
        job = scene.box.json("put", tmp_path / "scan.bin", "archive:put.smp", "--to", hospital, "--detach")
        (tmp_path / "scan.bin").unlink()
        following.until(job["id"], lambda view: view.state == "running")
        scene.box.kill()
        served.process.send_signal(signal.SIGCONT)
        scene.box.start()
        done(following.final(job["id"]))
        assert (tmp_path / "root" / "put.smp").stat().st_size > 24 * MIB
        assert [path.name for path in (tmp_path / "root").iterdir()] == ["put.smp"]
    spool_empties(scene.box)
    scene.box.ctl("remote", "remove", "archive")
