"""A folder kept sealed in buckets: what changed is sealed once and uploaded to each of them, by the daemon.

What was uploaded is remembered in a file of the person's own, ``$XDG_STATE_HOME/smp/mirror``. A file is told from what
it was by size, modification time and inode. Objects are named by a keyed digest of the file's path below the folder,
since a path is patient data already; the path is the name of the entry, which is sealed.
"""

import contextlib
import fcntl
import hashlib
import hmac
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import NamedTuple

import msgspec

from smp_proto import durable
from smp_proto.control import UNFINISHED_STATES, JobView, Priority
from smp_proto.errors import IntegrityError, NotFoundError, SmpError, StateError, UsageError
from smp_proto.sealed.entries import valid_entry_name
from smpctl.client import Client
from smpctl.files import LocalFile, walk

IN_FLIGHT = 16  # files whose jobs have not ended
SAVE_S = 5.0
TARGETS_MAX = 17
_SUFFIX = ".smp"
_JOBS_MAX = 10_000


class Print(NamedTuple):
    """What tells a file from what it was before."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: str) -> "Print":
        """A file as it is now.

        Raises:
            OSError: it is not there.
        """
        found = os.lstat(path)
        return cls(found.st_size, found.st_mtime_ns, found.st_ino)


_NOTHING = (Print(-1, 0, 0), "")  # what no file is


class Sent(msgspec.Struct):
    """What is known of one file: by target, as what it is there, and for whom; how often its jobs were cancelled.

    Where a file was sent to and may not have arrived, it is there as :data:`_NOTHING`, so that it is removed with it.
    ``turn`` is another one whenever something arrived, and for a file that comes back after it was removed. Else the
    daemon would answer with the job of the time before, which is done.
    """

    there: dict[str, tuple[Print, str]] = {}
    cancelled: int = 0
    turn: str = ""


class Kept(msgspec.Struct):
    """What is remembered of a folder."""

    folder: str
    key: str
    named: bool = False
    files: dict[str, Sent] = {}


class Mirrored(msgspec.Struct):
    """How a round went, in files; ``failed`` of them have a job that failed at some target."""

    sent: int = 0
    same: int = 0
    removed: int = 0
    gone: int = 0
    failed: int = 0
    exit_code: int = 0


class State:
    """The memory of one folder, which one mirror at a time may use.

    Args:
        folder: that is mirrored.
        home: where memories are; the usual place when empty.
    """

    def __init__(self, folder: str, home: str = "") -> None:
        base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        self._home = home or os.path.join(base, "smp", "mirror")
        real = os.path.realpath(folder)
        self._given = folder
        self._name = hashlib.sha256(os.fsencode(real)).hexdigest()[:24] + ".json"
        self._saved = 0.0
        self._lock = -1
        self.kept = Kept(real, secrets.token_hex(32))

    def __enter__(self) -> "State":
        if not os.path.isdir(self._given):  # and not what an empty name would stand for
            raise NotFoundError("no_such_file", f"{self._given!r} is no folder", hint="name the folder to mirror")
        try:
            self.kept.folder.encode()
        except UnicodeEncodeError:
            message = f"the name of {self.kept.folder!a} is not UTF-8"
            raise UsageError("bad_request", message, hint="rename it; names are sent as UTF-8") from None
        durable.make_folders(self._home, 0o700)
        self._lock = os.open(
            os.path.join(self._home, self._name + ".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._load()
            self.save()  # the key above all, before anything is named with it
        except BlockingIOError:
            os.close(self._lock)
            hint = "wait for it, or end it"
            raise StateError("exists", f"another smpctl mirrors {self.kept.folder}", hint=hint) from None
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    def _load(self) -> None:
        path = os.path.join(self._home, self._name)
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            try:
                self.kept = msgspec.json.decode(file.read(), type=Kept)
            except msgspec.MsgspecError as error:
                hint = f"move {path} away; everything is then uploaded anew, under new names"
                raise IntegrityError(
                    "corrupt", f"what is remembered of {self.kept.folder} is damaged", hint=hint
                ) from error

    def save(self, *, now: bool = True) -> None:
        """Remember it durably; unless ``now``, only if the last time is a while ago."""
        if now or time.monotonic() - self._saved > SAVE_S:
            durable.write_file(self._home, self._name, msgspec.json.encode(self.kept))
            self._saved = time.monotonic()


class Mirror:
    """Keeps one folder.

    Args:
        client: of the daemon that uploads.
        state: entered.
        targets: ``REMOTE:PREFIX`` each, ending in ``/`` or ``:``.
        recipients: public keys as text.
        named: name objects after their files.
        priority: of the jobs.
        note: told of what a person should know.

    Raises:
        UsageError: ``bad_request``; a target is no prefix, or there are too many.
    """

    def __init__(
        self,
        client: Client,
        state: State,
        targets: Sequence[str],
        recipients: Sequence[str],
        *,
        named: bool = False,
        priority: Priority = "normal",
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        if not 0 < len(targets) <= TARGETS_MAX or len(set(targets)) < len(targets):
            raise UsageError(
                "bad_request", f"a mirror has 1 to {TARGETS_MAX} targets, each once", hint="REMOTE:PREFIX/"
            )
        for target in targets:
            if not target.endswith(("/", ":")):
                raise UsageError("bad_request", f"{target} is no prefix", hint="end it with a slash")
        if state.kept.files and state.kept.named != named:
            hint = f"{'add' if state.kept.named else 'leave out'} --names"
            raise UsageError("bad_request", "this folder is mirrored already with the other kind of names", hint=hint)
        state.kept.named = named
        self._client = client
        self._state = state
        self._targets = list(targets)
        self._recipients = list(recipients)
        self._readers = hashlib.sha256("\n".join(sorted(recipients)).encode()).hexdigest()[:16]
        self._named = named
        self._priority: Priority = priority
        self._note = note
        self._seen: dict[str, Print] = {}
        self._earlier: list[JobView] = []
        self._expected: dict[str, list[str]] = {}  # by file: targets that it was never sent to before this round

    def round(self, *, delete: bool = False, settled: bool = False) -> Mirrored:
        """Upload what changed since it was uploaded, and wait for that.

        Args:
            delete: remove objects whose files are gone, unless all are.
            settled: leave out files that are not the same as in the round before.

        Raises:
            SmpError: the folder cannot be read, or the daemon cannot be reached. What was uploaded is remembered.
        """
        self._begun = time.time()
        self._result = Mirrored()
        self._waiting = deque[Sending]()
        files = self._state.kept.files
        found = dict(self._walk())
        fresh = found.keys() - files.keys()
        files.update((name, Sent(turn=_turn())) for name in fresh)
        wanted = {
            name: [each for each in self._targets if self._lacks(name, each, now)] for name, (_, now) in found.items()
        }
        ready = [
            name for name, (_, now) in found.items() if wanted[name] and (not settled or self._seen.get(name) == now)
        ]
        self._expect(ready, wanted)
        if fresh or self._expected:
            self._state.save()  # before anything is sent: who is killed sends it by the same job, or removes it
        places = {self.location(target, name) for name in ready for target in wanted[name]}
        self._earlier = self._under_way(places)
        try:
            self._result.same = sum(not wants for wants in wanted.values())
            for name in ready:
                self._send(name, *found[name], wanted[name])
            while self._waiting:
                self._settle()
            self._seen = {name: now for name, (_, now) in found.items()}
            if delete and files and not found:
                self._note(f"{self._state.kept.folder} is empty, perhaps not mounted: nothing is removed")
                delete = False
            gone = [name for name in files if name not in found]
            if delete and gone:  # who is killed within that, and has the file again, is to send it again
                for name in gone:
                    files[name].there, files[name].turn = dict.fromkeys(files[name].there, _NOTHING), _turn()
                self._state.save()
                self._stop(
                    self._under_way({self.location(target, name) for name in gone for target in files[name].there})
                )
            for name in gone:
                self._gone(name, delete=delete)
        finally:
            self._state.save()
        return self._result

    def _walk(self) -> Iterator[tuple[str, tuple[LocalFile, Print]]]:
        for file in walk(self._state.kept.folder, "", self._leave_out, living=True):
            if durable.is_part(os.path.basename(file.name)):
                continue
            if not valid_entry_name(file.name):  # nor is one that is not UTF-8
                self._note(f"left out {file.path}: its name can be none of an entry; rename it")
            else:
                with contextlib.suppress(FileNotFoundError):
                    yield file.name, (file, Print.of(file.path))

    def _expect(self, names: Sequence[str], wanted: Mapping[str, Sequence[str]]) -> None:
        """Note where files may come to be that nothing was sent of before."""
        self._expected.clear()
        for name in names:
            there = self._state.kept.files[name].there
            if new := [target for target in wanted[name] if target not in there]:
                self._expected[name] = new
                there.update(dict.fromkeys(new, _NOTHING))

    def _under_way(self, places: Set[str]) -> list[JobView]:
        """The jobs that an earlier mirror, which was killed, left under way to these places; of others nothing."""
        found = self._client.jobs(UNFINISHED_STATES, limit=_JOBS_MAX) if places else []
        ours = f"({os.geteuid()})"
        return [job for job in found if job.kind == "put" and job.target in places and job.owner.endswith(ours)]

    def _stop(self, jobs: Iterable[JobView]) -> None:
        """Cancel what would arrive after what is to be there, or after it was removed."""
        for job in jobs:
            with contextlib.suppress(StateError):  # it has ended by itself
                self._client.cancel(job.id)

    def _leave_out(self, path: str) -> None:
        self._note(f"left out {path}: a link or no file")

    def _lacks(self, name: str, target: str, now: Print) -> bool:
        return self._state.kept.files[name].there.get(target) != (now, self._readers)

    def location(self, target: str, name: str) -> str:
        """Where the object of a file is."""
        if self._named:
            return target + name + _SUFFIX
        key = bytes.fromhex(self._state.kept.key)
        return target + hmac.digest(key, name.encode(), "sha256")[:16].hex() + _SUFFIX

    def _send(self, name: str, file: LocalFile, now: Print, wants: list[str]) -> None:
        if len(self._waiting) >= IN_FLIGHT:
            self._settle()
        sent = self._state.kept.files[name]
        places = [self.location(target, name) for target in wants]
        facts = [self._state.kept.key, name, now, places, self._readers, sent.cancelled, sent.turn]
        key = f"mirror/{hashlib.sha256(msgspec.json.encode(facts)).hexdigest()[:32]}"
        try:
            job = self._client.put(
                [file], places[0], self._recipients, key=key, priority=self._priority, also=places[1:]
            )
        except (NotFoundError, IntegrityError) as error:
            if error.code not in ("no_such_file", "source_changed"):
                raise
            for target in self._expected.get(name, ()):  # there is no job
                del sent.there[target]
            if os.path.lexists(file.path):  # else it went: the next round sees
                self._note(f"{file.path} is not sent: {error.message}")
                self._result.failed += 1
                self._result.exit_code = error.exit_code
            return
        jobs = dict(zip(wants, [job.id, *job.also], strict=True))
        self._stop(old for old in self._earlier if old.target in places and old.id not in jobs.values())
        self._waiting.append(Sending(name, now, jobs))

    def _settle(self) -> None:
        """Wait for the jobs of the file that waits longest, and remember what arrived."""
        sending = self._waiting.popleft()
        sent, good = self._state.kept.files[sending.name], True
        for target, job_id in sending.jobs.items():
            job = self._client.job(job_id)
            if job.state in ("failed", "quarantined") and job.created < self._begun:  # of an earlier round
                self._client.resume(job_id)
            job = self._client.wait(job_id)
            if job.state != "done":
                sent.cancelled += job.state == "cancelled"
                self._failed(sending.name, job)
                good = False
            else:
                sent.there[target] = (sending.now, self._readers)
                sent.turn = _turn()
        self._result.sent += good
        self._result.failed += not good
        self._state.save(now=False)

    def _failed(self, name: str, job: JobView) -> None:
        from smpctl.following import exit_code  # noqa: PLC0415 - brings click along

        error = job.error.message if job.error else "it was cancelled"
        self._note(f"{name} did not get to {job.target}: {error}; job {job.id[:8]}")
        self._result.exit_code = exit_code(job)

    def _gone(self, name: str, *, delete: bool) -> None:
        sent = self._state.kept.files[name]
        if not sent.there:  # nothing of it arrived
            del self._state.kept.files[name]
            return
        if not delete:
            self._result.gone += 1
            return
        for target in list(sent.there):
            try:
                self._client.rm(self.location(target, name))
            except SmpError as error:
                self._note(f"{name} is not removed from {target}: {error.message}")
                self._result.exit_code = error.exit_code
                self._result.failed += 1
                return
            del sent.there[target]
        del self._state.kept.files[name]
        self._result.removed += 1


def _turn() -> str:
    return secrets.token_hex(8)


class Sending(NamedTuple):
    """A file on its way: as what it was before it was read, and the job of each target."""

    name: str
    now: Print
    jobs: dict[str, str]
