"""R3: EIO, ENOSPC and SIGKILL at every call that changes or syncs a file, and the order of these calls.

One room is done by a child, from a state that was made before; strace counts its calls on files, and in each trial puts one
fault into one of them. Afterwards everything is opened again: what was acknowledged is there, what was not is done once more,
and nothing is left over. The first trial compares the order of the calls of all rooms. At full count a whole daemon follows, which
works for a client while a kind of call fails on a file of its.
"""

import contextlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from smp_proto import durable
from smp_proto.errors import NotFoundError, SmpError, StateError
from smpd.jobs import database
from torture import acts, daemon_faults, strace
from torture.acts import Said, State
from torture.children import Child, Say
from torture.harness import Experiment, Trial, Trials, replaced

FAULTS = ("error=EIO", "error=ENOSPC", "signal=SIGKILL")
TRIES = 3  # of an act that a fault broke, as the daemon and a person try again
DAEMON = "daemon"


class Room(NamedTuple):
    """Acts that are done together, after others without a fault.

    Args:
        acts: by name, with their numbers.
        before: likewise.
        after: likewise; what comes later may have to sweep.
        start: whether opening the state is among the acts, of one that is there or is not.
    """

    acts: tuple[tuple[str, int], ...]
    before: tuple[tuple[str, int], ...] = ()
    after: tuple[tuple[str, int], ...] = ()
    start: str = ""

    @property
    def state(self) -> bool:
        """Whether it is of the daemon."""
        return bool(self.start) or self.acts[0][0] in acts.OF_STATE


ROOMS = {
    "first start": Room((), start="none"),
    "start": Room((), (("submit", 1), ("spool", 1), ("record", 1)), start="there"),
    "journal": Room((("submit", 1), ("submit", 2))),
    "spool": Room((("spool", 1),), (("submit", 1),)),
    "vault": Room((("keep", 1),), (("submit", 1), ("spool", 1))),
    "vault of many": Room((("many", 10),), (("submit", 10),)),
    "removing": Room((("remove", 1),), (("submit", 1), ("spool", 1), ("keep", 1))),
    "stores": Room((("believe", 1), ("know", 1), ("disbelieve", 1))),
    "audit": Room((("record", 1), ("record", 2), ("record", 3))),
    "key of the box": Room((("rotate", 1), ("record", 1))),
    "keyring": Room((("key", 1), ("key", 2)), after=(("key", 3),)),
    "sealing": Room((("seal", 1),)),
    "opening": Room((("opened", 1),)),
    "uploading": Room((("upload", 1),)),
}


looked_at = tuple(ROOMS)  # a planted fault is looked for in its room, so that few trials find it


class Point(NamedTuple):
    """One trial: a call of a room and the fault in it; without any the order of the calls of all rooms."""

    room: str = ""
    fault: str = ""
    call: str = ""
    nth: int = 0


# ── one room ─────────────────────────────────────────────────────────────────────────────────────────────────


def act(root: Path, state: State | None, name: str, n: int) -> Said:
    """One act, tried again as its caller would."""
    for left in reversed(range(TRIES)):
        try:
            if name in acts.OF_FOLDER:
                return acts.OF_FOLDER[name](root, n)
            assert state is not None
            return acts.OF_STATE[name](state, n)
        except SmpError as error:
            done = done_before(name, error)
            if done:
                return Said("half", n)
            if not left:
                raise
    raise AssertionError


def done_before(name: str, error: SmpError) -> bool:
    """Whether an act was done by a try that was not acknowledged."""
    exists = isinstance(error, StateError) and error.code in ("exists", "wrong_state")
    return (exists and name in ("believe", "know", "key", "seal", "opened", "keep", "many")) or (
        isinstance(error, NotFoundError) and name in ("remove", "disbelieve")
    )


def child_of(root: Path, room: Room) -> Child:
    """A child that waits to do a room's acts; what refuses to go on ends it, as it ends the daemon."""

    def before() -> State | None:
        return State(root) if room.state and not room.start else None

    def work(say: Say, state: State | None) -> None:
        with contextlib.suppress(SmpError, OSError) if room.start else contextlib.nullcontext():
            if room.start:
                state = State(root)
                say(Said("open", 0))
        for name, n in room.acts:
            with contextlib.suppress(SmpError):
                say(act(root, state, name, n))
        if state is not None:
            with contextlib.suppress(SmpError):
                state.close()

    return Child(work, before, held=True)


def make(root: Path, room: Room) -> None:
    """The state that a room's acts begin with."""
    acts.prepare(root / "made")
    if room.state and room.start != "none":
        state = State(root)
        for name, n in room.before:
            acts.OF_STATE[name](state, n)
        state.close()


def judge(root: Path, room: Room, said: list[Said]) -> None:
    """Find what was said; do the rest; find all of it, and nothing else."""
    said = [*before_of(room), *said]
    acts.look_for(root, said)
    kinds = {(each.kind, each.n) for each in said}
    state = State(root) if room.state else None
    try:
        if state is not None:
            state.journal.recover()
            assert not state.vault.recover().missing
        again = [act(root, state, name, n) for name, n in room.acts + room.after]
        if state is not None:
            assert not any(state.vault.recover())
    finally:
        if state is not None:
            state.close()
    acts.look_for(root, {*said, *(each for each in again if (each.kind, each.n) not in kinds)})
    assert not acts.leftovers(root), acts.leftovers(root)


