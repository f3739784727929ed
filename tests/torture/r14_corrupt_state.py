"""R14: a byte of what lies on the disk is changed while the daemon is down.

A box with jobs in several states, a spool, a vault and all else is killed once, and its state kept. Each trial takes a
copy, changes a byte in one of its files, and starts the daemon's rooms on it, in this process. It must start;
whatever is not as it was must have been named, and everything else must be as it was.
"""

import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio
import msgspec
from box import Box
from refusals import PLAIN
from scene import client
from whole import VIEWERS, Whole, whole

from smp_proto import control as c
from smp_proto.errors import SmpError
from smp_proto.sealed.bundle import BundleWriter
from smp_proto.sealed.keys import Identity, PublicIdentity
from smpctl import Client
from smpd.audit.kept import KeptLog
from smpd.jobs import pages
from smpd.transfer.sealing import check_sealed, read_bundle
from torture.harness import Experiment, Trial, Trials, replaced

MIB = 1 << 20
CONFIG: dict[str, dict[str, Any]] = {
    "space": {"reserve_bytes": MIB},
    "compute": {"processors": []},
    "fetch": {"slots": 2, "slot_bytes": MIB, "processes": 1},
}
# How often a part is chosen, of all: the database and its log are where most can go wrong.
PARTS = ("smpd.db", "smpd.db-wal", "smpd.db-wal", "audit", "vault", "spool", "keys", "smpd.db", "smpd.db-wal", "audit")


def _sealed(sender: Identity, box: PublicIdentity) -> bytes:
    sealed = bytearray()
    writer = BundleWriter(sealed.extend, sender=sender, recipients=[box])
    writer.begin("a.bin")
    writer.write(PLAIN)
    writer.end()
    writer.finish()
    return bytes(sealed)


def _fill(machine: Box, stored: Path, caller: Client) -> None:
    """Remotes, a sender, objects in the vault, and jobs that are done, failed, paused and waiting."""
    stored.mkdir()
    sender = Identity.generate("hospital")
    for name in ("a", "b"):
        (stored / f"{name}.smp").write_bytes(_sealed(sender, PublicIdentity.parse(caller.box_key().text)))
    caller.trust_add("hospital", sender.public.text())
    caller.remote_add("disk", c.LocalConfig(str(stored)))
    away = c.S3Config("bucket", endpoint="http://127.0.0.1:1")
    caller.remote_add("away", away, secret=c.S3Secret("key", "secret"))
    for name in ("a", "b"):
        assert caller.wait(caller.submit(c.GetSpec(f"disk:{name}.smp")).id).state == "done"
    assert caller.wait(caller.submit(c.GetSpec("disk:none.smp")).id).state == "failed"
    for pause in (True, False):
        job = caller.submit(c.GetSpec("away:b.smp")).id
        while caller.job(job).state != "waiting":
            pass
        if pause:
            caller.pause(job)
    letter = stored / "letter"
    letter.write_bytes(PLAIN)
    caller.put([letter], "away:letter.smp", [caller.box_key().text])


@cache
def _made() -> tuple[tempfile.TemporaryDirectory[str], Path]:
    """The state that a killed daemon left: made once, and copied ever after."""
    folder = tempfile.TemporaryDirectory(prefix="smp-r14-")
    return folder, _make(Path(folder.name))


def _make(folder: Path) -> Path:
    config = {**CONFIG, "jobs": {"attempts": 100, "backoff_base_s": 900.0, "backoff_max_s": 900.0}}
    config["audit"] = {"checkpoint_records": 5}
    machine = Box(folder / "box", config)
    try:
        machine.start()
        with client(machine) as caller:
            _fill(machine, folder / "stored", caller)
        machine.kill()
    finally:
        machine.close()
    return machine.state


def _seen(daemon: Whole) -> dict[str, Any]:
    """What a person sees of a box, thing by thing."""
    box = daemon.daemon.box
    seen: dict[str, Any] = {}
    for job in box.journal.list():
        seen[f"job {job.id}"] = (job.state, job.spec, job.owner, job.priority, job.created)
    for item in box.vault.list():
        with contextlib.suppress(SmpError):
            seen[f"object {item.id}"] = box.vault.get(item.id)
    for remote in daemon.daemon.remotes.list():
        seen[f"remote {remote.name}"] = daemon.daemon.remotes.get(remote.name)
    for sender in daemon.daemon.trust.list():
        seen[f"sender {sender.name}"] = sender
    return seen


async def _opens(daemon: Whole, item: str) -> bool:
    """Whether an object of the vault can be opened, whole."""
    box = daemon.daemon.box

    def read() -> bool:
        fd = box.vault.open_fd(item)
        with open(fd, "rb"):
            trust = daemon.daemon.trust
            with read_bundle(fd, box.identities, lambda key: PublicIdentity.parse(trust.key_of(key))) as reader:
                reader.verify()
        return True

    try:
        return await anyio.to_thread.run_sync(read)
    except SmpError as error:
        assert error.code in ("corrupt", "truncated", "untrusted_sender", "not_sealed", "unsupported"), error
        return False


async def _spool_holds(daemon: Whole, job: str) -> bool:
    """Whether what was sealed for an upload may still be delivered."""
    found = daemon.daemon.box.journal.source(job)
    if found is None or found.envelope is None:
        return False  # the job fails, and says so
    result = msgspec.msgpack.decode(found.envelope, type=c.Result)
    try:
        await anyio.to_thread.run_sync(check_sealed, daemon.daemon.runner.leavings.out(job), result, found.pin)
    except SmpError:
        return False
    return True


