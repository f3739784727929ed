"""Verbs for remotes and for the senders this box believes."""

import contextlib
from functools import partial

import anyio
import msgspec

from smp_proto.aio import Exchange
from smp_proto.control import (
    UNFINISHED_STATES,
    ListObjects,
    Objects,
    RemoteAdd,
    RemoteList,
    RemoteRemove,
    Remotes,
    RemoteTest,
    RemoteTested,
    RemoteView,
    RemoveObject,
    TrustAdd,
    Trusted,
    TrustList,
    TrustRemove,
    TrustView,
)
from smp_proto.errors import IntegrityError, StateError
from smp_proto.sealed.keys import PublicIdentity
from smpd.control.actor import Actor
from smpd.control.permissions import Need
from smpd.vault.remotes import Remote, parse_location
from smpd.verbs.batches import in_parts
from smpd.verbs.daemon import Daemon


async def remote_add(daemon: Daemon, actor: Actor, request: RemoteAdd, exchange: Exchange) -> RemoteView:
    """Keep a remote, its secret sealed; or another secret of it, without the processes that have the earlier one."""
    await daemon.record(actor, "remote.replace" if request.replace else "remote.add", request.name, mode=request.mode)
    keep = daemon.remotes.replace if request.replace else daemon.remotes.add
    keeping = partial(keep, request.name, request.config, mode=request.mode, secret=request.secret)
    try:
        view = await anyio.to_thread.run_sync(keeping)
    finally:
        Remote(request.name, request.mode, request.config, request.secret).wipe()
    if request.replace:
        await daemon.pools.forget(request.name, replaced=True)
    return view


async def remote_list(daemon: Daemon, actor: Actor, request: RemoteList, exchange: Exchange) -> Remotes:
    """List the remotes that the caller may use."""
    found = await anyio.to_thread.run_sync(daemon.remotes.list)
    shown = (remote for remote in found if actor.rights.allow(Need("any", remote.name)))
    return await in_parts(exchange, shown, Remotes)


async def remote_test(daemon: Daemon, actor: Actor, request: RemoteTest, exchange: Exchange) -> RemoteTested:
    """Connect, authenticate, list."""
    pool = await daemon.pools.get(request.name)
    probed = await pool.probe()
    return RemoteTested(request.name, probed.milliseconds, probed.facts)


async def remote_remove(daemon: Daemon, actor: Actor, request: RemoteRemove, exchange: Exchange) -> None:
    """Forget a remote that no open job uses."""
    with contextlib.suppress(IntegrityError):  # one whose record is damaged can be removed, which is what is advised
        await anyio.to_thread.run_sync(daemon.remotes.view, request.name)
    users = await anyio.to_thread.run_sync(_users, daemon, request.name)
    if users:
        raise StateError(
            "wrong_state",
            f"remote {request.name} is used by {len(users)} unfinished jobs",
            hint=f"wait for them or run: smpctl job cancel {users[0]}",
        )
    if syncs := daemon.syncs.using(request.name):
        name = request.name
        hint = f"to change its credentials: smpctl remote add {name} URL --replace; else: smpctl sync remove {syncs[0]}"
        raise StateError("wrong_state", f"remote {request.name} is watched by the sync {syncs[0]}", hint=hint)
    await daemon.record(actor, "remote.remove", request.name)
    await anyio.to_thread.run_sync(daemon.remotes.remove, request.name)
    await daemon.pools.forget(request.name)


def _users(daemon: Daemon, remote: str) -> list[str]:
    """The unfinished jobs that read from a remote or write to it."""
    found = daemon.box.journal.list(UNFINISHED_STATES)
    return [
        job.id for job in found if f"{remote}:" in (f"{_head(job.spec, 'source')}:", f"{_head(job.spec, 'target')}:")
    ]


def _head(spec: object, part: str) -> str:
    return str(getattr(spec, part, "")).partition(":")[0]


async def ls(daemon: Daemon, actor: Actor, request: ListObjects, exchange: Exchange) -> None:
    """List objects of a remote."""
    name, prefix = parse_location(request.location, prefix=True)
    pool = await daemon.pools.get(name)
    async with contextlib.aclosing(pool.list(prefix, recursive=request.recursive, gated=False)) as batches:
        async for batch in batches:
            await exchange.send(Objects(batch))


async def rm(daemon: Daemon, actor: Actor, request: RemoveObject, exchange: Exchange) -> None:
    """Remove an object of a remote."""
    name, path = parse_location(request.location)
    pool = await daemon.pools.get(name)
    await daemon.record(actor, "object.delete", request.location)
    await pool.delete(path)


async def trust_add(daemon: Daemon, actor: Actor, request: TrustAdd, exchange: Exchange) -> TrustView:
    """Believe a sender."""
    public = PublicIdentity.parse(request.key)
    await daemon.record(actor, "trust.add", request.name, key_id=public.key_id.hex())
    add = partial(
        daemon.trust.add,
        request.name,
        public.text(),
        key_id=public.key_id,
        fingerprint=public.fingerprint(),
        prefixes=request.prefixes,
        until=request.until,
    )
    return await anyio.to_thread.run_sync(add)


async def trust_list(daemon: Daemon, actor: Actor, request: TrustList, exchange: Exchange) -> Trusted:
    """List senders, tombstones included."""
    found = await anyio.to_thread.run_sync(daemon.trust.list)
    return Trusted([shown for sender in found if (shown := sender_shown(actor, sender))])


def sender_shown(actor: Actor, sender: TrustView) -> TrustView | None:
    """A sender without the prefixes in remotes that the actor may not use; None where nothing is left of them.

    A sender without prefixes is believed anywhere, so one must never be shown so because its prefixes are hidden.
    """
    prefixes = [each for each in sender.prefixes if actor.rights.allow(Need("any", each.partition(":")[0]))]
    return msgspec.structs.replace(sender, prefixes=prefixes) if prefixes or not sender.prefixes else None


async def trust_remove(daemon: Daemon, actor: Actor, request: TrustRemove, exchange: Exchange) -> TrustView:
    """Stop believing a sender."""
    await daemon.record(actor, "trust.remove", request.name)
    return await anyio.to_thread.run_sync(daemon.trust.remove, request.name)
