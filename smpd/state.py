"""What lies on the disk of a box, opened in order and closed again: reserve, keys, database, audit log.

What is damaged keeps the daemon from as little as can be: it is set aside, never deleted, and named in the notes.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import structlog

from smp_proto import durable
from smp_proto.audit.note import VerifierKey
from smp_proto.audit.record import AuditRecord, parse_line
from smp_proto.errors import ResourceError, SmpError
from smpd.audit.details import DAMAGED
from smpd.audit.kept import KeptLog
from smpd.audit.log import AuditLog
from smpd.audit.opening import LOG_NAME
from smpd.audit.remembered import Reached
from smpd.config import Config
from smpd.host.folders import ensure_dir
from smpd.host.formats import check_formats
from smpd.host.space import Space, disk_errors
from smpd.jobs.database import Database
from smpd.jobs.journal import Journal
from smpd.jobs.pages import read_wal
from smpd.jobs.salvage import Salvaged, finish_swap, salvage, set_aside
from smpd.jobs.seal import StateSeal
from smpd.vault.checkpoint import LastCheckpoint
from smpd.vault.keys import BoxKeys, load_keys
from smpd.vault.remotes import RemoteStore
from smpd.vault.trust import TrustStore
from smpd.walls.sandbox import code_folders

_LINES = 1000
_log = structlog.get_logger("smpd")


@dataclass(slots=True)
class State:
    """The state of a box, open. ``notes`` is what ``doctor`` should warn of; ``torn``: the last change may be lost."""

    folder: str
    space: Space
    keys: BoxKeys
    audit: KeptLog
    database: Database
    seal: StateSeal
    salvaged: Salvaged | None = None
    torn: bool = False
    notes: list[str] = field(default_factory=list)

    def close(self) -> None:
        """Sign, checkpoint, close, wipe; blocking."""
        try:
            self.audit.close()
        except (SmpError, OSError) as error:
            _log.error("audit log not closed cleanly", exc_info=error)
        self.database.close()
        self.space.close()
        self.seal.wipe()
        self.keys.wipe()


def open_state(config: Config) -> State:
    """Open the state of a box, or make it; the caller holds its lock. Blocking.

    Raises:
        SmpError: why it cannot be used, and what to do.
    """
    folder = config.paths.state
    keys_folder = os.path.join(folder, "keys")
    ensure_dir(keys_folder)
    durable.sweep_path(folder)
    check_formats(folder)
    with contextlib.ExitStack() as undo:
        space = undo.enter_context(contextlib.closing(Space(folder, config.space.reserve_bytes)))
        space.spare()
        database_path, audit_folder = os.path.join(folder, "smpd.db"), os.path.join(folder, "audit")
        first = not any(map(os.path.exists, (database_path, os.path.join(audit_folder, LOG_NAME))))
        with disk_errors(f"the keys in {keys_folder}"):
            keys = load_keys(keys_folder, config.keys, first=first)
        undo.callback(keys.wipe)
        notes = list(keys.mended)
        database, salvaged, torn = _open_database(database_path, space, notes)
        undo.callback(database.close)
        seal = StateSeal(keys.state)
        undo.callback(seal.wipe)
        signers, opener = partial(log_keys, keys), partial(_open_audit, audit_folder, config, keys, space)
        doubt = "" if keys.signed else "the key of the database was not signed by the box"
        audit = KeptLog(audit_folder, signers, opener, LastCheckpoint(database, seal), doubt)
        undo.pop_all()
    state = State(folder, space, keys, audit, database, seal, salvaged, torn, notes)
    state.notes += _notes(state)
    return state


def log_keys(keys: BoxKeys) -> list[VerifierKey]:
    """The keys of the audit log, the present one first. The log keeps the name that its first one gave it."""
    publics = [identity.public for identity in keys.identities]
    return [VerifierKey(f"smpd/{publics[-1].fingerprint()}", each.verify_key) for each in publics]


def _open_audit(
    folder: str,
    config: Config,
    keys: BoxKeys,
    space: Space,
    *,
    last: bytes | None,
    remember: Callable[[bytes, Reached | None], None],
    reached: Reached | None = None,
) -> AuditLog:
    key, *earlier = log_keys(keys)
    return AuditLog(
        folder,
        sign=keys.identity.sign,
        key=key,
        earlier_keys=earlier,
        pseudonym_key=bytearray(keys.pseudonym),  # the log wipes its own
        detail_key=bytearray(keys.detail),
        checkpoint_records=config.audit.checkpoint_records,
        checkpoint_s=config.audit.checkpoint_s,
        make_room=space.spare,
        last=last,
        reached=reached,
        remember=remember,
    )


def _open_database(path: str, space: Space, notes: list[str]) -> tuple[Database, Salvaged | None, bool]:
    """Open the database; one that is damaged is set aside, and what can be read of it goes into a new one."""
    finish_swap(path)
    salvaged = None
    wal = read_wal(path + "-wal")
    if wal.damaged:  # SQLite would take it for one that ends there
        salvaged = salvage(path)
    elif wal.torn:
        notes.append(
            "the last change of the database is incomplete: a crash leaves it so, and it was not acknowledged; "
            "if there was no crash, it is damaged, and one change is lost"
        )
    try:
        return Database(path, make_room=space.spare), salvaged, wal.torn
    except ResourceError as error:
        if not error.details.get("damaged"):
            raise
    salvaged = salvage(path)
    return Database(path, make_room=space.spare), salvaged, wal.torn


def within_reach(folder: str) -> list[str]:
    """The folders of code that hold this one, so that a worker could read it: Landlock has no exceptions."""
    path = sys.path if sys.flags.safe_path else sys.path[1:]  # the first is where smpd was started, and not a worker's
    real = os.path.realpath(folder)
    found = {os.path.realpath(each) for each in code_folders(("smpd", "smp_proto"), path)}
    return sorted(each for each in found if os.path.commonpath([each, real]) == each)


def _notes(state: State) -> list[str]:
    path = os.path.join(state.folder, "smpd.db")
    details = [name for name in os.listdir(state.audit.directory) if DAMAGED in name and name[-1].isdigit()]
    notes = [
        f"the state lies in {each}, which workers can read: set paths.state" for each in within_reach(state.folder)
    ]
    notes += [f"the keys of details in the audit log were damaged, and set aside as audit/{name}" for name in details]
    notes += [
        f"a damaged database was set aside as {name}: what could be read of it is in use; smpctl audit tail names the "
        "jobs that are lost; restore a backup, or remove the file once it was looked at"
        for name in set_aside(path)
    ]
    return notes


def lost_jobs(audit: KeptLog, journal: Journal) -> list[str]:
    """The jobs that the audit log knows to be unfinished and the journal does not know at all; blocking."""
    unfinished: dict[str, None] = {}
    for record in _records(audit, b'"event":"job.'):
        if record.event == "job.submit":
            unfinished[record.job] = None
        elif record.event in ("job.done", "job.cancelled", "job.lost"):
            unfinished.pop(record.job, None)
    known = journal.ids()
    return [job for job in unfinished if job and job not in known]


def revived_senders(audit: KeptLog, trust: TrustStore) -> list[str]:
    """The senders who are believed although the audit log says last of them that they were removed; blocking."""
    return _revived(audit, "trust", [view.name for view in trust.list() if not view.removed])


def revived_remotes(audit: KeptLog, remotes: RemoteStore) -> list[str]:
    """The remotes that are known, with their secrets, although the audit log says last of them the same; blocking."""
    return _revived(audit, "remote", remotes.names())


def _revived(audit: KeptLog, kind: str, names: list[str]) -> list[str]:
    last: dict[str, str] = {}
    removed = f"{kind}.remove"
    for record in _records(audit, f'"event":"{kind}.'.encode()):
        if record.event in (f"{kind}.add", removed):
            last[record.subject] = record.event
    return [name for name in names if last.get(audit.pseudonym(name)) == removed]


def _records(audit: KeptLog, holding: bytes) -> Iterator[AuditRecord]:
    """The records whose line holds this: there may be millions of others."""
    since = 0
    while lines := audit.read(since, _LINES):
        since += len(lines)
        for line in (line for line in lines if holding in line):
            with contextlib.suppress(ValueError):  # in the part of a long log that is verified after the start
                yield parse_line(line)
