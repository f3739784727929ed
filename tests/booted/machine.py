"""A machine that is booted with systemd: this one's files under another root, in namespaces of its own (systemd-nspawn).

What is installed and written there is in memory and goes with it. It has a loopback of its own and no other network.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

BOOT_S = 60.0
INSTALL_S = 900.0
LAYER_BYTES = 8 << 30
_ENVIRONMENT = ("PIP_", "http_proxy", "https_proxy", "SSL_CERT_FILE")  # for the installation alone
_SIGNAL_POWEROFF = signal.SIGRTMIN + 4  # systemd(1)


def no_machine() -> str:
    """Why none can be booted here, or nothing."""
    if os.geteuid() != 0:
        return "only root can boot one"
    return next((f"{name} is not installed" for name in ("systemd-nspawn", "nsenter") if not shutil.which(name)), "")


class Machine:
    """A machine that runs.

    Args:
        root: its root folder, as seen from here.
        init: the process id of its systemd.
    """

    def __init__(self, root: Path, init: int) -> None:
        self.root = root
        self._enter = ["nsenter", "-t", str(init), "-m", "-u", "-i", "-n", "-p", "-C", "--wd=/"]

    def run(
        self, *argv: str, user: str = "", check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there, as root or as somebody with all of their groups."""
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8", "HOME": "/root"}
        command = ["runuser", "-u", user, "--", *argv] if user else list(argv)
        done = subprocess.run(
            [*self._enter, "--", *command],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, f"{argv}: {done.returncode}: {done.stdout}{done.stderr}"
        return done

    def show(self, unit: str, what: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", unit, "-p", what, "--value").stdout.strip()

    def write(self, path: str, text: str) -> None:
        """Write a file there."""
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    @contextlib.contextmanager
    def serving(self, *argv: str, ready: str) -> Iterator[re.Match[str]]:
        """Run a server of ours in its network, until the block ends; ``ready`` is the line that says it listens."""
        command = [*self._enter[:3], "-n", "--", *argv]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout
            found = next(filter(None, (re.search(ready, line) for line in process.stdout)), None)
            drain = threading.Thread(target=deque, args=(process.stdout, 0), daemon=True)
            drain.start()
            try:
                assert found, f"{argv[0]} did not start"
                yield found
            finally:
                process.kill()
                drain.join()


@contextlib.contextmanager
def machine(folder: Path, files: Sequence[Path], install: str) -> Iterator[Machine]:
    """Boot one for the length of a block.

    Args:
        folder: for its files.
        files: are copied to its ``/srv``.
        install: a script of sh that is run there before, with this machine's network.
    """
    layer, root = folder / "layer", folder / "root"
    with contextlib.ExitStack() as stack:
        _mount(stack, "tmpfs", layer, f"size={LAYER_BYTES},mode=0755")
        for name in ("upper", "work"):
            (layer / name).mkdir()
        _mount(stack, "overlay", root, f"lowerdir=/,upperdir={layer}/upper,workdir={layer}/work")
        _clear(root)
        for file in files:
            shutil.copy(file, root / "srv")
        nspawn = ["systemd-nspawn", "-q", "-D", str(root), "--register=no", "--keep-unit", "-M", f"smp-{os.getpid()}"]
        given = [f"--setenv={name}={value}" for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)]
        script = ["/bin/sh", "-ec", install]
        subprocess.run([*nspawn, *given, "--pipe", *script], check=True, timeout=INSTALL_S, stdin=subprocess.DEVNULL)
        boot = [*nspawn, "--private-network", "--capability=all", "--console=pipe", "--boot"]
        # Without this nspawn has a filter of its own, which knows no Landlock.
        environment = {**os.environ, "SYSTEMD_SECCOMP": "0"}
        with (folder / "console").open("wb") as console:
            process = subprocess.Popen(
                boot, env=environment, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True
            )
        stack.callback(_power_off, process)
        yield _booted(root, process)


def _mount(stack: contextlib.ExitStack, kind: str, place: Path, options: str) -> None:
    place.mkdir()
    subprocess.run(["mount", "-t", kind, "-o", options, kind, str(place)], check=True)
    stack.callback(subprocess.run, ["umount", "-l", str(place)], check=True)


def _clear(root: Path) -> None:
    """It is another machine: nothing of what this one runs is to run there, nor an SMP that is set up here."""
    (root / "etc/machine-id").write_text(f"{os.urandom(16).hex()}\n")
    units = root / "etc/systemd/system"
    for link in [*units.glob("*.wants/*"), *units.glob("*.requires/*"), *units.glob("smpd*")]:
        shutil.rmtree(link) if link.is_dir() and not link.is_symlink() else link.unlink()
    for place in ("opt/smp", "etc/smpd", "var/lib/smpd", "etc/credstore.encrypted"):
        shutil.rmtree(root / place, ignore_errors=True)


def _booted(root: Path, process: subprocess.Popen[bytes]) -> Machine:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    found: Machine | None = None
    with contextlib.suppress(subprocess.TimeoutExpired):
        while found is None:
            for pid in children.read_text().split():
                if os.readlink(f"/proc/{pid}/exe").endswith("/systemd"):
                    found = Machine(root, int(pid))
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(0.1)
                raise AssertionError(f"the machine did not boot: {code}")
    found.run("systemctl", "is-system-running", "--wait", check=False, timeout=BOOT_S)
    return found


def _power_off(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
