"""What smpd and smpctl acknowledge, done room by room in this process, and looked for afterwards.

An act is done as its caller in the daemon or the client does it. It *says* what it acknowledged; :func:`look_for` opens
everything again and finds each of these things, or raises.
"""

import hashlib
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

import anyio
import msgspec

from smp_proto import durable
from smp_proto.audit.record import parse_line
from smp_proto.audit.verify import verify_log
from smp_proto.control import GetSpec, LocalConfig, Result
from smp_proto.errors import one_error
from smp_proto.sealed.bundle import BundleWriter
from smp_proto.sealed.keys import Identity
from smpctl.files import LocalFile
from smpctl.keyring import Keyring
from smpctl.sealing import open_file, seal_files, sealed_file
from smpd.configuring import load_config
from smpd.fetch.local import LocalRemote
from smpd.host.folders import ensure_dir
from smpd.host.space import disk_errors
from smpd.jobs.journal import Journal
from smpd.jobs.seal import StateSeal
from smpd.state import open_state
from smpd.transfer.spool import Spool
from smpd.vault.objects import Adoption, Vault
from smpd.vault.remotes import RemoteStore
from smpd.vault.trust import TrustStore
from smpd.verbs.keys import rotate as rotate_keys

RESERVE_BYTES = 1 << 20
PIECE = 40_000  # bytes of a range
TAIL = b"the envelope"
OWNER = "0:root"


class Said(msgspec.Struct, frozen=True):
    """One thing that was acknowledged: of which kind, and by which number it is known again."""

    kind: str
    n: int
    value: int = 0


@cache
def person() -> Identity:
    """Somebody who seals, and is sealed for."""
    return Identity.generate("person")


@cache
def stranger(n: int) -> Identity:
    """One more whose key is kept or believed; there are eight."""
    return Identity.generate(f"stranger{n}") if n < 8 else stranger(n % 8)


def body(n: int) -> bytes:
    """The object that a number stands for."""
    return random.Random(n).randbytes(PIECE) * 2 + TAIL


