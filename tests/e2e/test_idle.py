"""An idle box: its workers are let go, their rings with them, and both are back when there is work."""

from pathlib import Path

from box import box
from faulty import until
from scene import client, done, read_digests, sha256, workers

from smp_proto.control import GetSpec


def test_rings_go_with_idle_workers_and_come_back(tmp_path: Path) -> None:
    """After the last job no worker and no ring is left, the mapping included; the next jobs find both again."""
    store = tmp_path / "store"
    store.mkdir()
    (store / "scan").write_bytes(bytes(range(256)) * 8192)
    config = {
        "fetch": {"idle_s": 0.2, "slot_bytes": 1 << 20, "processes": 1},
        "compute": {"idle_s": 0.2, "processors": ["digest"]},
    }
    with box(tmp_path / "box", config) as machine, client(machine) as caller:
        machine.ctl("remote", "add", "disk", f"file://{store}", "--mode", "standard")
        assert machine.process
        maps = Path(f"/proc/{machine.process.pid}/maps")
        for number in range(2):
            out = tmp_path / f"out{number}"
            machine.ctl("run", "digest", "disk:scan", "--export", out)
            assert read_digests(out) == {"scan": sha256((store / "scan").read_bytes())}
            done(caller.wait(caller.submit(GetSpec("disk:scan")).id))
            for job in caller.jobs(limit=2):
                view = caller.job(job.id)
                named = {"get": {"seal", "store"}, "run": {"compute", "store"}}[job.kind]
                assert {each.name for each in view.stages} >= named
                spent = sum(each.seconds for each in view.stages)
                assert abs(spent - (view.updated - view.created)) < 0.1  # to the millisecond, each of them
            while workers(machine, "fetch") or workers(machine, "compute"):
                caller.box_key()
            while (found := caller.status()).ring_bytes:
                assert {each.state for each in found.workers} <= {"idle", "up"}
            assert "memfd:smp-" not in maps.read_text()
        assert {(each.role, each.restarts) for each in caller.status().workers} >= {("compute", 1)}


def test_what_was_recorded_is_signed_although_nothing_more_comes(tmp_path: Path) -> None:
    """After a kill nobody can change it: it is covered as long after it was written as the configuration says."""
    with box(tmp_path, {"audit": {"checkpoint_s": 0.2}}) as machine, client(machine) as caller:
        until(lambda: not caller.status().audit_unsigned)
