"""Telling somebody: what is wrong now, and the verb that tries it."""

import time
from collections.abc import Sequence

from smp_proto.aio import Exchange
from smp_proto.control import NotifyTest, NotifyTested
from smpd.control.actor import Actor
from smpd.notices.command import Command
from smpd.notices.message import Condition
from smpd.notices.notices import Notices
from smpd.verbs import checkup
from smpd.verbs.daemon import Daemon
from smpd.verbs.inspect import short_jobs

_SECRETS = ("/run/credentials", "/run/secrets")


def notices_of(daemon: Daemon) -> Notices:
    """The notices of a daemon, as it is configured."""
    config = daemon.config
    hidden = [config.paths.state, config.keys.credential_file, config.keys.passphrase_file, *_SECRETS]
    notify = config.notify
    command = Command(notify.command, notify.timeout_s, config.compute.sandbox, [each for each in hidden if each])
    return Notices(
        command if notify.command else None,
        daemon.state_dir,
        daemon.public.fingerprint(),
        daemon.audit,
        lambda: conditions(daemon),
        daemon.events.next,
        notify.every_s,
    )


def conditions(daemon: Daemon) -> Sequence[Condition]:
    """What is wrong and stays so until somebody acts. Blocking."""
    found = []
    disk = checkup.disk_check(daemon.box.space.look(), short_jobs(daemon.box.journal))
    if disk.state != "ok":
        found.append(Condition("space", f"{disk.text}; {disk.hint}"))
    if daemon.audit.failure:
        found.append(Condition("audit", "the audit log cannot be written, so that nothing is done: smpctl doctor"))
    ending = len(list(checkup.trust_checks(daemon.trust.list(), time.time())))
    if ending:
        found.append(Condition("trust", f"{ending} senders are believed for less than 14 days more: smpctl doctor"))
    return found


async def notify_test(daemon: Daemon, actor: Actor, request: NotifyTest, exchange: Exchange) -> NotifyTested:
    """Tell somebody that this is a test."""
    await daemon.record(actor, "notify.test")
    return NotifyTested(await daemon.notices.test())
