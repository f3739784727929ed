"""The verb that reads the configuration anew."""

from smp_proto.aio import Exchange
from smp_proto.control import Reload, Reloaded
from smpd.control.actor import Actor
from smpd.verbs.daemon import Daemon


async def reload(daemon: Daemon, actor: Actor, request: Reload, exchange: Exchange) -> Reloaded:
    """Take a changed configuration up."""
    return await daemon.reload(actor.label)
