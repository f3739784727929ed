"""What smpd asks of a fetch process. One process serves one remote and holds only that remote's secret.

Another serves a webhook: its first request is :class:`SetupWebhook`, and all others are :class:`Post`. Of a remote:
The first request is :class:`Setup`, with the ring's descriptor; its answer is :class:`Walls`. Paths are relative to the
remote's root (bucket and prefix, login folder, local folder). No message has room for a key. A process does not know
what its remote is called: its hints say ``NAME``, which smpd fills in.
"""

from typing import Annotated, Literal

import msgspec

from smp_proto.control import SIZE_MAX, AnyRemoteConfig, AnyRemoteSecret, ObjectInfo
from smp_proto.errors import ErrorBody

BusySeconds = Annotated[float, msgspec.Meta(ge=0, le=3600)]
NORMAL = 2  # rank of a job


class Request(msgspec.Struct, tag_field="op", kw_only=True):
    """Base of the requests; ``rank`` is that of the job: where requests wait for each other 0 goes first."""

    rank: int = NORMAL


class Deadlines(msgspec.Struct, frozen=True):
    """How long a peer may take, in seconds: all that a fetch process waits by.

    Attributes:
        connect_s: to look up a name, connect, and complete a TLS handshake.
        login_s: to exchange SSH keys and log in, once connected.
        stall_s: without a byte, while it owes the head or the body of an answer, takes a body, or sends a page of a
            listing.
        rate_min: the least bytes a second of such a connection, over each ``window_s``.
        answer_s: to answer once the whole body of an upload was sent.
        complete_s: to put together the parts of an upload, which may be thousands.
        cleanup_s: to remove what a broken upload left.
    """

    connect_s: float = 10.0
    login_s: float = 30.0
    stall_s: float = 30.0
    rate_min: int = 256
    window_s: float = 60.0
    answer_s: float = 120.0
    complete_s: float = 600.0
    cleanup_s: float = 10.0


class Setup(Request, tag="setup"):
    """Who to talk to, with what, and the geometry of the ring whose descriptor comes along.

    Reply: Walls. Errors: sandbox, bad_config; no_such_bucket where the walls are to open a local folder.
    """

    config: AnyRemoteConfig
    slots: int
    slot_bytes: int
    secret: AnyRemoteSecret | None = None
    connections: int = 4
    sandbox: str = "auto"
    deadlines: Deadlines = Deadlines()


class Walls(msgspec.Struct):
    """What keeps the process in: each wall, and ``on`` or why it is not up."""

    sandbox: dict[str, str] = {}


class SetupWebhook(Request, tag="setup-webhook"):
    """Whom to tell, in place of Setup: there is no remote and no ring. Reply: Walls. Errors: sandbox, bad_config.

    Attributes:
        header: a line with a secret, or empty; shown by no repr.
        ca_pem: certificates that are trusted beside the system's, as text.
    """

    url: str
    header: str = ""
    ca_pem: str = ""
    sandbox: str = "auto"
    deadlines: Deadlines = Deadlines()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class Post(Request, tag="post"):
    """Send JSON to the webhook. Reply: None, once it answered with 2xx. Errors: remote_*."""

    body: Annotated[bytes, msgspec.Meta(max_length=1 << 18)]


class Stat(Request, tag="stat"):
    """Size and pin of one object. Reply: ObjectInfo. Errors: no_such_object, no_such_bucket, remote_*."""

    path: str


# What smpd asks of one process at once, and what may be on its way then, fit into a link with room to spare:
# smpd.transfer.places has the numbers, and a test adds them up.
STREAMS_MAX = 3072
LISTED_AHEAD = 4
LISTED_BYTES = 72 << 10


class List(Request, tag="list"):
    """All objects below a prefix whose path comes after ``after``, in the order of UTF-8. DATA: Listed. Reply: None.

    smpd answers each batch by More once it was taken; no more than :data:`LISTED_AHEAD` go unanswered, so that a bucket
    of any size takes bounded memory. A batch takes no more than :data:`LISTED_BYTES`.
    """

    prefix: str
    recursive: bool = True
    after: str = ""


class Listed(msgspec.Struct):
    """A batch of a listing; none, and for how long, where the server asked for patience, which the process has."""

    objects: list[ObjectInfo]
    busy_s: BusySeconds = 0.0


class More(msgspec.Struct):
    """A batch of a listing was taken."""


class Read(Request, tag="read"):
    """Bytes ``[offset, offset + length)`` of an object into a slot, at ``at``. Reply: None.

    Exactly ``length`` bytes are in the slot when the reply comes. The pin (of Stat) must still hold, both by
    what the server is asked (If-Match) and by what it answers (ETag, Content-Range, size and mtime), else
    ``source_changed``. A body cut short is ``remote_unreachable`` (retryable), never a short success.
    """

    path: str
    pin: str
    offset: int
    length: int
    slot: int
    at: int = 0


class Tail(Request, tag="tail"):
    """The last ``length`` bytes of an object, all of a smaller one, into the front of a slot. Reply: ObjectInfo.

    For S3 one request (a suffix range, RFC 9110 §14.1.2) in place of Stat and Read; what is in the slot is of the
    object that the reply's pin names. Errors: those of Stat and Read.
    """

    path: str
    length: int
    slot: int


class Whole(msgspec.Struct):
    """One object of ReadMany: all of its ``size`` bytes, to be put at ``at`` of the slot."""

    path: str
    pin: str
    size: int
    at: int


