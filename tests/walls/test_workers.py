"""How smpd starts its workers, and that they cannot turn to it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from box import Box

from smpd.transfer.workers import start_worker
from smpd.walls.sandbox import WALLS, Kernel

KERNEL = Kernel.probe()
WITHOUT_CAPSET = """
import errno, os, sys
from smpd.walls import sandbox, seccomp
machine = os.uname().machine
walls = sandbox.Sandbox("required", sandbox.Kernel.probe())
if sys.argv[1] == "none":
    walls.forgo_privileges(0)
walls._prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
refuse = [seccomp._op(seccomp._RETURN, seccomp._ERRNO | errno.EPERM)]
code = [seccomp._op(seccomp._LOAD, 0), *seccomp._case({"x86_64": 126, "aarch64": 91}[machine], refuse)]
seccomp.install(walls._libc, machine, b"".join([*code, seccomp._op(seccomp._RETURN, seccomp._ALLOW)]))
try:
    walls.forgo_privileges(0)
finally:
    print(walls.walls["capabilities"])
"""
EMPTYING = """
import ctypes, os, sys
from smpd.walls import landlock, sandbox
folder, machine = sys.argv[1], os.uname().machine
walls = sandbox.Sandbox("required", sandbox.Kernel(machine, int(sys.argv[2]), True))
walls.forgo_privileges(0)
walls.enter_landlock([landlock.Rule(folder + "/code")])
walls.enter_seccomp()
libc = ctypes.CDLL(None, use_errno=True)
def openat2(path, flags):
    how = (ctypes.c_uint64 * 3)(flags, 0, 0)
    return libc.syscall(437, -100, path.encode(), how, 24) < 0 and ctypes.get_errno()
def opened(path, flags):
    try:
        os.close(os.open(path, flags))
    except OSError as error:
        return error.errno
for path in (folder + "/code/a.py", folder + "/smpd.db"):
    for access in (os.O_RDONLY, os.O_ACCMODE):
        for call in (opened, openat2):
            print(call(path, access | os.O_TRUNC))
print(opened(folder + "/code/a.py", os.O_RDONLY), opened("/dev/null", os.O_WRONLY | os.O_TRUNC))
"""


@pytest.mark.parametrize("role", ["fetch", "compute", "opening"])
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


@pytest.mark.parametrize("arguments", [[], ["0"], ["999"], ["x"], ["3", "4"]])
@pytest.mark.parametrize("role", ["fetch", "compute", "opening"])
def test_a_worker_that_a_person_starts_says_that_it_is_not_for_that(role: str, arguments: list[str]) -> None:
    """By one line, whatever they give it."""
    command = [sys.executable, "-m", f"smpd.{role}", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"usage: python -m smpd.{role} FD (a socket; started by smpd, not by hand)\n"


@pytest.mark.skipif(not (KERNEL.landlock_abi and KERNEL.seccomp), reason="this kernel lacks a wall")
def test_doctor_shows_the_walls_of_a_remote(tmp_path: Path) -> None:
    """Each wall of a remote is listed: it is tried with all of them required."""
    box = Box(tmp_path / "box", {"compute": {"sandbox": "required", "processors": []}})
    root = tmp_path / "root"
    root.mkdir()
    try:
        box.start()
        box.ctl("remote", "add", "ward", f"file://{root}", "--no-secret")
        lines = box.ctl("doctor", "--json", check=False).stdout.splitlines()
        checks = {check["name"]: check["state"] for check in map(json.loads, lines)}
        assert {name: checks.get(name) for name in (f"fetch ward {wall}" for wall in WALLS)} == {
            f"fetch ward {wall}": "ok" for wall in WALLS
        }
    finally:
        box.close()


@pytest.mark.skipif(os.geteuid() != 0 or not KERNEL.seccomp, reason="to hold a capability needs root")
@pytest.mark.parametrize(("held", "wall"), [("none", "on"), ("all", "Operation not permitted")])
def test_a_worker_that_may_not_call_capset(held: str, wall: str) -> None:
    """As the units have it (@privileged): the wall is up when there is no capability to drop, and only then."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_CAPSET, held], capture_output=True, text=True)
    assert done.stdout.strip() == wall, done.stderr
    assert (done.returncode == 0) == (held == "none")


@pytest.mark.skipif(not (KERNEL.landlock_abi and KERNEL.seccomp), reason="this kernel lacks a wall")
@pytest.mark.parametrize("abi", [1, 2, KERNEL.landlock_abi])
def test_no_file_is_emptied_that_may_only_be_read_or_not_even_that(tmp_path: Path, abi: int) -> None:
    """Whatever the call, also where Landlock (before 6.2) has no right for that: neither code nor the database."""
    (tmp_path / "code").mkdir()
    files = [tmp_path / "code" / "a.py", tmp_path / "smpd.db"]
    for file in files:
        file.write_text("content")
    done = subprocess.run([sys.executable, "-c", EMPTYING, tmp_path, str(abi)], capture_output=True, text=True)
    *refused, allowed = done.stdout.splitlines()
    assert set(refused) <= {"1", "13", "38"}, (refused, done.stderr)
    assert len(refused) == 8
    assert allowed == "None None"
    assert [file.read_text() for file in files] == ["content"] * 2
