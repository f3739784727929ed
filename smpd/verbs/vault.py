"""Verbs for the vault: list, look inside, open, remove."""

import os
from collections.abc import Iterable

import anyio

from smp_proto.aio import Exchange
from smp_proto.channel import UNREAD_FDS_MAX
from smp_proto.control import (
    Entries,
    EntryView,
    OpenInto,
    Vault,
    VaultEntries,
    VaultItem,
    VaultList,
    VaultOpen,
    VaultRemove,
)
from smp_proto.errors import DaemonError
from smp_proto.sealed.bundle import BundleReader
from smp_proto.sealed.entries import Entry
from smp_proto.sealed.keys import PublicIdentity
from smpd.control.actor import Actor
from smpd.host.handed import Handed
from smpd.transfer.sealing import check_regular, open_into, read_bundle
from smpd.verbs.batches import batches
from smpd.verbs.daemon import Daemon, next_file
from smpd.verbs.seen import JobsSeen, item_seen, items_seen


async def vault_list(daemon: Daemon, actor: Actor, request: VaultList, exchange: Exchange) -> Vault:
    """List what is kept, a page of it."""
    seen = JobsSeen(daemon.box.journal, actor)
    page = await anyio.to_thread.run_sync(items_seen, daemon.box.vault, seen.brought, request.job, request.before)
    return Vault(list(page))


async def vault_entries(daemon: Daemon, actor: Actor, request: VaultEntries, exchange: Exchange) -> Entries:
    """Show the names inside an item."""
    item = await _item(daemon, actor, request.id)
    await daemon.record(actor, "vault.index", item.object_id)

    def read() -> tuple[Entry, ...]:
        fd = daemon.box.vault.open_fd(item.id)
        try:
            with _reader(daemon, fd) as reader:
                return reader.entries
        finally:
            os.close(fd)

    limiter = daemon.pools.openers.of_index(item.size)  # its index is no longer
    return await _answer(exchange, await anyio.to_thread.run_sync(read, limiter=limiter))


async def vault_open(daemon: Daemon, actor: Actor, request: VaultOpen, exchange: Exchange) -> Entries:
    """Open an item in the clear into the files a person hands over."""
    item = await _item(daemon, actor, request.id)
    targets: dict[str, int] = {}
    handed = Handed(daemon.handed.of(actor.uid))
    try:
        await _take_targets(exchange, targets, handed)
        await daemon.record(actor, "vault.open", item.object_id, entries=len(targets))

        def extract() -> list[Entry]:
            fd = daemon.box.vault.open_fd(item.id)
            try:
                with _reader(daemon, fd) as reader:
                    return open_into(reader, targets, handed.check)
            finally:
                os.close(fd)

        entries = await handed.use(extract)
    finally:
        handed.close()
    return await _answer(exchange, entries)


async def vault_remove(daemon: Daemon, actor: Actor, request: VaultRemove, exchange: Exchange) -> None:
    """Delete an item."""
    item = await _item(daemon, actor, request.id)
    await daemon.record(actor, "vault.remove", item.object_id)
    await anyio.to_thread.run_sync(daemon.box.vault.remove, item.id)


async def _take_targets(exchange: Exchange, targets: dict[str, int], handed: Handed) -> None:
    while True:
        message, fds = await next_file(exchange, OpenInto)
        handed.add(fds)
        if len(fds) != 1 or message.name in targets or len(targets) == UNREAD_FDS_MAX:
            text = f"each entry to open comes once, with one descriptor, and at most {UNREAD_FDS_MAX} at once"
            raise DaemonError("protocol", text)
        targets[message.name] = fds[0]
        if message.last:
            break

    def check() -> None:
        for name, fd in targets.items():
            check_regular(fd, os.O_WRONLY, name)

    await handed.use(check)


async def _item(daemon: Daemon, actor: Actor, item_id: str) -> VaultItem:
    return await anyio.to_thread.run_sync(item_seen, daemon.box.vault, JobsSeen(daemon.box.journal, actor), item_id)


def _reader(daemon: Daemon, fd: int) -> BundleReader:
    # Whether its sender was to be believed was decided when the object came; taking that back does not lock it.
    def sender(key_id: bytes) -> PublicIdentity:
        return daemon.box.own(key_id) or PublicIdentity.parse(daemon.trust.key_of(key_id))

    return read_bundle(fd, daemon.box.identities, sender)


async def _answer(exchange: Exchange, entries: Iterable[Entry]) -> Entries:
    """Send the entries, and return the last of them as the reply."""

    def view() -> list[list[EntryView]]:  # there may be a million
        return list(batches(EntryView(e.name, e.size, e.sha256.hex(), e.media_type, e.attributes) for e in entries))

    *before, last = await anyio.to_thread.run_sync(view)
    for batch in before:
        await exchange.send(Entries(batch))
    return Entries(last)
