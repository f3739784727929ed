"""Verbs for the box's own key."""

import os
from functools import partial

import anyio
import structlog

from smp_proto.aio import Exchange
from smp_proto.audit.note import VerifierKey
from smp_proto.control import BoxKey, BoxRotate, PublicKey
from smpd.audit.kept import KeptLog
from smpd.config import Keys
from smpd.control.actor import Actor
from smpd.vault.keys import BoxKeys
from smpd.vault.rotation import Rotation
from smpd.verbs.daemon import Daemon

_log = structlog.get_logger("smpd")


async def box_key(daemon: Daemon, actor: Actor, request: BoxKey, exchange: Exchange) -> PublicKey:
    """The public key of this box."""
    public, *before = [identity.public for identity in daemon.box.identities]
    return PublicKey(public.text(), public.key_id.hex(), public.fingerprint(), [each.fingerprint() for each in before])


async def box_rotate(daemon: Daemon, actor: Actor, request: BoxRotate, exchange: Exchange) -> PublicKey:
    """Give this box a new key."""
    daemon.box.space.spare()
    folder = os.path.join(daemon.state_dir, "keys")
    act = partial(rotate, folder, daemon.config.keys, daemon.keys, daemon.audit, actor.label, request.reason)
    with anyio.CancelScope(shield=True):
        daemon.notes += await anyio.to_thread.run_sync(act)
    _log.info("key rotated", fingerprint=daemon.public.fingerprint())
    return await box_key(daemon, actor, BoxKey(), exchange)


def rotate(folder: str, config: Keys, keys: BoxKeys, audit: KeptLog, actor: str, reason: str) -> list[str]:
    """Change the keys in a folder and who signs the audit log; returns what ``doctor`` should warn of. Blocking.

    Raises:
        SmpError: nothing is changed.
    """
    if audit.failure and not audit.broken:  # the space may be back
        audit.retry()
    with Rotation(folder, config, keys) as rotation:
        public = rotation.identity.public
        key = VerifierKey(audit.keys[0].name, public.verify_key)
        facts = {"key_id": public.key_id.hex(), "reason": reason[:200]}
        audit.rotate(key, rotation.identity.sign, rotation.commit, actor=actor, **facts)
        return rotation.finish()
