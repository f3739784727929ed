"""Servers and a box that the end-to-end tests share; tests that kill the daemon bring their own."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from box import Box, box
from refusals import WRONG, Bench, install_wrong_processors
from scene import DICOM, Person, Site, add_remote, believe, box_key, client, faults
from servers import rclone_s3, rclone_sftp

from smp_proto.sealed.keys import Identity, PublicIdentity


@pytest.fixture(scope="session")
def dicom() -> list[Path]:
    """The 150 files of a public DICOM series."""
    files = sorted(DICOM.glob("*.dcm"))
    if not files:
        pytest.skip(f"there is no series in {DICOM}")
    assert len(files) == 150
    return files


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One box with S3 (rclone) and SFTP (rclone) for the whole run of these tests; slots are few, to find deadlocks."""
    folder = tmp_path_factory.mktemp("site")
    config = {
        "fetch": {"slots": 2, "slot_bytes": 1 << 20, "processes": 2},
        "compute": {"slots": 2, "result_slots": 2},
        "jobs": {"running_max": 8},
    }
    with contextlib.ExitStack() as stack:
        s3 = stack.enter_context(rclone_s3(folder / "s3"))
        (folder / "keys").mkdir()
        sftp = stack.enter_context(rclone_sftp(folder / "sftp", folder / "keys"))
        machine = stack.enter_context(box(folder / "box", config))
        sender, doctor = Person(machine, folder, "hospital"), Person(machine, folder, "doctor")
        key = box_key(machine, folder)
        for person in (sender, doctor):
            person.knows(key, "box")
            believe(machine, person)
        sender.knows(doctor.public(), "doctor")
        assert s3.path
        assert sftp.path
        served = {"s3": s3, "sftp": sftp}
        for name, each in served.items():
            for mode in ("standard", "streaming"):
                add_remote(machine, f"{name}-{mode}", each, mode)
            add_remote(machine, name, each)
        site = Site(machine, sender, doctor, {"s3": s3.path, "sftp": sftp.path}, served)
        yield site
        assert not faults(machine)


@pytest.fixture(scope="session")
def bench_of_the_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One box for all that is given wrong input; a range is one segment, so that several are under way at once."""
    folder = tmp_path_factory.mktemp("bench")
    config = {
        "fetch": {"slots": 2, "slot_bytes": 1 << 20, "processes": 1},
        "compute": {
            "slots": 2,
            "processors": ["digest", *WRONG],
            "timeout_s": 2.0,
            "memory_bytes": 1 << 28,
            "leak_runs": 3,
            "leak_bytes": 20 << 20,
        },
        "jobs": {"running_max": 4, "attempts": 2, "remote_wait_s": 0.5},
    }
    with contextlib.ExitStack() as stack:
        s3 = stack.enter_context(rclone_s3(folder / "s3"))
        assert s3.path
        machine = Box(folder / "box", config)
        machine.env["PYTHONPATH"] = str(install_wrong_processors(folder / "plugins"))
        stack.callback(machine.close)
        machine.start()
        add_remote(machine, "s3", s3)
        machine.ctl("remote", "add", "disk", f"file://{s3.path}")
        caller = stack.enter_context(client(machine))
        public = PublicIdentity.parse(caller.box_key().text)
        bench = Bench(machine, folder, s3.path, Identity.generate("hospital"), caller, s3, public)
        bench.believe(bench.sender)
        bench.good = bench.seal()
        bench.store("good.smp", bench.good, "s3")
        yield bench
        bench.no_plaintext()
        machine.ctl("audit", "verify")
        assert not faults(machine)
        assert machine.stop() == 0


@pytest.fixture
def bench(bench_of_the_run: Bench) -> Iterator[Bench]:
    """The box that is given wrong input; after each test it is up, its audit log holds, and a good job works."""
    yield bench_of_the_run
    bench_of_the_run.works()
