"""What a queue says, and following one: moto's."""

import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote_plus

import anyio
import pytest
from fetch_link import ANSWER_S, Link, fetch_process
from hypothesis import given
from hypothesis import strategies as st
from servers import BUCKET, Served, admin, sqs

from smp_proto.control import LocalConfig, S3Config, S3Secret
from smp_proto.errors import SmpError, UsageError
from smpd.fetch.events import keys_of, paths_of
from smpd.fetch.s3 import S3Remote
from smpd.links.fetching import Deadlines, Noted, Seen, Watch
from smpd.links.queue import Place


def notification(*keys: str, bucket: str = BUCKET, name: str = "ObjectCreated:Put", **more: object) -> str:
    records = [
        {"eventName": name, "s3": {"bucket": {"name": bucket}, "object": {"key": quote_plus(key)}}, **more}
        for key in keys
    ]
    return json.dumps({"Records": records})


@given(st.lists(st.text(min_size=1)))
def test_keys_are_read_as_they_were_written(keys):
    """Whatever characters they have, also through SNS."""
    body = notification(*keys, eventVersion="2.1", awsRegion="x")
    assert keys_of(body, BUCKET) == keys
    assert keys_of(json.dumps({"Type": "Notification", "Message": body}), BUCKET) == keys


@given(
    st.text()
    | st.recursive(st.none() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)).map(
        json.dumps
    )
)
def test_anything_else_is_none(body):
    """No message ends the process, and none is taken for a notification that is not one."""
    assert not keys_of(body, BUCKET)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (notification("a", bucket="another"), None),
        (notification("a", name="ObjectRemoved:Delete"), []),
        (notification("a", name="s3:ObjectCreated:CompleteMultipartUpload"), ["a"]),
        ('{"Service":"Amazon S3","Event":"s3:TestEvent","Bucket":"scans"}', []),
        (
            '{"Records":[{"eventName":"ObjectCreated:Put","s3":{"bucket":{"name":"scans"},"object":{"key":"%FF"}}}]}',
            None,
        ),
        ('{"Records":[{"eventName":"ObjectCreated:Put"}]}', None),
        ('{"Type":"Notification","Message":"x"}', None),
        ("[" * 100_000, None),
        (" " * (1 << 21) + "{}", None),
    ],
)
def test_messages(body, found):
    """Removals and the test message name nothing; the rest is not of this bucket, or no notification."""
    assert keys_of(body, BUCKET) == found


def test_only_paths_below_the_prefix():
    """Keys that are no paths of the remote are left out."""
    keys = ["r/in/a", "r/in/../b", "r/in/c/", "r/other", "in/d", "r/in/\0", "r/in/e"]
    assert paths_of(keys, "r/", "in/") == ["in/a", "in/e"]


@pytest.mark.parametrize(
    ("url", "endpoint", "found"),
    [
        ("https://sqs.eu-west-1.amazonaws.com/1/q", "", ("https://sqs.eu-west-1.amazonaws.com", "eu-west-1")),
        ("https://eu-west-1.queue.amazonaws.com/1/q", "", ("https://eu-west-1.queue.amazonaws.com", "eu-west-1")),
        ("https://sqs.cn-north-1.amazonaws.com.cn/1/q", "", ("https://sqs.cn-north-1.amazonaws.com.cn", "cn-north-1")),
        ("https://queue.amazonaws.com/1/q", "", ("https://queue.amazonaws.com", "r")),
        (
            "https://vpce-0a-b1.sqs.us-gov-west-1.vpce.amazonaws.com/1/q",
            "",
            ("https://vpce-0a-b1.sqs.us-gov-west-1.vpce.amazonaws.com", "us-gov-west-1"),
        ),
        ("http://box:9000/1/q", "http://box:9000", ("http://box:9000", "r")),
        ("https://box/1/q", "https://box:443", ("https://box", "r")),
        ("http://box:9324/1/q", "http://box:9000", None),
        ("https://a1b2.execute-api.eu-west-1.amazonaws.com/1/q", "", None),
        ("https://s3.eu-west-1.amazonaws.com/1/q", "", None),
        ("https://evil.sqs.eu-west-1.amazonaws.com/1/q", "", None),
        ("https://lambda.queue.amazonaws.com/1/q", "", None),
        ("http://sqs.eu-west-1.amazonaws.com/1/q", "", None),
        ("https://sqs.eu-west-1.amazonaws.com:8443/1/q", "", None),
        ("https://amazonaws.com.evil.example/1/q", "", None),
        ("https://evil.example/1/q", "https://box", None),
        ("http://box/1/q", "https://box", None),
        ("https://sqs.eu-west-1.amazonaws.com", "", None),
        ("https://u:p@sqs.eu-west-1.amazonaws.com/1/q", "", None),
        ("https://sqs.eu-west-1.amazonaws.com/1/q?x", "", None),
        ("https://[/1/q", "", None),
        ("https://box:x/1/q", "https://box", None),
    ],
)
def test_where_a_queue_may_be(url, endpoint, found):
    """SQS's at AWS, or the server that has the bucket: requests that are signed with the remote's key go nowhere else."""
    if found is None:
        with pytest.raises(UsageError, match="queue"):
            Place.of(url, endpoint, "r")
    else:
        assert Place.of(url, endpoint, "r") == found


