"""Another secret of a remote that is in use: jobs and syncs go on with it, and nothing is done again."""

from pathlib import Path

import numpy as np
import pytest
from box import box
from gated_s3 import gated_s3
from scene import Person, add_remote, believe, box_key, client, faults, until_sync
from servers import rclone_s3

from smp_proto.control import GetSpec, S3Secret
from smp_proto.errors import StateError

MIB = 1 << 20


def test_a_remote_with_a_sync(tmp_path: Path) -> None:
    """The hint that keeps it from being removed says how; a wrong one is told of, the right one goes on."""
    with box(tmp_path / "box") as machine, client(machine) as ctl, rclone_s3(tmp_path / "s3") as rclone:
        assert rclone.path is not None
        sender = Person(machine, tmp_path, "hospital")
        sender.knows(box_key(machine, tmp_path), "box")
        believe(machine, sender)
        add_remote(machine, "lake", rclone)
        (tmp_path / "scan.bin").write_bytes(b"scan")
        folder = rclone.path / "replacing"
        folder.mkdir()
        sender.seal([tmp_path / "scan.bin"], folder / "1.smp")
        machine.ctl("sync", "add", "s", "lake:replacing/", "--every", "1s")
        until_sync(ctl, "s", lambda view: view.done == 1)
        with pytest.raises(StateError) as caught:
            ctl.remote_remove("lake")
        assert "smpctl remote add lake URL --replace" in caught.value.hint
        wrong = S3Secret("AKIAIOSFODNN7EXAMPLE", "not the secret at all")
        ctl.remote_add("lake", rclone.config, secret=wrong, replace=True)
        until_sync(ctl, "s", lambda view: view.error is not None and view.error.code == "remote_auth")
        with pytest.raises(StateError):
            ctl.remote_add("lake", rclone.config, secret=rclone.secret)
        ctl.remote_add("lake", rclone.config, secret=rclone.secret, replace=True)
        sender.seal([tmp_path / "scan.bin"], folder / "2.smp")
        until_sync(ctl, "s", lambda view: view.done == 2 and view.error is None)
        assert len(ctl.jobs()) == 2
        assert [b"remote.replace" in line for line in ctl.audit_lines()].count(True) == 2
        assert faults(machine) == []


def test_a_remote_with_a_job_under_way(tmp_path: Path) -> None:
    """The job is tried again with the new secret, and does not fail."""
    config = {"fetch": {"slots": 3, "slot_bytes": MIB, "processes": 1}}
    with box(tmp_path / "box", config) as machine, client(machine) as ctl, gated_s3({}) as (store, served):
        sender = Person(machine, tmp_path, "hospital")
        sender.knows(box_key(machine, tmp_path), "box")
        believe(machine, sender)
        add_remote(machine, "gated", served)
        (tmp_path / "volume.bin").write_bytes(np.random.default_rng(3).bytes(8 * MIB))
        store.objects["volume.smp"] = sender.seal([tmp_path / "volume.bin"], tmp_path / "volume.smp").read_bytes()
        store.hold_after(4 * MIB)
        job = ctl.submit(GetSpec("gated:volume.smp"))
        store.until_held(1)
        ctl.remote_add("gated", served.config, secret=S3Secret("AK", "another"), replace=True)
        store.release()
        assert ctl.wait(job.id).state == "done"
