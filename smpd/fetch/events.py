"""What a bucket tells of new objects, through a queue of SQS.

The queue is one sync's own. Its messages come from whoever may send to it, so they are a hint and nothing else: they
name keys, and what is there is asked of the bucket. A message is deleted once what it named was noted.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any
from urllib.parse import unquote_plus

import anyio
import msgspec

from smp_proto.errors import RemoteError, SmpError, UsageError
from smpd.fetch.bucket import Bucket
from smpd.fetch.remote import check_path
from smpd.fetch.speaking import operation
from smpd.links.fetching import SEEN_MAX, Deadlines, Seen
from smpd.links.queue import Place

WAIT_S = 20  # a receive waits for so long (the most there is, SQS API reference: ReceiveMessage)
MESSAGES_MAX = 10  # of one receive, likewise
PAUSE_S = 1.0  # after a receive that brought nothing of use, as some queues do not wait
BODY_MAX_BYTES = 1 << 20


class _Bucket(msgspec.Struct):
    name: str


class _Object(msgspec.Struct):
    key: str


class _S3(msgspec.Struct):
    bucket: _Bucket
    object: _Object


class _Record(msgspec.Struct, rename="camel"):
    event_name: str
    s3: _S3


class _Message(msgspec.Struct):
    """A notification of S3 (User Guide, "Event message structure"), its test, or one of SNS that holds either."""

    records: list[_Record] | None = msgspec.field(default=None, name="Records")
    event: str = msgspec.field(default="", name="Event")
    kind: str = msgspec.field(default="", name="Type")
    message: str = msgspec.field(default="", name="Message")


def keys_of(body: str, bucket: str) -> list[str] | None:
    """The keys of the objects that a message says were made; None where it is no notification of this bucket."""
    try:
        found = _parse(body)
        if found.kind == "Notification":
            found = _parse(found.message)
        if found.records is None:
            return [] if found.event == "s3:TestEvent" else None
        if any(record.s3.bucket.name != bucket for record in found.records):
            return None
        made = [
            record for record in found.records if record.event_name.removeprefix("s3:").startswith("ObjectCreated:")
        ]
        return [unquote_plus(record.s3.object.key, errors="strict") for record in made]
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _parse(body: str) -> _Message:
    if len(body) > BODY_MAX_BYTES:
        raise ValueError("longer than a message may be")
    return msgspec.json.decode(body.encode(), type=_Message)


def paths_of(keys: list[str], root: str, prefix: str) -> list[str]:
    """The paths of those keys that are below the prefix, and are paths."""
    found = []
    for key in keys:
        if key.startswith(root + prefix) and not key.endswith("/"):
            with suppress(UsageError, UnicodeError):
                check_path(key.removeprefix(root))
                found.append(key.removeprefix(root))
    return found


class Notifications:
    """Follows a queue."""

    def __init__(self, bucket: Bucket, deadlines: Deadlines) -> None:
        self._bucket = bucket
        self._deadlines = deadlines

    async def follow(self, url: str, root: str, prefix: str) -> AsyncGenerator[Seen, None]:
        """See :class:`smpd.fetch.remote.Remote`."""
        if not url:
            raise UsageError("bad_config", "a bucket tells of new objects through a queue", hint="give --events URL")
        place = Place.of(url, *self._bucket.home)
        async with (
            self._bucket.queue(place.region, place.endpoint) as client,
            aclosing(self._heard(client, url, root, prefix)) as heard,
        ):
            async for seen in heard:
                yield seen

    async def _heard(self, client: Any, url: str, root: str, prefix: str) -> AsyncGenerator[Seen, None]:
        begun = False
        while True:
            wait_s = WAIT_S if begun else 0  # it is followed once it has answered
            receive = {"MaxNumberOfMessages": MESSAGES_MAX, "WaitTimeSeconds": wait_s}
            answer = await self._call(client, "receive_message", url, **receive)
            if not begun:
                begun = True
                yield Seen()
            messages = [each for each in answer.get("Messages", ()) if "ReceiptHandle" in each][:MESSAGES_MAX]
            ours = [(each, keys_of(str(each.get("Body", "")), self._bucket.name)) for each in messages]
            paths = [path for _, keys in ours if keys for path in paths_of(keys, root, prefix)]
            ignored = sum(keys is None for _, keys in ours)
            for start in range(0, max(len(paths), bool(ignored)), SEEN_MAX):
                yield Seen(list(dict.fromkeys(paths[start : start + SEEN_MAX])), 0 if start else ignored)
            done = [each["ReceiptHandle"] for each, keys in ours if keys is not None]
            entries = [{"Id": str(number), "ReceiptHandle": handle} for number, handle in enumerate(done)]
            if entries:
                await self._call(client, "delete_message_batch", url, Entries=entries)
            elif wait_s:
                await anyio.sleep(PAUSE_S)

    async def _call(self, client: Any, method: str, url: str, **parameters: Any) -> dict[str, Any]:
        """One operation; what it waits for is bounded by what it asked the queue to wait, and a stall beyond that."""
        patience_s = WAIT_S + self._deadlines.stall_s
        try:
            with self._bucket.translated(where="the queue"), operation(patience_s):
                with anyio.fail_after(self._deadlines.connect_s + 2 * patience_s):
                    answer: dict[str, Any] = await getattr(client, method)(QueueUrl=url, **parameters)
        except SmpError as error:
            if error.code in ("no_such_object", "no_such_bucket") or error.details.get("status") == 400:
                hint = "check the URL, and that the remote's key may receive and delete messages"
                raise RemoteError(
                    "remote_failed", "the queue is not there, or refuses", hint=hint, retryable=False
                ) from error
            raise
        return answer
