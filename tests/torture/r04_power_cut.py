"""R4: the power is cut, and what was acknowledged is there when it comes back.

The disk is a real one (see :mod:`torture.powercut`). Most trials let a child act in all rooms of the daemon and the client.
Every other of them is cut just after one act, of each kind in turn, so that nothing that comes later makes up for a sync
that is missing; the others in the midst of three threads. Some cut a whole daemon off.
"""

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from smp_proto import durable
from smp_proto.errors import SmpError
from smpctl import Client
from smpd.host import sqlite
from torture import acts, powercut
from torture.acts import Said, State
from torture.children import Child, Say
from torture.harness import Experiment, Trial, Trials, replaced
from torture.whole import Whole

THREADS = 3
ACTS_MAX = 40  # acknowledged before a cut in the midst of work
DAEMONS = 8  # one of so many trials cuts a daemon off

# Which act is the last before a cut, in turn. Those whose name in a folder is all that a sync is for come first.
LAST = (
    "key",
    "submit",
    "seal",
    "upload",
    "opened",
    "spool",
    "keep",
    "many",
    "remove",
    "record",
    "believe",
    "know",
    "rotate",
)


def do(name: str, root: Path, state: State, n: int, say: Say) -> None:
    """One act by its name, with those that it needs before it."""
    if name in acts.OF_FOLDER:
        say(acts.OF_FOLDER[name](root, n))
        return
    if name in ("spool", "keep", "many"):
        say(acts.submit(state, n))
    if name == "keep":
        say(acts.spool(state, n))
    if name == "remove":
        do("keep", root, state, n, say)
        say(Said("removing", n))  # from now on it may be there or not
    say(acts.OF_STATE[name](state, n))


def work(root: Path, seed: str, last: str) -> Callable[[Say, object], None]:
    """What the child does: a few acts and ``last``, or without it acts of all kinds until it is killed."""

    def one(state: State, say: Say, number: int) -> None:
        rng = random.Random(f"{seed}/{number}")
        names = (
            [rng.choice(LAST) for _ in range(rng.randrange(4))] + [last] if last else iter(lambda: rng.choice(LAST), "")
        )
        for count, name in enumerate(names):
            try:
                do(name, root, state, 10_000 * number + 10 * count, say)
            except (SmpError, OSError, ExceptionGroup):
                return  # the power is gone

    def all_of_it(say: Say, _: object) -> None:
        state = State(root)
        say(Said("open", 0))
        if last:
            one(state, say, 0)
            say(Said("quiet", 0))
        else:
            for number in range(THREADS):
                threading.Thread(target=one, args=(state, say, number)).start()
        signal.pause()

    return all_of_it


def cut_rooms(trial: Trial, figures: dict[str, Any]) -> None:
    """Cut a child off, and look for what it said."""
    index = trial.number // 2
    last = "" if trial.number % 2 else LAST[index % len(LAST)]
    with powercut.disk() as disk:
        root = disk.path / "root"
        acts.prepare(root / "made")
        child = Child(work(root, str(trial.rng.random()), last))
        child.wait_ready()
        wanted = trial.rng.randrange(1, ACTS_MAX)
        try:
            while Said("quiet", 0) not in child.said and (last or len(child.said) < wanted):
                assert child.read(), f"it stopped saying things after {child.said[-1:]}"
            while child.read(0):
                pass
            said = list(child.said)
            disk.cut()
        finally:
            child.kill()
            child.end()
        disk.restart()
        figures["acknowledged"] = figures.get("acknowledged", 0) + len(said)
        acts.look_for(root, said)
        assert not acts.leftovers(root / "state")


def cut_daemon(trial: Trial, figures: dict[str, Any]) -> None:
    """Cut a daemon off in the midst of work for three clients."""
    with powercut.disk() as disk:
        whole = Whole(disk.path, trial.folder)
        try:
            whole.begin()
            whole.box.start()
            with Client(str(whole.box.socket)) as client:
                whole.furnish(client)
            whole.work([["get", "put"], ["change", "get"], ["put"]], forever=True)
            whole.wait_for(trial.rng.randrange(4, 24))
            told = list(whole.told)
            disk.cut()
            whole.box.kill()
            whole.gone()
            disk.restart()
            figures["acknowledged by daemons"] = figures.get("acknowledged by daemons", 0) + len(told)
            whole.look(told)
        finally:
            whole.box.close()


def run(trials: Trials) -> None:
    """Prove the disk, then cut."""
    powercut.prove()
    for trial in trials:
        with trial:
            if trial.number % DAEMONS == DAEMONS - 1:
                cut_daemon(trial, trials.figures)
            else:
                cut_rooms(trial, trials.figures)


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────


def _normal() -> Any:
    settings = tuple(each.replace("synchronous=FULL", "synchronous=NORMAL") for each in sqlite.SETTINGS)
    return replaced(sqlite, "SETTINGS", settings)


@contextmanager
def _no_sync_of(is_folder: bool) -> Iterator[None]:
    """Leave out the sync of folders, or of all else, in the one module that syncs."""

    def fsync(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}") != is_folder:
            os.fsync(fd)

    changed = SimpleNamespace(**{**vars(os), "fsync": fsync, **({} if is_folder else {"fdatasync": lambda _fd: None})})
    with replaced(durable, "os", changed):
        yield


EXPERIMENT = Experiment(
    id="R4",
    title="the power is cut: ext4 shut down without a flush, in the midst of acts of all rooms and of a whole daemon",
    passes="each acknowledged state present",
    trials=100,
    short=7,
    run=run,
    plants={
        "synchronous=NORMAL": _normal,
        "files not synced": lambda: _no_sync_of(False),
        "folders not synced": lambda: _no_sync_of(True),
    },
    planted_trials=3,
    missing=powercut.missing,
)
