"""A compute process of another user: started by a keeper, and in smpd's hands all the same."""

import contextlib
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import anyio
import pytest
from box import Box, box
from keepers import OTHER, WAIT_S, as_other, environment, keepers, keepers_of_systemd, open_folder, python
from refusals import install_wrong_processors
from scene import read_digests

from smp_proto.errors import SmpError
from smpd.transfer.keeping import start_kept
from smpd.transfer.workers import start_worker

DAEMON = 1  # a user that every Debian has and that nothing runs as
KEEPER = re.compile(r"compute\.keeper")


@contextlib.contextmanager
def by_keeper(folder: Path, path: str, *processors: str) -> Iterator[Box]:
    """A box whose compute processes are had from ``path``, with an object in a remote."""
    compute = {"start": "socket", "socket": path, "sandbox": "required", "timeout_s": 2.0}
    config = {"compute": {**compute, "processors": ["digest", *processors]}, "jobs": {"attempts": 2}}
    (folder / "ward").mkdir()
    (folder / "ward" / "a.bin").write_bytes(b"scan" * 1000)
    with box(folder / "box", config) as machine:
        machine.ctl("remote", "add", "ward", f"file://{folder}/ward", "--mode", "standard")
        yield machine


@contextlib.contextmanager
def path_of_keepers() -> Iterator[str]:
    with keepers() as found:
        yield found.path


def digest(machine: Box, folder: Path) -> str:
    """What a run says of the object."""
    machine.ctl("run", "digest", "ward:a.bin", "--export", folder, "--force")
    return read_digests(folder)["a.bin"]


def compute_of(machine: Box) -> int:
    """The process that has ``digest``."""
    (pid,) = [each["pid"] for each in machine.json("status")["workers"] if each["label"] == "secure-media-processor"]
    assert pid
    return pid


def status(pid: int) -> dict[str, str]:
    return dict(re.findall(r"^(\w+):\s*(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))


@contextlib.contextmanager
def watched(pid: int) -> Iterator[int]:
    """A pidfd of a process, which must be gone at the end of the block."""
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
        assert select.select([pidfd], [], [], WAIT_S)[0], f"{pid} is still there"
    finally:
        os.close(pidfd)


@pytest.mark.parametrize("how", ["stand-in", "systemd"])
def test_a_run_in_the_process_of_another_user(how: str) -> None:
    """The result is right, doctor says how it is started, and that user neither is smpd's nor sees its state."""
    expected = sha256(b"scan" * 1000).hexdigest()
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(keepers_of_systemd() if how == "systemd" else path_of_keepers())
        folder = stack.enter_context(open_folder())
        machine = stack.enter_context(by_keeper(folder, path))
        assert digest(machine, folder / "out") == expected
        checks = machine.ctl("doctor", check=False).stdout.decode()
        assert f"started by the keeper at {path}, as another user" in checks
        assert len(re.findall(r"^ok +sandbox \w+ +on$", checks, re.MULTILINE)) == 5
        pid = compute_of(machine)
        seen = status(pid)
        assert (set(seen["Uid"].split()), seen["NoNewPrivs"], seen["Seccomp"]) == ({str(OTHER)}, "1", "2")
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "500\n"
        assert os.sched_getscheduler(pid) == os.SCHED_BATCH
        key = machine.state / "keys" / "identity.key"
        assert key.exists()
        code = f"import os; print(os.listdir({str(machine.folder)!r}), flush=True); open({str(key)!r})"
        said = as_other([python(), "-c", code], uid=OTHER)
        assert ("'state'" in said.stdout, "PermissionError" in said.stderr) == (True, True)

        # One that dies costs at most an attempt.
        with watched(pid):
            os.kill(pid, signal.SIGKILL)
        assert digest(machine, folder / "out") == expected
        assert compute_of(machine) != pid
        with watched(compute_of(machine)):
            machine.kill()


def test_what_goes_wrong_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that crashes fails its job with worker_died, one that never lets go of Python is killed; the next job runs."""
    with contextlib.ExitStack() as stack:
        plugins = install_wrong_processors(stack.enter_context(open_folder()) / "plugins")
        monkeypatch.setenv("PYTHONPATH", str(plugins))
        found = stack.enter_context(keepers("root", OTHER, plugins))
        with by_keeper(tmp_path, found.path, "wrong.crashes", "wrong.spins") as machine:
            for processor, code in ("wrong.crashes", "worker_died"), ("wrong.spins", "processor_timeout"):
                job = machine.json("run", processor, "ward:a.bin", check=False)
                assert job["error"]["code"] == code, job
            assert digest(machine, tmp_path / "out") == sha256(b"scan" * 1000).hexdigest()


def calls(name: str) -> set[str]:
    """The system calls of a group of systemd's, and of the groups in it."""
    command = ["systemd-analyze", "syscall-filter", name]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "NO_COLOR": "1"})
    names = {line.strip() for line in said.stdout.splitlines()[1:]}
    groups = {each for each in names if each.startswith("@")}
    return {each for each in names - groups if not each.startswith("#")}.union(*map(calls, groups))