class Queue:
    """A queue at moto, and somebody who sends to it."""

    def __init__(self, moto: Served, name: str) -> None:
        self.sqs = sqs(moto)
        self.url = self.sqs.create_queue(QueueName=name, Attributes={"VisibilityTimeout": "0"})["QueueUrl"]
        self.arn = self.sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=["QueueArn"])["Attributes"][
            "QueueArn"
        ]

    def left(self) -> int:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self.sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=names)["Attributes"]
        return sum(map(int, found.values()))


@contextlib.asynccontextmanager
async def watching(link: Link, prefix: str, queue: str) -> AsyncIterator[Any]:
    """Hints as they come; each is noted when the next is asked for."""
    with anyio.fail_after(ANSWER_S):
        async with link.caller.open(Watch(prefix, queue)) as exchange:

            async def hints() -> AsyncIterator[Seen]:
                while True:
                    seen, _ = await exchange.receive(Seen)
                    yield seen
                    await exchange.send(Noted())

            yield aiter(hints())


async def test_a_queue_is_followed(moto: Served) -> None:
    """What the bucket tells of comes by its path, and leaves the queue once noted; what is none stays there."""
    queue, bucket = Queue(moto, "follow"), admin(moto)
    event = {"QueueArn": queue.arn, "Events": ["s3:ObjectCreated:*"]}
    bucket.put_bucket_notification_configuration(
        Bucket=BUCKET, NotificationConfiguration={"QueueConfigurations": [event]}
    )
    try:
        async with fetch_process(moto.config, moto.secret) as link, watching(link, "in/", queue.url) as hints:
            assert await anext(hints) == Seen()
            bucket.put_object(Bucket=BUCKET, Key="in/ä b+c/1.smp", Body=b"1")
            seen = await anext(hints)
            while not seen.paths:  # the test message
                seen = await anext(hints)
            assert seen.paths == ["in/ä b+c/1.smp"]
            queue.sqs.send_message(QueueUrl=queue.url, MessageBody="hello")
            seen = await anext(hints)
            while not seen.ignored:
                seen = await anext(hints)
            assert (seen.paths, seen.ignored) == ([], 1)
            assert queue.left() == 1
    finally:
        bucket.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration={})


async def test_what_was_not_noted_comes_again(moto: Served) -> None:
    """A process that ends before leaves the message in the queue."""
    queue = Queue(moto, "again")
    queue.sqs.send_message(QueueUrl=queue.url, MessageBody=notification("in/a"))
    for _ in range(2):
        async with fetch_process(moto.config, moto.secret) as link, watching(link, "in/", queue.url) as hints:
            assert await anext(hints) == Seen()
            assert await anext(hints) == Seen(["in/a"])
    assert queue.left() == 1


async def test_a_queue_that_is_not_there(moto: Served, go_sftp: Served) -> None:
    """Said so, and what cannot tell says that."""
    queue = Queue(moto, "there")
    for served, url, code in (
        (moto, queue.url + "-not", "remote_failed"),
        (moto, "", "bad_config"),
        (moto, "https://example.org/1/q", "bad_config"),
        (go_sftp, queue.url, "bad_config"),
    ):
        async with fetch_process(served.config, served.secret) as link:
            with pytest.raises(SmpError) as caught:
                async with watching(link, "", url) as hints:
                    await anext(hints)  # nothing is told before the queue has answered
            assert caught.value.code == code


def test_a_queue_that_is_watched_again_leaves_nothing() -> None:
    """No client and no connection of one that did not answer: it may be tried for weeks."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"

    async def watch() -> None:
        remote = S3Remote(S3Config("b", endpoint=endpoint), S3Secret("key", "secret"), 4, Deadlines())
        try:
            await remote._bucket._client()
            before = len(remote._bucket._stack._exit_callbacks)
            for _ in range(3):
                with pytest.raises(SmpError):
                    async for _seen in remote.watch("", f"{endpoint}/1/queue"):
                        pass
            assert len(remote._bucket._stack._exit_callbacks) == before
        finally:
            await remote.aclose()

    anyio.run(watch)  # a client reads its tables where it is made, which the process that has it may do


async def test_a_folder_tells(tmp_path) -> None:
    """Of what appears, not of what is not whole yet nor of what goes; from inside the walls."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    async with fetch_process(LocalConfig(str(tmp_path))) as link:
        assert set(link.walls.values()) == {"on"}
        async with watching(link, "in/", "") as hints:
            assert await anext(hints) == Seen()
            (tmp_path / "in" / "deep" / "a.smp").write_bytes(b"1")
            assert await anext(hints) == Seen()
        for prefix in ("none/", "../"):
            with pytest.raises(SmpError):
                async with watching(link, prefix, "") as hints:
                    await anext(hints)
