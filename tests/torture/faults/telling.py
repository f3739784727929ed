"""A fault that can be seen from outside, to try the planting itself."""

from torture import planted


def version(text: str) -> None:
    """Have the daemon say another version of itself; do nothing in its workers."""
    if planted.ROLE == "smpd":
        import smp_proto

        smp_proto.__version__ = text


def probe(text: str) -> None:
    """Have a fetch process of a local remote find this; do nothing elsewhere."""
    if planted.ROLE == "smpd.fetch":
        from smpd.fetch.local import LocalRemote

        async def found(_: LocalRemote) -> dict[str, str]:
            return {"planted": text}

        LocalRemote.probe = found
