"""Telling somebody: what is wrong now, and the verb that tries it."""

import time
from collections.abc import Sequence

import anyio

from smp_proto.aio import Exchange
from smp_proto.control import NotifyTest, NotifyTested, NotifyTried
from smp_proto.errors import SmpError, UsageError
from smpd.control.actor import Actor
from smpd.notices.command import Command
from smpd.notices.message import Condition
from smpd.notices.notices import Notices, Way
from smpd.transfer.settings import FetchSettings
from smpd.transfer.webhook import Webhook
from smpd.verbs import checkup
from smpd.verbs.daemon import Daemon

COMMAND_FILE, WEBHOOK_FILE = "notices.json", "notices-webhook.json"
_SECRETS = ("/run/credentials", "/run/secrets")


def notices_of(daemon: Daemon, fetch: FetchSettings) -> list[Notices]:
    """The notices of a daemon, as it is configured: for each way its own, so that neither waits for the other."""
    config = daemon.config
    notify, keys = config.notify, config.keys
    ways: list[tuple[Way, str]] = []
    if notify.command:
        hidden = [config.paths.state, keys.credential_file, keys.passphrase_file, notify.header_file, *_SECRETS]
        command = Command(notify.command, notify.timeout_s, fetch.sandbox, [each for each in hidden if each])
        ways.append((command, COMMAND_FILE))
    if notify.url:
        files = notify.header_file, notify.ca_file
        ways.append((Webhook(notify.url, *files, notify.timeout_s, fetch.sandbox, fetch.deadlines), WEBHOOK_FILE))
    return [
        Notices(
            way,
            daemon.state_dir,
            name,
            daemon.public.fingerprint(),
            daemon.audit,
            lambda: conditions(daemon),
            daemon.events.next,
            notify.every_s,
        )
        for way, name in ways
    ]


def conditions(daemon: Daemon) -> Sequence[Condition]:
    """What is wrong and stays so until somebody acts. Blocking."""
    found = []
    disk = checkup.disk_check(daemon.box.space.look(), daemon.scheduler.short)
    if disk.state != "ok":
        found.append(Condition("space", f"{disk.text}; {disk.hint}"))
    if daemon.audit.failure:
        found.append(Condition("audit", "the audit log cannot be written, so that nothing is done: smpctl doctor"))
    ending = len(list(checkup.trust_checks(daemon.trust.list(), time.time())))
    if ending:
        found.append(Condition("trust", f"{ending} senders are believed for less than 14 days more: smpctl doctor"))
    return found


async def notify_test(daemon: Daemon, actor: Actor, request: NotifyTest, exchange: Exchange) -> NotifyTested:
    """Tell somebody that this is a test, by each way there is."""
    await daemon.record(actor, "notify.test")
    if not daemon.notices:
        hint = "set notify.command or notify.url in the configuration, and restart smpd"
        raise UsageError("bad_config", "neither a command nor a webhook is configured that tells anybody", hint=hint)
    tried = [NotifyTried(notices.way.name) for notices in daemon.notices]

    async def attempt(notices: Notices, found: NotifyTried) -> None:
        start = time.monotonic()
        try:
            await notices.test()
        except SmpError as error:
            found.error = error.body()
        found.seconds = time.monotonic() - start

    async with anyio.create_task_group() as group:
        for notices, found in zip(daemon.notices, tried, strict=True):
            group.start_soon(attempt, notices, found)
    return NotifyTested(tried)