def before_of(room: Room) -> list[Said]:
    """What was acknowledged before the acts."""
    kinds = {"submit": "job", "spool": "ranges", "keep": "done"}
    ending = {"remove": "removing", "disbelieve": "disbelieving"}  # it may be there or not then
    return [Said(ending[name], n) for name, n in room.acts if name in ending] + [
        Said(kinds[name], n) for name, n in room.before if name in kinds
    ]


# ── all of them ──────────────────────────────────────────────────────────────────────────────────────────────


class Bench:
    """The states that the rooms begin with, and the calls of each, counted once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: dict[str, list[strace.Call]] = {}

    def count(self, name: str) -> list[strace.Call]:
        """Do a room without a fault; the calls on its files."""
        if name not in self.calls:
            make(self.folder / f"made-{name}".replace(" ", "-"), ROOMS[name])
            self.count_again(name)
        return self.calls[name]

    def count_again(self, name: str) -> set[tuple[str, int]]:
        """The same once more: which of a room's threads does what may differ from time to time."""
        log = self.folder / "log"
        self.trace(self.fresh(name), name, log)
        self.calls[name] = strace.parse(log)
        return {(call.name, call.nth) for call in self.calls[name]}

    def fresh(self, name: str) -> Path:
        """A copy of what a room begins with, always at the same place."""
        root = self.folder / "root"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(self.folder / f"made-{name}".replace(" ", "-"), root, symlinks=True)
        return root

    def trace(self, root: Path, name: str, log: Path, *options: str) -> tuple[list[Said], int]:
        """Do a room under strace: what it acknowledged, and its status."""
        child = child_of(root, ROOMS[name])
        child.wait_ready()
        traced = options or ("-e", f"trace={','.join(strace.CALLS)}")
        try:
            with strace.attached(child.pid, log, *traced):
                child.release()
                status = child.end()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            raise
        return child.said, status

    def points(self) -> list[Point]:
        """The order of all calls; then every call that is about a room's files, with each fault."""
        root = str(self.folder / "root")
        found = [Point()]
        for name in looked_at:
            mine = {(call.name, call.nth) for call in self.count(name) if any(p.startswith(root) for p in call.paths)}
            found += [Point(name, fault, *each) for fault in FAULTS for each in sorted(mine)]
        return found


def run(trials: Trials) -> None:
    """Spread the trials over all points; at full count each is tried."""
    bench = Bench(trials.folder)
    points = bench.points()
    trials.figures["calls"] = len(points) // len(FAULTS)
    if trials.count >= len(points):
        points += [Point(DAEMON), *(Point(DAEMON, "any", nth=n) for n in range(len(daemon_faults.FAULTS)))]
    trials.figures["points"] = len(points)
    if trials.count == EXPERIMENT.trials:
        assert len(points) <= trials.count, f"there are {len(points)} points by now"
    for trial in trials:
        with trial:
            try_point(bench, points[trial.number * len(points) // trials.count % len(points)], trial, trials.figures)


def try_point(bench: Bench, point: Point, trial: Trial, figures: dict[str, Any]) -> None:
    """One trial."""
    if point == Point(DAEMON):
        daemon_faults.check_order(trial, figures)
        return
    if not point.fault:
        named = [strace.check_order(bench.count(name), bench.folder / "root") for name in looked_at]
        figures["files named in order"] = sum(named)
        return
    if point.room == DAEMON:
        daemon_faults.try_daemon(point.nth, trial, figures)
        return
    room = ROOMS[point.room]
    root, log = bench.fresh(point.room), trial.folder / "log"
    options = ("-e", f"trace={point.call}", "-e", f"inject={point.call}:{point.fault}:when={point.nth}")
    said, status = bench.trace(root, point.room, log, *options)
    text = log.read_text(errors="replace")
    if "signal" in point.fault:
        assert status == -9 or "SIGKILL" not in text, (point, status)
    hit = status == -9 or "(INJECTED)" in text
    try:
        judge(root, room, said)
    except Exception as error:
        raise AssertionError(f"{point}: {error!r}") from error
    assert hit or (point.call, point.nth) not in bench.count_again(point.room), f"{point} did not come"
    figures["hit"] = figures.get("hit", 0) + hit


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────


def _name_first(fd: int, part: str, name: str, folder: int, *, replace: bool = True) -> None:
    durable.give_name(part, name, folder, replace=replace)
    durable.sync(fd)
    durable.sync(folder)


def _folder_left_out(fd: int, part: str, name: str, folder: int, *, replace: bool = True) -> None:
    durable.sync(fd)
    durable.give_name(part, name, folder, replace=replace)


_NEVER = property(lambda _group: None, lambda _group, _error: None)


@contextmanager
def _planted(room: str, owner: Any, name: str, value: Any) -> Iterator[None]:
    with replaced(owner, name, value), replaced(sys.modules[__name__], "looked_at", (room,)):
        yield


EXPERIMENT = Experiment(
    id="R3",
    title="EIO, ENOSPC and SIGKILL at every call that changes or syncs a file, of 14 rooms of smpd and smpctl; a daemon's",
    passes="state opens clean afterwards; order is fsync(file), rename, fsync(dir)",
    trials=3000,
    short=16,
    run=run,
    plants={
        "named before it is synced": lambda: _planted("keyring", durable, "publish", _name_first),
        "folder not synced": lambda: _planted("keyring", durable, "publish", _folder_left_out),
        "a commit that failed is acknowledged": lambda: _planted("journal", database._Group, "error", _NEVER),
        "parts not swept": lambda: _planted("keyring", durable, "sweep", lambda _folder: None),
    },
    planted_trials=12,
    missing=strace.missing,
)
