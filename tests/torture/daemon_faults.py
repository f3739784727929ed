"""A whole daemon works while one of its calls fails; then it is started without a fault, and nothing is missing."""

import contextlib
from typing import Any

from smp_proto.errors import SmpError
from smpctl import Client
from torture import strace, traced
from torture.harness import Trial
from torture.whole import Whole

# Each fault to each kind of call on each of its files, the nth of it in each thread. "." is every file.
CALLS_ON = {
    "write,pwrite64": ("smpd.db", "smpd.db-wal", "audit/audit.jsonl", "audit/checkpoints"),
    "fsync,fdatasync,syncfs": (
        ".",
        "smpd.db-wal",
        "audit/audit.jsonl",
        "keys",
        "vault/objects",
        "spool",
        "../ward/put",
    ),
    "openat": (
        "smpd.db",
        "smpd.db-wal",
        "audit/audit.jsonl",
        "audit/details.sqlite",
        "keys/identity.key",
        "../ward/put",
    ),
    "ftruncate,fallocate,sendfile": (".",),
    "rename,renameat,linkat,unlink,unlinkat": (".", "../ward/put"),
}
FAULTS = [
    (calls, path, fault, nth)
    for calls, paths in CALLS_ON.items()
    for path in paths
    for fault, nth in (("error=EIO", 1), ("error=ENOSPC", 2))
]


def check_order(trial: Trial, figures: dict[str, Any]) -> None:
    """The order of a daemon's calls, and of its workers', while nothing fails."""
    root, log = trial.folder / "root", trial.folder / "log"
    whole = Whole(root, trial.folder)
    try:
        whole.begin()
        with traced.tracing("-y", "-s", "256", "-o", str(log), "-e", f"trace={','.join(strace.CALLS)}"):
            assert traced.start(whole.box)
            work(whole)
            assert whole.box.stop() == 0
        figures["files named in order by a daemon"] = strace.check_order(strace.parse(log), root)
        assert {kind for kind, _ in whole.told} == {"believed", "remote", "job", "done"}
    finally:
        whole.box.close()


def try_daemon(number: int, trial: Trial, figures: dict[str, Any]) -> None:
    """Start, two remotes and a sender, a get, a put, another sender, stop; with one fault, and once more without."""
    calls, path, fault, nth = FAULTS[number]
    root, log = trial.folder / "root", trial.folder / "log"
    whole = Whole(root, trial.folder)
    where = [] if path == "." else ["-P", str((root / "state" / path).resolve())]
    options = [*where, "-o", str(log), "-e", f"trace={calls}", "-e", f"inject={calls}:{fault}:when={nth}"]
    try:
        whole.begin()
        with traced.tracing(*options):
            if traced.start(whole.box):
                work(whole)
                whole.box.stop()
        hit = "(INJECTED)" in log.read_text(errors="replace")
        figures["daemons"] = figures.get("daemons", 0) + 1
        figures["daemons hit"] = figures.get("daemons hit", 0) + hit
        whole.look(list(whole.told))
    except Exception as error:
        raise AssertionError(f"{FAULTS[number]}: {error!r}") from error
    finally:
        whole.box.close()


def work(whole: Whole) -> None:
    """What a client does; what is refused is let be."""
    with Client(str(whole.box.socket)) as client:
        for act in (whole.furnish, whole.get, whole.put, whole.change):
            with contextlib.suppress(SmpError, OSError):
                act(client)
