"""How smpd starts its workers, and that they cannot turn to it."""

import json
from pathlib import Path

import pytest
from box import Box

from smpd.transfer.workers import start_worker
from smpd.walls.sandbox import WALLS, Kernel

KERNEL = Kernel.probe()


@pytest.mark.parametrize("role", ["fetch", "compute"])
async def test_the_working_folder_is_no_code(role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies where the daemon was started is neither imported nor on the path: by the folder, or PYTHONPATH."""
    (tmp_path / "msgspec.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ":.")
    async with start_worker(role, "x") as worker:
        proc = Path(f"/proc/{worker.pid}")
        argv = (proc / "cmdline").read_bytes().split(b"\0")
        assert argv[1:4] == [b"-P", b"-m", f"smpd.{role}".encode()]
        assert (proc / "cwd").readlink() == Path("/")
        with pytest.raises(Exception, match="decode|protocol|not understood|valid"):
            await worker.caller.call({"op": "none"}, type(None), timeout=60)


@pytest.mark.skipif(not (KERNEL.landlock_abi and KERNEL.seccomp), reason="this kernel lacks a wall")
def test_doctor_shows_the_walls_of_a_started_remote(tmp_path: Path) -> None:
    """Each wall of a remote that was used is listed, and it is used with all of them required."""
    box = Box(tmp_path / "box", {"compute": {"sandbox": "required", "processors": []}})
    root = tmp_path / "root"
    root.mkdir()
    try:
        box.start()
        box.ctl("remote", "add", "ward", f"file://{root}", "--no-secret")
        assert "ward" not in box.ctl("doctor", check=False).stdout.decode()
        box.ctl("remote", "test", "ward")
        lines = box.ctl("doctor", "--json", check=False).stdout.splitlines()
        checks = {check["name"]: check["state"] for check in map(json.loads, lines)}
        assert {name: checks.get(name) for name in (f"fetch ward {wall}" for wall in WALLS)} == {
            f"fetch ward {wall}": "ok" for wall in WALLS
        }
    finally:
        box.close()