async def _try(state: Path, before: dict[str, Any] | None, part: str) -> tuple[dict[str, Any], bool]:
    """Start on a state. Returns what is seen, and whether something was said to be wrong.

    Raises:
        AssertionError: something else is not as it was, or nobody was told.
    """
    with anyio.fail_after(60):
        async with whole(state.parent, paths={"state": str(state)}, **CONFIG) as daemon:
            seen = await anyio.to_thread.run_sync(_seen, daemon)
            # A viewer may not have remotes tried: one is down, damage or not, and each would take a process.
            async with daemon.client(65_000, [VIEWERS]) as caller:
                checks = (await caller.call(c.DoctorRequest(), c.Doctor)).checks
            told = [
                f"{check.name}: {check.text}"
                for check in checks
                if check.state != "ok" and check.name != "disk" and "the identity is" not in check.text
            ]
            for item in daemon.daemon.box.vault.list():
                if not await _opens(daemon, item.id):
                    told.append(f"object {item.id} does not open")
            for job in daemon.daemon.box.journal.list():
                if isinstance(job.spec, c.PutSpec) and not await _spool_holds(daemon, job.id):
                    told.append(f"what job {job.id} is to upload is damaged")
            if daemon.daemon.audit.broken:
                await _renews(daemon)
    if before is not None:
        changed = {name for name in before.keys() | seen.keys() if before.get(name) != seen.get(name)}
        explained = [text for text in told if "database" in text or "the record of" in text]
        assert not changed or explained, f"nobody was told why {sorted(changed)} changed"
        if part not in ("smpd.db", "smpd.db-wal"):
            assert not changed, f"{sorted(changed)} changed with {part}"
    return seen, bool(told)


async def _renews(daemon: Whole) -> None:
    """A broken log refuses acts and shows itself, until an admin begins a new one."""
    async with daemon.client(0) as caller:
        try:
            await caller.call(c.TrustRemove("hospital"), c.TrustView)
        except SmpError as error:
            assert error.code == "audit_broken", error
        else:
            raise AssertionError("an act was done though the log is broken")
        async with caller.open(c.AuditRead()) as exchange:
            async for _ in exchange.messages(c.AuditLines):
                pass
        renewed = await caller.call(c.AuditRenew("a test"), c.AuditRenewed)
        assert Path(renewed.path).is_dir()
        assert (await caller.call(c.TrustRemove("hospital"), c.TrustView)).removed


def _damage(state: Path, trial: Trial) -> str:
    """Change a byte of some file; returns which."""
    part = PARTS[trial.number % len(PARTS)]
    at = state / part
    files = sorted(path for path in (at.rglob("*") if at.is_dir() else [at]) if path.is_file() and path.stat().st_size)
    files = [path for path in files if not path.name.endswith("-shm")]
    if part == "audit" and trial.rng.random() < 0.8:  # there is more to them than to the keys of details
        files = [path for path in files if not path.name.startswith("details")]
    path = trial.rng.choice(files)
    with path.open("r+b") as file:
        offset = trial.rng.randrange(path.stat().st_size)
        if part == "smpd.db" and trial.rng.random() < 0.8:  # most of it is not in use
            offset = trial.rng.choice([place for place, each in enumerate(file.read()) if each])
        file.seek(offset)
        was = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([was ^ (1 << trial.rng.randrange(8))]))
    trial.folder.joinpath("damage").write_text(f"{path.relative_to(state)} at {offset}")
    return part


def run(trials: Trials) -> None:
    """All trials, on copies of one state; half of those of the database have its log written back before."""
    _, made = _made()
    clean = trials.folder / "clean" / "state"
    shutil.copytree(made, clean)
    clean.parent.chmod(0o700)
    before, said = anyio.run(partial(_try, clean, None, ""))  # closing it writes the log back
    assert len(before) >= 10, sorted(before)
    assert not said, "something is wrong before anything is damaged"
    told: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    for trial in trials:
        with trial:
            state = trial.folder / "state"
            with_log = PARTS[trial.number % len(PARTS)] == "smpd.db-wal" or trial.number % 2 == 0
            shutil.copytree(made if with_log else clean, state)
            trial.folder.chmod(0o700)
            part = _damage(state, trial)
            where = trial.folder.joinpath("damage").read_text()
            try:
                _, said = anyio.run(partial(_try, state, before, part))
            except BaseException as error:
                raise AssertionError(f"{where}: {error!r}") from error
            tried[part] += 1
            told[part] += said
            if part in ("audit", "vault", "spool"):
                assert said or "details" in where, f"nobody was told of {where}"
        shutil.rmtree(trial.folder, ignore_errors=True)
    trials.figures["damage told of"] = ", ".join(f"{part} {told[part]} of {n}" for part, n in sorted(tried.items()))


def _trusting_log() -> contextlib.AbstractContextManager[object]:
    """Believe the write-ahead log as far as SQLite does."""
    good = pages.Wal(0, [], damaged=False, torn=False)
    return _patched(("smpd.state.read_wal", lambda path: good))


@contextlib.contextmanager
def _patched(*changes: tuple[str, Any]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name, value in changes:
            stack.enter_context(patch(name, value))
        yield


def _blind_seal() -> contextlib.AbstractContextManager[object]:
    """Take a log that is broken for one that is whole and new."""

    def forget(self: KeptLog) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        self._log, self.broken = self._open_log(last=None, remember=self._last.keep), None

    return replaced(KeptLog, "_open", forget)


EXPERIMENT = Experiment(
    "R14",
    "a byte changed in the database, its log, the audit log, the vault, the spool, the keys",
    "the daemon starts; what changed is named, all else is as it was; a broken audit log is not gone on with",
    trials=300,
    short=10,
    run=run,
    plants={
        "the log is believed": _trusting_log,
        "the audit log is begun anew": _blind_seal,
    },
    planted_trials=10,
)