class ReadMany(Request, tag="read-many"):
    """Whole objects into one slot, several at a time: one message for many small objects. Reply: ManyRead.

    Each is read as by Read. The failure of one is told in the reply and does not disturb the others.
    """

    objects: list[Whole]
    slot: int


class ManyRead(msgspec.Struct):
    """Which objects of ReadMany are not in the slot, by their index, and why."""

    errors: dict[int, ErrorBody] = {}


class Write(Request, tag="write"):
    """Upload ``size`` bytes of the descriptor that comes along, from its offset 0, to ``path``. Reply: ObjectInfo.

    The object comes to be under its name whole, or not at all. S3: multipart above one part, aborted on failure or
    cancel. SFTP and local: a file called ``part`` in the same folder, then renamed. DATA: Progress; where there is
    a ``part``, one that has an ``upload`` is answered by Noted before anything is sent under that id. With ``paced`` so
    is each that says how far it is and not that the server is busy, but for the last, before more is sent.

    ``replaces`` is the pin of what may be at the name, empty for nothing; None for anything. ``target_changed`` when
    something else is, as far as the server can tell: S3 by a conditional write where it knows them, SFTP and local just
    before and, where nothing may be there, by the renaming. What the server has afterwards is compared with what was
    sent: size, and the ETag it answered, or the object's end.
    """

    path: str
    size: int
    part: str = ""
    replaces: str | None = None
    paced: bool = False


class Progress(msgspec.Struct):
    """Bytes moved so far, for how long the server asked for patience, which the process has, or the id of an upload."""

    done: Annotated[int, msgspec.Meta(ge=0, le=SIZE_MAX)]
    busy_s: BusySeconds = 0.0
    upload: str = ""


class Noted(msgspec.Struct):
    """The id of an upload is kept; or more may be sent."""


class Look(Request, tag="look"):
    """Is the object at ``path`` what the descriptor that comes along holds, ``size`` bytes of it? Reply: Looked.

    Told by its size and its last :data:`END_BYTES` bytes, in which a sealed object has its id and its signature.
    """

    path: str
    size: int


END_BYTES = 64 << 10


class Looked(msgspec.Struct):
    """What is there: its pin, empty when there is nothing, and whether it is the same."""

    pin: str = ""
    ours: bool = False


class Clear(Request, tag="clear"):
    """Remove what a cut off Write of ``size`` bytes to ``path`` may have left. Reply: None. Nothing there is no error.

    SFTP and local: the file ``part``. S3: the multipart upload of that id. With no id, a process was perhaps killed
    before it could tell: then, if ``unknown``, the uploads of exactly this key that have no part yet and are not to be
    spared, where the server lists them.
    """

    path: str
    size: int
    part: str
    upload: str = ""
    unknown: bool = True
    spared: list[str] = []


class Hold(Request, tag="hold"):
    """The server asked for patience, here or in another process: send it nothing for so long. Reply: None."""

    seconds: float


class Delete(Request, tag="delete"):
    """Remove one object; one that is not there is no error. Reply: None.

    With a pin only that version: ``source_changed`` where another is there. S3 is asked to see to that itself
    (If-Match); of other servers, and of those that do not know this, it is looked at just before.
    """

    path: str
    pin: str = ""


class Move(Request, tag="move"):
    """Give one version of an object another name, at which nothing was. Reply: Moved. Nothing is replaced, nor lost.

    S3: copied by the server, the copy looked at, then deleted as by Delete. SFTP and local: renamed. May be asked
    again after it was cut off: what is at ``target`` and is the same is what was left then. ``target_changed`` where
    something else is there.
    """

    path: str
    pin: str
    target: str


class Moved(msgspec.Struct):
    """What became of it: where it was ``replaced`` another version is at its path, and stays there."""

    outcome: Literal["moved", "gone", "replaced"]


class Watch(Request, tag="watch"):
    """Say when something may have appeared below a prefix, until cancelled. DATA: Seen, each answered by Noted.

    Of a folder its kernel tells (inotify), of a bucket a queue of SQS, at the URL ``queue``, to which the bucket sends
    its notifications. The next Seen comes once the last was answered; a message leaves the queue only then. The first
    is sent when watching has begun. It is a hint: what is told may be too little, and is never a reason not to list.
    Errors: bad_config, where this kind of remote tells of nothing; no_such_bucket, remote_*.
    """

    prefix: str
    queue: str = ""


SEEN_MAX = 256
SEEN_BYTES = 256 << 10


class Seen(msgspec.Struct):
    """Paths where an object may have appeared, at most :data:`SEEN_MAX` and :data:`SEEN_BYTES` of them.

    There are none where only a listing tells.

    Args:
        ignored: messages of the queue that were none, or of another bucket: they are left in it.
    """

    paths: Annotated[list[str], msgspec.Meta(max_length=SEEN_MAX)] = []
    ignored: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] = 0


class Probe(Request, tag="probe"):
    """Connect, authenticate and list at most one object. Reply: Probed. Errors: remote_*, no_such_bucket."""


class Probed(msgspec.Struct):
    """What a probe found: e.g. server software, cipher, TLS version, and how long the round trip took."""

    milliseconds: float
    facts: dict[str, str] = {}


AnyRequest = (
    Setup
    | SetupWebhook
    | Post
    | Stat
    | List
    | Read
    | Tail
    | ReadMany
    | Write
    | Look
    | Clear
    | Hold
    | Delete
    | Move
    | Watch
    | Probe
)