@pytest.mark.skipif(not shutil.which("strace") or not shutil.which("systemd-analyze"), reason="a tool is missing")
def test_the_unit_s_filter_lets_it_work(tmp_path: Path) -> None:
    """Of all system calls that keeper and process make for a run the unit refuses capset, whose refusal is planned for."""
    unit = Path(__file__).parents[2] / "systemd" / "smpd-compute@.service"
    allowed: set[str] = set()
    for line in re.findall(r"^SystemCallFilter=(.*)$", unit.read_text(), re.MULTILINE):
        for each in line.lstrip("~").split():
            named = calls(each) if each.startswith("@") else {each}
            allowed = allowed - named if line.startswith("~") else allowed | named
    with open_folder() as folder:
        folder.chmod(0o777)
        strace = ["strace", "-f", "-qq", "-o", f"{folder}/trace"]
        with keepers(before=strace) as found, by_keeper(tmp_path, found.path) as machine:
            digest(machine, tmp_path / "out")
        made = set(re.findall(r"^\d+ +(?:<\.\.\. )?(\w+)(?:\(| resumed)", (folder / "trace").read_text(), re.MULTILINE))
    assert {"landlock_restrict_self", "seccomp", "pidfd_open"} <= made
    assert made - allowed == {"capset"}


async def test_no_keeper_outlives_smpd_and_no_process_its_keeper() -> None:
    """When smpd is gone, however, both are; when the keeper is killed, so is the process; smpd hears of either."""
    with keepers() as found:
        ours, process = await start_kept(found.path, "x")
        keeper = found.next().pid
        assert int(status(process.pid)["PPid"]) == keeper
        with ours, watched(process.pid) as pidfd, watched(keeper):
            process.kill()
            with anyio.fail_after(WAIT_S):
                await process.aclose()
            assert select.select([pidfd], [], [], 0)[0], "smpd went on before it was gone"

        ours, process = await start_kept(found.path, "x")
        with ours, watched(process.pid):
            found.next().kill()
            with anyio.fail_after(WAIT_S):
                await process.aclose()
            assert await anyio.to_thread.run_sync(ours.recv, 1) == b""


def test_users_who_have_no_power_over_each_other() -> None:
    """A smpd that is not root watches the process of another user, and has it killed."""
    code = (
        "import anyio, os, sys\n"
        "from smpd.host.memory import usage\n"
        "from smpd.transfer.workers import kill, start_worker\n"
        "async def main():\n"
        "    async with start_worker('compute', 'x', sys.argv[1]) as worker:\n"
        "        try:\n"
        "            os.kill(worker.pid, 9)\n"
        "        except PermissionError:\n"
        "            print('not ours')\n"
        "        assert usage(worker.pid).threads == 1 and usage(worker.pid).memory_bytes > 0\n"
        "        kill(worker.process)\n"
        "        with anyio.fail_after(60):\n"
        "            await worker.process.wait()\n"
        "    print('gone')\n"
        "anyio.run(main)\n"
    )
    with keepers("daemon") as found:
        said = as_other([python(), "-P", "-c", code, found.path], uid=DAEMON)
        assert (said.stdout, said.stderr) == ("not ours\ngone\n", "")


