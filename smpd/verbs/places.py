"""Where something is to come from or go to, as far as that can be told before anybody looks."""

from smp_proto.errors import UsageError
from smpd.transfer.pool import RemotePool
from smpd.vault.remotes import parse_location
from smpd.verbs.daemon import Daemon


async def pool_of(daemon: Daemon, location: str) -> RemotePool:
    """The remote of a location, which can have such a place.

    Raises:
        UsageError: ``bad_name``; also of an empty part where there are folders, which take ``a//b`` for ``a/b``.
        NotFoundError: ``no_such_remote``.
    """
    name, path = parse_location(location, prefix=True)
    pool = await daemon.pools.get(name)
    if pool.kind != "s3" and "//" in path:  # the path itself is not repeated: it can be patient data
        message = f"a path of remote {name}, which has folders, has two slashes after each other"
        raise UsageError("bad_name", message, hint="leave out one of them")
    return pool
