"""Faults of what opening processes are told."""

from typing import Any

from torture import planted


def strangers() -> None:
    """They never hear of the sender that was added last."""
    if planted.ROLE == "smpd":
        from smpd.transfer.members import Batch

        open_elsewhere = Batch._open_elsewhere

        async def stale(batch: Batch, *arguments: Any) -> Any:
            batch._members.believed = list(batch._members.box.senders().everyone())[:-1]
            return await open_elsewhere(batch, *arguments)

        Batch._open_elsewhere = stale
