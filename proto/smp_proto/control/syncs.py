"""Syncs: standing watches over a remote's prefix, each of which makes a job of every object version that appears."""

from typing import Any, Literal

import msgspec

from smp_proto.control.base import Request
from smp_proto.control.jobs import Priority
from smp_proto.errors import ErrorBody

SyncState = Literal["active", "paused"]
TROUBLES_MAX = 100  # objects named in one reply
SYNC_BYTES_MAX = 64 << 10


class SyncSpec(msgspec.Struct, kw_only=True):
    """What to watch, and what becomes of each object. As a message it has at most :data:`SYNC_BYTES_MAX`.

    Without a ``processor`` objects go to the vault. With one its results go below ``target`` (``REMOTE:PREFIX``), each
    under the path that its object has below the source's prefix, or to the vault when it is empty.

    Args:
        name: of the sync.
        source: ``REMOTE:PREFIX``.
        processor, params, recipients: as of a RunSpec.
        include: patterns of paths below the prefix: ``*`` and ``?`` match within a step, ``**`` across steps. Empty for
            all.
        exclude: what is left out of that.
        events: URL of a queue of SQS to which the source's bucket sends notifications; empty for none. Listing goes on.
        every_s: seconds between the end of a listing and the next one, 1 to 86,400.
        after: what becomes of the object once its result is delivered.
        moved_to: prefix in the source's remote, with ``after`` ``move``: the object goes below it, under the path that
            it has below the source's prefix.
        priority: of the jobs.
        max_in_flight: how many of its jobs there are at once, 1 to 256.
    """

    name: str
    source: str
    processor: str = ""
    params: dict[str, Any] = {}
    target: str = ""
    recipients: list[str] = []
    include: list[str] = []
    exclude: list[str] = []
    events: str = ""
    every_s: float = 30.0
    after: Literal["keep", "delete", "move"] = "keep"
    moved_to: str = ""
    priority: Priority = "normal"
    max_in_flight: int = 4


class SyncView(msgspec.Struct):
    """A sync as shown. Counts are of object versions; times are seconds since the epoch, 0 for none.

    Args:
        seen: all that were found and wanted, but those forgotten since (``jobs.gone_kept``).
        waiting: found, and not yet a job; ``settling`` ones of a plaintext remote included.
        in_flight: those whose job has not ended.
        done: those whose job ended well.
        failed: those that are tried again later, or listed again since the box's record of them is damaged.
        quarantined: those that are not tried again by themselves.
        gone: those that had left before their job began.
        lag_s: for how long the oldest has waited that is not done.
        hour_done: how many were done in the last hour.
        listing: whether a listing is under way.
        next_poll: when the next one begins.
        last_poll: when the last one ended.
        error: why the last listing failed, an object could not be deleted or moved, or nothing is told of new ones.
        told: whether the source tells of new objects, beside being listed: a folder's kernel, or a queue.
        hints: how often it did since the daemon started.
        ignored: messages of the queue that were no notification of the bucket; they are left in it.
    """

    spec: SyncSpec
    state: SyncState
    owner: str
    created: float
    seen: int = 0
    waiting: int = 0
    in_flight: int = 0
    done: int = 0
    failed: int = 0
    quarantined: int = 0
    gone: int = 0
    lag_s: float = 0.0
    hour_done: int = 0
    listing: bool = False
    next_poll: float = 0.0
    last_poll: float = 0.0
    error: ErrorBody | None = None
    told: bool = False
    hints: int = 0
    ignored: int = 0


class SyncChanged(msgspec.Struct):
    """What an event of kind ``sync`` carries: something of this sync changed. Several changes may be one event."""

    name: str


class SyncTrouble(msgspec.Struct):
    """An object that failed: ``failed`` will be tried again, ``quarantined`` waits for a person.

    Of one that is ``damaged`` the box's own record does not open: its path is empty until a listing names it again.
    """

    path: str
    state: str
    tries: int
    job: str
    error: ErrorBody | None = None


class SyncAdd(Request, tag="sync-add"):
    """Begin to watch. Reply: SyncView. Errors: exists, bad_request, no_such_remote, no_such_processor."""

    sync: SyncSpec


class SyncList(Request, tag="sync-list"):
    """DATA: Syncs. Reply: Syncs. The reply has the last of them; those that do not fit come before it, as DATA."""


class Syncs(msgspec.Struct):
    """Syncs, or the next of them."""

    syncs: list[SyncView]


class SyncShow(Request, tag="sync-show"):
    """One sync, with up to :data:`TROUBLES_MAX` objects that failed, as many as fit. Reply: SyncShown.

    Errors: no_such_sync.
    """

    name: str


class SyncShown(msgspec.Struct):
    """A sync and its troubles."""

    sync: SyncView
    troubles: list[SyncTrouble] = []


class SyncControl(Request, tag="sync-control"):
    """Act on a sync. Reply: SyncView, as it was last for ``remove``. Errors: no_such_sync.

    ``pause`` starts no more jobs and lets those there are end; ``now`` lists at once; ``retry`` tries what failed or
    was quarantined once more; ``remove`` forgets the sync and what it had seen, and leaves its jobs alone.
    """

    name: str
    action: Literal["pause", "resume", "now", "retry", "remove"]