def test_a_process_that_cannot_be_watched() -> None:
    """Where /proc hides the processes of others, none is used: nobody would see how much memory it takes."""
    code = (
        "import anyio, sys\n"
        "from smp_proto.errors import SmpError\n"
        "from smpd.transfer.keeping import start_kept\n"
        "try:\n"
        "    anyio.run(start_kept, sys.argv[1], 'x')\n"
        "except SmpError as error:\n"
        "    print(error.code, error.hint)\n"
    )
    hidden = "mount -t proc -o hidepid=2 proc /proc || exit 77; exec setpriv --reuid=1 --regid=1 --clear-groups $0 $@"
    with keepers("daemon") as found:
        command = ["unshare", "-m", "sh", "-c", hidden, python(), "-P", "-", found.path]
        done = subprocess.run(command, env=environment(), cwd="/", input=code, capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("/proc cannot be mounted here")
    assert done.stdout == "bad_config mount /proc without hidepid, and set no ProtectProc for smpd\n", done.stderr


def test_a_stranger_gets_nothing() -> None:
    """A user other than the one that the unit names is refused by the keeper, and nothing starts."""
    code = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "a, b = socket.socketpair(); socket.send_fds(s, [b's'], [b.fileno()]); b.close()\n"
        "print(a.recv(1))\n"
    )
    with keepers("root") as found:
        assert as_other([python(), "-P", "-c", code, found.path], uid=DAEMON).stdout == "b''\n"
        assert found.next().wait(WAIT_S) == 76
        assert found.said == "keeper: user 1 is neither root nor root\n"


@pytest.mark.parametrize("first", [b"", b"x", b"s"])
def test_a_keeper_starts_nothing_without_a_link(first: bytes) -> None:
    """smpd that is gone at once, or sends something else."""
    with keepers() as found, socket.socket(socket.AF_UNIX) as caller:
        caller.connect(found.path)
        caller.sendall(first)
        caller.shutdown(socket.SHUT_WR)
        assert found.next().wait(WAIT_S) == 76


@pytest.mark.parametrize("arguments", [[], ["nobody-of-that-name"], ["root", "x"]])
def test_a_keeper_started_by_hand(arguments: list[str]) -> None:
    """It says what it is."""
    command = [sys.executable, "-m", "smpd.compute.keeper", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert (done.returncode, done.stderr[:6]) == (2, "usage:")


def test_without_a_socket(tmp_path: Path) -> None:
    """The job's error and doctor name the socket that is not there, and what to do; smpd itself is up."""
    with by_keeper(tmp_path, "/run/no-such.sock") as machine:
        job = machine.json("run", "digest", "ward:a.bin", check=False)
        assert job["error"]["code"] == "worker_died"
        assert "/run/no-such.sock: No such file" in job["error"]["message"]
        assert "smpd-compute.socket" in job["error"]["hint"]
        assert "/run/no-such.sock: No such file" in machine.ctl("doctor", check=False).stdout.decode()


async def refusal(path: str) -> SmpError:
    with pytest.raises(SmpError) as caught:
        async with start_worker("compute", "x", path):
            pass
    return caught.value


async def test_a_listener_that_is_not_root() -> None:
    """Nothing is sent to somebody else's process: it would be given plaintext."""
    code = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()\n"
        "print(flush=True); c, _ = s.accept(); print(c.recv(1))\n"
    )
    with open_folder() as folder:
        folder.chmod(0o777)
        command = [python(), "-P", "-c", code, f"{folder}/c"]
        with subprocess.Popen(  # noqa: ASYNC220 - it answers at once
            command, user=OTHER, group=OTHER, extra_groups=[], env=environment(), cwd="/", stdout=subprocess.PIPE
        ) as process:
            assert process.stdout
            process.stdout.readline()
            error = await refusal(f"{folder}/c")
            assert (error.code, str(OTHER) in error.message) == ("bad_config", True)
            assert process.stdout.readline() == b"b''\n"


async def test_a_process_that_is_no_other_user_s() -> None:
    """One that runs as smpd's own user, or as root, would be an administrator at the control socket."""
    with keepers("root", 0) as found:
        error = await refusal(found.path)
        assert (error.code, error.message.endswith("runs as user 0")) == ("bad_config", True)


async def test_a_keeper_that_starts_nothing() -> None:
    """It ends without an answer: the error says where to look."""
    with keepers("nobody-of-that-name") as found:
        error = await refusal(found.path)
        assert (error.code, error.retryable) == ("worker_died", True)
        assert "journalctl" in error.hint
