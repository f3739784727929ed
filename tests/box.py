"""A whole box for end-to-end tests: a real ``smpd`` process with its own state, and the real ``smpctl``."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from manager import Manager

START_TIMEOUT_S = 60.0
LAUNCH = ["-m", "smpd"]  # how the daemon is started; torture.planted has it start with faults


class Box:
    """One machine: state, configuration, keyring, daemon.

    Args:
        folder: where all of it lives.
        config: sections of the configuration, over defaults that suit tests.
    """

    def __init__(self, folder: Path, config: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self.folder = folder
        self.state = folder / "state"
        # A socket path has at most 107 bytes, and pytest's folders are long.
        self._runtime = tempfile.TemporaryDirectory(prefix="smpd-")
        self.socket = Path(self._runtime.name) / "run" / "s"
        self.config = folder / "config.toml"
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "smpd.log"
        self.manager: Manager | None = None  # of the service, where a test has one
        self.sections: dict[str, dict[str, Any]] = {
            "paths": {"state": str(self.state), "socket": str(self.socket)},
            "jobs": {"backoff_base_s": 0.05, "backoff_max_s": 0.2, "drain_s": 0.0},
            "fetch": {"slots": 4},
            "compute": {"slots": 4, "device": "cpu", "probe": "use"},
            "space": {"reserve_bytes": 4 << 20},
        }
        for name, values in (config or {}).items():
            self.sections.setdefault(name, {}).update(values)
        folder.mkdir(parents=True, exist_ok=True)
        self.configure()
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(("SMPD_", "XDG_"))}
        self.env |= {"XDG_CONFIG_HOME": str(folder / "xdg"), "SMPD_SOCKET": str(self.socket), "NO_COLOR": "1"}
        self.env |= {"LD_BIND_NOW": "1"}  # else smpd starts itself once more, which takes 50 ms

    def configure(self, **changes: Mapping[str, Any]) -> None:
        """Write the configuration, with some keys changed."""
        for name, values in changes.items():
            self.sections.setdefault(name, {}).update(values)
        lines = [
            line
            for name, values in self.sections.items()
            for line in (f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items()))
        ]
        self.config.write_text("\n".join(lines))

    def start(self, *, wait: bool = True) -> None:
        """Start the daemon and wait until it says READY (sd_notify)."""
        if self.manager is not None:
            since = len(self.manager.told)
            self._launch(self.manager.address)
            self.manager.until(lambda line: line == "READY=1", since)
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            address = f"{self._runtime.name}/notify"
            Path(address).unlink(missing_ok=True)
            ready.bind(address)
            ready.settimeout(START_TIMEOUT_S)
            self._launch(address)
            while wait and b"READY=1" not in ready.recv(4096):
                pass

    def _launch(self, address: str) -> None:
        environment = {key: value for key, value in self.env.items() if key != "SMPD_SOCKET"}
        if LAUNCH[1] != "smpd":
            places = [str(Path(__file__).parent), environment.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, places))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *LAUNCH, "--config", str(self.config)],
                env={**environment, "NOTIFY_SOCKET": address},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(START_TIMEOUT_S)

    def kill(self) -> None:
        """SIGKILL: what a crash looks like."""
        assert self.process
        self.process.kill()
        self.process.wait(START_TIMEOUT_S)

    def ctl(
        self, *arguments: str | Path, stdin: bytes = b"", check: bool = True, timeout: float = 100
    ) -> subprocess.CompletedProcess[bytes]:
        """Run ``smpctl``."""
        done = subprocess.run(
            [sys.executable, "-m", "smpctl", *map(str, arguments)],
            env=self.env,
            input=stdin,
            capture_output=True,
            timeout=timeout,
        )
        if check and done.returncode:
            raise AssertionError(f"smpctl {arguments} exited {done.returncode}: {done.stderr.decode()}")
        return done

    def ctl_begun(self, *arguments: str | Path) -> "subprocess.Popen[str]":
        """Start ``smpctl``, with pipes to its output."""
        command = [sys.executable, "-m", "smpctl", *map(str, arguments)]
        return subprocess.Popen(
            command, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def json(self, *arguments: str | Path, stdin: bytes = b"", check: bool = True) -> Any:
        """Run ``smpctl --json`` and decode its one object."""
        done = self.ctl(*arguments, "--json", stdin=stdin, check=check)
        return json.loads(done.stdout)

    def close(self) -> None:
        """Stop what runs."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._runtime.cleanup()


@contextmanager
def box(folder: Path, config: Mapping[str, Mapping[str, Any]] | None = None) -> Iterator[Box]:
    """A box whose daemon runs for the length of a block."""
    machine = Box(folder, config)
    try:
        machine.start()
        yield machine
    finally:
        machine.close()