def prepare(folder: Path) -> None:
    """What the acts start from, made before anything is counted or cut off."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plain").write_bytes(body(0))
    sealed = bytearray()
    writer = BundleWriter(sealed.extend, sender=person(), recipients=[person().public])
    for name in ("a", "d/b"):
        writer.begin(name)
        writer.write(body(0))
        writer.end()
    writer.finish()
    (folder / "sealed").write_bytes(sealed)
    for name in ("out", "remote"):
        (folder.parent / name).mkdir()
    os.sync()
    for each in range(8):
        stranger(each)


class State:
    """The state folder of a box, its rooms open."""

    def __init__(self, root: Path) -> None:
        self.path = root / "state"
        ensure_dir(str(self.path))
        settings = {"PATHS_STATE": self.path, "SPACE_RESERVE_BYTES": RESERVE_BYTES, "AUDIT_CHECKPOINT_RECORDS": 3}
        environ = {f"SMPD_{key}": str(value) for key, value in settings.items()}
        self.config = load_config(None, {**environ, "HOME": str(root), "XDG_RUNTIME_DIR": "/run/user/0"})
        self._opened = open_state(self.config)
        self.keys = self._opened.keys
        seal = StateSeal(self.keys.state)
        self.audit, self.space = self._opened.audit, self._opened.space
        database = self._opened.database
        try:
            self.journal, self.vault = Journal(database, seal), Vault(str(self.path / "vault"), database, seal)
            self.remotes, self.trust = RemoteStore(database, seal), TrustStore(database, seal)
            ensure_dir(str(self.path / "spool"))
        except BaseException:
            self._opened.close()
            raise

    def close(self) -> None:
        """As at a stop."""
        self.vault.close()
        self._opened.close()

    def record(self, event: str, **more: Any) -> int:
        """As the daemon writes one: a log that failed is tried again first."""
        if self.audit.failure:
            self.audit.retry()
        return self.audit.append(event, actor=OWNER, **more)

    def part(self, n: int) -> Path:
        """The spool file of a job."""
        return self.path / "spool" / f"{name_of(n)}.part"


def name_of(n: int) -> str:
    """The id of a job, and of what it brings."""
    return f"{n:016d}"


def adoption(state: State, n: int) -> Adoption:
    """How the vault takes over what a job brought."""
    return Adoption(name_of(n), str(state.part(n)), bytes(16), bytes(16), len(body(n)), 1, 5)


# ── the acts of the daemon; each is done with its state and a number of its own ──────────────────────────────


def submit(state: State, n: int) -> Said:
    """A job is recorded and kept."""
    state.record("job.submit", job=name_of(n))
    state.journal.add(GetSpec(f"r:{n}"), owner=OWNER, key=str(n), job_id=name_of(n))
    return Said("job", n)


def spool(state: State, n: int) -> Said:
    """The ranges of a job are written and marked; the object is finished."""
    marked: list[int] = []

    def mark(ranges: Any) -> None:
        state.journal.mark_ranges(name_of(n), ranges)
        marked.extend(ranges)

    async def fill() -> None:
        file = await Spool.open(state.space, str(state.part(n)), len(body(n)), mark)
        try:
            async with file.flushing():
                for index in range(2):
                    with disk_errors("the spool"):
                        os.pwrite(file.fd, body(n)[index * PIECE : (index + 1) * PIECE], index * PIECE)
                    await file.add(index, bytes([index]) * 32)
            await file.finish(TAIL, 2 * PIECE)
        finally:
            file.close()

    with one_error():
        anyio.run(fill)
    assert sorted(marked) == [0, 1]
    return Said("ranges", n)


def keep(state: State, n: int) -> Said:
    """What a job brought is taken into the vault, and with that the job is done."""
    if state.journal.get(name_of(n)).state == "queued":
        state.journal.move(name_of(n), "start")
    state.record("object.store", job=name_of(n), subject=f"r:{n}")
    succeed = partial(state.journal.succeed_in, job_id=name_of(n), result=Result(objects=1))
    state.vault.adopt(name_of(n), [adoption(state, n)], succeed)()
    return Said("done", n)


def many(state: State, n: int) -> Said:
    """Five objects of one job, synced as one; the numbers after it are theirs."""
    for each in range(n, n + 5):
        with disk_errors("the spool"):
            state.part(each).write_bytes(body(each))
    state.vault.adopt(name_of(n), [adoption(state, each) for each in range(n, n + 5)])
    return Said("many", n)


def remove(state: State, n: int) -> Said:
    """An object is deleted."""
    state.record("object.remove", subject=f"r:{n}")
    state.vault.remove(name_of(n))
    return Said("removed", n)


def believe(state: State, n: int) -> Said:
    """A sender is believed."""
    public = stranger(n).public
    state.record("trust.add", name=f"s{n}")
    state.trust.add(f"s{n}", public.text(), key_id=n.to_bytes(16, "big"), fingerprint=public.fingerprint())
    return Said("believed", n)


def disbelieve(state: State, n: int) -> Said:
    """A sender is believed no more."""
    state.record("trust.remove", name=f"s{n}")
    state.trust.remove(f"s{n}")
    return Said("disbelieved", n)


def know(state: State, n: int) -> Said:
    """A remote is kept."""
    state.record("remote.add", name=f"r{n}")
    state.remotes.add(f"r{n}", LocalConfig(f"/data/{n}"))
    return Said("remote", n)


def record(state: State, n: int) -> Said:
    """An act is recorded, with a detail that only its key opens."""
    return Said("record", n, state.record("object.open", subject=f"o{n}", detail={"n": n}, n=n))


def rotate(state: State, n: int) -> Said:
    """The box is given a new key."""
    rotate_keys(str(state.path / "keys"), state.config.keys, state.keys, state.audit, OWNER, str(n))
    return Said("rotated", n, _short(state.keys.identity))


def _short(identity: Identity) -> int:
    return int.from_bytes(identity.public.key_id[:7], "big")


# ── those of the client and of a local remote; each has a folder and a number ───────────────────────────────


def key(root: Path, n: int) -> Said:
    """A public key is kept."""
    Keyring(str(root / "ring")).add(f"k{n}", stranger(n).public.text().encode(), private=False)
    return Said("key", n)


def seal(root: Path, n: int) -> Said:
    """A file is sealed, every other time over one that is there."""
    me = person()
    files = [LocalFile("plain", str(root / "made" / "plain"))]
    made = root / "out"
    for overwrite in (False, True) if n % 2 else (False,):
        seal_files(files, str(made / f"{n}.smp"), sender=me, recipients=[me.public], overwrite=overwrite)
    return Said("sealed", n)


def opened(root: Path, n: int) -> Said:
    """A sealed file is opened into a new folder."""
    with sealed_file(str(root / "made" / "sealed")) as sealed:
        open_file(sealed, str(root / f"opened{n}"), identity=person(), trust=lambda _id: person().public)
    return Said("opened", n)


def upload(root: Path, n: int) -> Said:
    """An object is written to a local remote, over another one that is there."""
    remote = root / "remote"

    async def work() -> None:
        async def progress(_done: int) -> None:
            return

        store = LocalRemote(LocalConfig(str(remote)))
        with disk_errors("the source"):
            fd = os.open(root / "made" / "plain", os.O_RDONLY)
        try:
            for _ in range(2):
                await store.write(f"d/{n}", fd, len(body(0)), progress)
        finally:
            os.close(fd)

    anyio.run(work)
    return Said("uploaded", n)


OF_STATE: dict[str, Callable[[State, int], Said]] = {
    each.__name__: each for each in (submit, spool, keep, many, remove, believe, disbelieve, know, record, rotate)
}
OF_FOLDER: dict[str, Callable[[Path, int], Said]] = {each.__name__: each for each in (key, seal, opened, upload)}


# ── looking for what was said ────────────────────────────────────────────────────────────────────────────────


def look_for(root: Path, said: Iterable[Said]) -> None:
    """Open everything again, as after a crash, and find each thing that was acknowledged.

    Raises:
        AssertionError, SmpError, OSError: something is not there, or not whole.
    """
    said = list(said)
    state = State(root)
    try:
        _in_the_state(state, said)
        _audited(state, said)
    finally:
        state.close()
    for each in said:
        if each.kind in _IN_FOLDERS:
            _IN_FOLDERS[each.kind](root, each.n)


def _in_the_state(state: State, said: list[Said]) -> None:
    assert not [note for note in state.keys.mended if "damaged" in note]
    state.journal.recover()
    gone = {each.n for each in said if each.kind in ("removing", "removed")}
    brought = Counter(each.n for each in said if each.kind == "done")
    brought.update(n for each in said if each.kind == "many" for n in range(each.n, each.n + 5))
    removed = {each.n for each in said if each.kind in ("disbelieving", "disbelieved")}
    for each in said:
        match each.kind:
            case "job":
                assert state.journal.get(name_of(each.n)).spec == GetSpec(f"r:{each.n}")
            case "ranges" if state.journal.get(name_of(each.n)).state != "done":
                assert sorted(state.journal.ranges(name_of(each.n))) == [0, 1]
                if not state.vault.adopted(name_of(each.n)) and state.part(each.n).exists():
                    assert state.part(each.n).read_bytes() == body(each.n)
            case "done":
                assert state.journal.get(name_of(each.n)).state == "done"
            case "removed":
                assert not [item for item in state.vault.list() if item.id == name_of(each.n)]
            case "believed" if each.n not in removed:
                assert state.trust.read().lookup(each.n.to_bytes(16, "big"), "x:y", 0.0)
            case "disbelieved":
                assert next(view.removed for view in state.trust.list() if view.name == f"s{each.n}")
            case "rotated":
                assert each.value in map(_short, state.keys.identities), f"key {each.n} is gone"
            case "remote":
                assert state.remotes.get(f"r{each.n}").config == LocalConfig(f"/data/{each.n}")
    for n in brought.keys() - gone:
        fd = state.vault.open_fd(name_of(n))
        with open(fd, "rb") as file:
            assert file.read() == body(n), f"object {n} has another content"


def _audited(state: State, said: list[Said]) -> None:
    assert state.audit.broken is None, state.audit.broken
    newest = state.audit.checkpoint()
    lines = state.audit.read(0, 1 << 30)
    verify_log(lines, [newest] if newest else [], state.audit.keys)
    for each in said:
        if each.kind == "record":
            found = parse_line(lines[each.value])
            assert found.fields["n"] == each.n
            assert state.audit._log
            assert state.audit._log.detail(found) == {"n": each.n}


def _key_is_there(root: Path, n: int) -> None:
    found = Keyring(str(root / "ring")).find(f"k{n}")
    assert found is not None, f"key {n} is gone"
    assert found.public.key_id == stranger(n).public.key_id


def _opens(root: Path, n: int) -> None:
    with sealed_file(str(root / "out" / f"{n}.smp")) as sealed:
        target = root / f"look{n}"
        open_file(sealed, str(target), identity=person(), trust=lambda _id: person().public, overwrite=True)
    assert (target / "plain").read_bytes() == body(0)


def _was_opened(root: Path, n: int) -> None:
    assert [(root / f"opened{n}" / name).read_bytes() == body(0) for name in ("a", "d/b")] == [True, True]


def _was_uploaded(root: Path, n: int) -> None:
    assert (root / "remote" / "d" / str(n)).read_bytes() == body(0)


_IN_FOLDERS = {"key": _key_is_there, "sealed": _opens, "opened": _was_opened, "uploaded": _was_uploaded}


def leftovers(root: Path) -> list[str]:
    """Parts that nobody swept, and files of the spool that no job is known for."""
    found = [str(path.relative_to(root)) for path in root.rglob("*") if durable.is_part(path.name)]
    return found + [path.name for path in root.glob("state/spool/*") if not path.name.partition(".")[0].isdigit()]


def digest(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()
