"""The quarantine: sealed objects that were refused, why, and what is to become of them."""

from typing import Literal

import msgspec

from smp_proto.control.base import Request
from smp_proto.control.jobs import JobState

QUARANTINE_PAGE = 100  # items, whose names may be long


class QuarantineList(Request, tag="quarantine-list"):
    """What was refused, newest first, at most :data:`QUARANTINE_PAGE` items. DATA: Quarantine. Reply: Quarantine.

    The reply has the last items of the page; those that do not fit come before it, as DATA.
    ``job``: only what this job refused. ``before``: go on after the item of this id; if that is gone by now, ask anew.
    """

    job: str = ""
    before: str = ""


class QuarantineItem(msgspec.Struct):
    """An object that a job refused. Nothing that it says of itself was verified.

    ``kept_bytes`` of its ciphertext are on the box, all of it where ``whole``; ``left_out`` says why none is.
    ``sender`` and ``object_id`` are what its envelope claims, ``segment`` is the bad one or -1. ``state`` is the
    job's: the item is being tried again unless that is ``quarantined``. ``accept_older``: that this very object is
    to be taken although a newer one was at its location.
    """

    id: str
    job: str
    location: str
    code: str
    message: str
    hint: str = ""
    size: int = 0
    pin: str = ""
    sender: str = ""
    object_id: str = ""
    segment: int = -1
    kept_bytes: int = 0
    whole: bool = False
    left_out: str = ""
    created: float = 0.0
    updated: float = 0.0
    times: int = 1
    accept_older: bool = False
    state: JobState = "quarantined"


class QuarantineChange(msgspec.Struct):
    """The body of an event of kind ``quarantine``: an item came or went."""

    id: str
    job: str
    code: str
    change: Literal["add", "remove"]


class Quarantine(msgspec.Struct):
    """A page of the quarantine, or the next items of one."""

    items: list[QuarantineItem]


class QuarantineShow(Request, tag="quarantine-show"):
    """Reply: QuarantineItem. Errors: no_such_object."""

    id: str


class QuarantineRetry(Request, tag="quarantine-retry"):
    """Resume the job that refused an item: it fetches and verifies again whatever it refused. Reply: JobView. Audited.

    ``accept_older``: take this very object although a newer one was accepted at its location before.
    Errors: no_such_object, wrong_state while it is being tried.
    """

    id: str
    accept_older: bool = False


class QuarantineRemove(Request, tag="quarantine-remove"):
    """Delete an item; with its last item the job is cancelled. Reply: JobView. Audited.

    Errors: no_such_object, wrong_state while it is being tried.
    """

    id: str
