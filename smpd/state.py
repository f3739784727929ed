"""What lies on the disk of a box, opened in order and closed again: reserve, keys, audit log, database."""

import contextlib
import os
from dataclasses import dataclass, field

import structlog

from smp_proto.audit.note import VerifierKey
from smp_proto.errors import SmpError
from smpd.audit.log import AuditLog
from smpd.config import Config
from smpd.host.folders import ensure_dir
from smpd.host.space import Space
from smpd.jobs.database import Database
from smpd.vault.keys import BoxKeys, load_keys

_log = structlog.get_logger("smpd")


@dataclass(slots=True)
class State:
    """The state of a box, open. ``notes`` is what ``doctor`` should warn of."""

    folder: str
    space: Space
    keys: BoxKeys
    audit: AuditLog
    verifier: VerifierKey
    database: Database
    notes: list[str] = field(default_factory=list)

    def close(self) -> None:
        """Sign, checkpoint, close, wipe; blocking."""
        try:
            self.audit.close()
        except (SmpError, OSError) as error:
            _log.error("audit log not closed cleanly", exc_info=error)
        self.database.close()
        self.space.close()
        self.keys.identity.wipe()


def open_state(config: Config) -> State:
    """Open the state of a box, or make it; the caller holds its lock. Blocking.

    Raises:
        SmpError: why it cannot be used, and what to do.
    """
    folder = config.paths.state
    keys_folder = os.path.join(folder, "keys")
    ensure_dir(keys_folder)
    with contextlib.ExitStack() as undo:
        space = undo.enter_context(contextlib.closing(Space(folder, config.space.reserve_bytes)))
        space.spare()
        keys = load_keys(keys_folder, config.keys)
        undo.callback(keys.identity.wipe)
        audit, verifier = _open_audit(config, keys, space)
        undo.push(audit)
        database = Database(os.path.join(folder, "smpd.db"), make_room=space.spare)
        undo.pop_all()
    return State(folder, space, keys, audit, verifier, database)


def _open_audit(config: Config, keys: BoxKeys, space: Space) -> tuple[AuditLog, VerifierKey]:
    public = keys.identity.public
    verifier = VerifierKey(f"smpd/{public.fingerprint()}", public.verify_key)
    log = AuditLog(
        os.path.join(config.paths.state, "audit"),
        sign=keys.identity.sign,
        key=verifier,
        pseudonym_key=keys.pseudonym,
        detail_key=keys.detail,
        checkpoint_records=config.audit.checkpoint_records,
        checkpoint_s=config.audit.checkpoint_s,
        make_room=space.spare,
    )
    return log, verifier
