"""Another version is installed over a daemon that runs: nothing of it is mixed into the old one, and no job is lost."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from box import Box
from manager import Manager
from scene import Following, client

import smp_proto
import smpd
from smp_proto.control import GetSpec, LocalConfig
from smp_proto.errors import SmpError

SHOWN = "another version"


@pytest.fixture
def manager() -> Iterator[Manager]:
    """A service manager, which is told how the daemon is."""
    with tempfile.TemporaryDirectory(prefix="smpd-") as folder, Manager(f"{folder}/notify") as manager:
        yield manager


def test_jobs_wait_for_the_restart(tmp_path: Path, manager: Manager) -> None:
    """A job that needs a new worker waits, without an attempt; people are told what to do; then it goes on."""
    installed, stored = tmp_path / "installed", tmp_path / "stored"
    for package in (smpd, smp_proto):
        source = Path(package.__file__).parent
        shutil.copytree(source, installed / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    stored.mkdir()
    (stored / "scan.raw").write_bytes(bytes(1000))
    box = Box(tmp_path / "box", {"compute": {"processors": []}})
    box.env |= {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}  # not the one in the folder of the start
    box.manager = manager
    try:
        box.start()
        with client(box) as caller, Following(box) as following:
            caller.remote_add("disk", LocalConfig(str(stored)), mode="standard")
            with (installed / "smpd" / "__init__.py").open("a") as file:
                file.write("# the next version\n")
            job = caller.submit(GetSpec("disk:scan.raw")).id
            view = following.until(job, lambda view: view.state == "waiting")
            assert (view.attempt, view.error and view.error.code) == (0, "program_replaced")
            failed = [check for check in caller.doctor() if check.state == "fail" and SHOWN in check.text]
            assert any("systemctl restart smpd" in check.hint for check in failed)
            with pytest.raises(SmpError, match="is not started") as caught:
                caller.remote_test("disk")
            assert caught.value.code == "program_replaced"
            manager.until(lambda line: line.startswith("STATUS=") and SHOWN in line)
        assert box.stop() == 0
        box.start()
        with client(box) as caller:
            assert caller.wait(job).state == "done"
            assert not [check for check in caller.doctor() if SHOWN in check.text]
    finally:
        box.close()
    assert os.listdir(box.state / "spool") == []
