"""The end of an object in one request, and many objects in one message."""

from pathlib import Path

import pytest
from fetch_link import Link, fetch_in_process, fetch_process
from scripted_http import DATA, ETAG, Asked, Peer, Script, answer, refusal, scripted
from servers import Served

from smp_proto.control import LocalConfig, S3Config, S3Secret
from smp_proto.errors import SmpError
from smpd.links import fetching

SECRET = S3Secret("key", "secret")
PIN = f"etag:{len(DATA)}:{ETAG}"


@pytest.fixture(params=["rclone", "moto"])
def server(request: pytest.FixtureRequest) -> Served:
    """Both S3 servers."""
    found: Served = request.getfixturevalue(request.param)
    return found


async def check_tails(link: Link) -> None:
    data = bytes(range(250)) * 10
    written = await link.write("tail/large", data)
    for length in (1, 100, 2499, 2500, 2501, 1 << 20):
        assert await link.tail("tail/large", length) == (written, data[-length:])
    assert await link.tail("tail/large", 0) == (written, b"")
    empty = await link.write("tail/empty", b"")
    assert await link.tail("tail/empty", 100) == (empty, b"")
    with pytest.raises(SmpError) as caught:
        await link.tail("tail/none", 100)
    assert caught.value.code == "no_such_object"


async def test_tails_of_buckets(server: Served) -> None:
    """The end, all of a smaller object, an empty one and a missing one; what is told is what stat tells."""
    async with fetch_process(server.config, server.secret) as link:
        await check_tails(link)


async def test_tails_of_folders(tmp_path: Path) -> None:
    """A folder answers the same."""
    async with fetch_process(LocalConfig(str(tmp_path))) as link:
        await check_tails(link)


def tells(*, head_only: list[str], **change: object) -> Script:
    """Answers HEAD and ranges rightly, and suffix ranges with these changes; notes what was asked."""

    async def script(peer: Peer, asked: Asked) -> bool:
        suffix = "bytes=-" in asked.head
        head_only.append("suffix" if suffix else asked.method)
        if asked.method == "HEAD":
            await peer.send(answer(asked, "200 OK", where=None, length=len(DATA)))
        elif suffix:
            whole = Asked(0, len(DATA) - 1, 0) if change.pop("whole", False) else asked
            await peer.send(answer(whole, **change) + whole.body)  # type: ignore[arg-type]
        else:
            await peer.send(answer(asked) + asked.body)
        return True

    return script


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ({}, ["suffix"]),
        ({"status": "200 OK"}, ["suffix"]),  # as rclone answers
        ({"whole": True, "status": "200 OK", "where": None}, ["suffix", "HEAD", "GET"]),  # does not know ranges
        ({"whole": True, "where": f"bytes 0-{len(DATA) - 1}/{len(DATA)}"}, ["suffix", "HEAD", "GET"]),
        ({"where": f"bytes 0-99/{len(DATA)}"}, ["suffix", "HEAD", "GET"]),
        ({"where": "bytes 5-104/*"}, ["suffix", "HEAD", "GET"]),
        ({"length": 99}, ["suffix", "HEAD", "GET"]),
        ({"length": 101}, ["suffix", "HEAD", "GET"]),
    ],
)
async def test_what_is_no_tail_is_asked_for_plainly(change: dict[str, object], asked: list[str]) -> None:
    """An answer that is not the end of the object never reaches the slot; stat and a plain range do instead."""
    seen: list[str] = []
    async with scripted({"x": tells(head_only=seen, **change)}) as endpoint:
        config = S3Config("b", endpoint=endpoint, addressing="path")
        async with fetch_in_process(config, SECRET) as link:
            info, got = await link.tail("x", 100)
            assert (info.pin, info.size, got) == (PIN, len(DATA), DATA[-100:])
    assert seen == asked


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (refusal("404 Not Found", "NoSuchKey"), "no_such_object"),
        (refusal("403 Forbidden", "AccessDenied"), "remote_forbidden"),
        (refusal("503 Slow Down", "SlowDown"), "remote_busy"),
        (tells(head_only=[], etag=None), "remote_failed"),
        (tells(head_only=[], etag='""'), "remote_failed"),
        (tells(head_only=[], etag='"a b"'), "remote_failed"),
    ],
)
async def test_a_refused_tail_is_its_error(script: Script, code: str) -> None:
    """What the server refuses is not asked for twice, and an object without an ETag has no pin."""
    async with scripted({"x": script}) as endpoint:
        config = S3Config("b", endpoint=endpoint, addressing="path")
        async with fetch_in_process(config, SECRET) as link:
            with pytest.raises(SmpError) as caught:
                await link.tail("x", 100)
    assert caught.value.code == code


async def test_many_objects_in_one_message(server: Served) -> None:
    """Small objects lie beside one another in the slot; one that is missing, changed or refused harms no other."""
    async with fetch_process(server.config, server.secret, connections=3) as link:
        await check_many(link)


async def test_many_files_in_one_message(tmp_path: Path) -> None:
    """A folder answers the same."""
    async with fetch_process(LocalConfig(str(tmp_path)), connections=3) as link:
        await check_many(link)


async def check_many(link: Link) -> None:
    data = [bytes([number]) * (number * 37) for number in range(12)]
    wanted, at = [], 0
    for number, body in enumerate(data):
        info = await link.write(f"many/{number}", body)
        wanted.append(fetching.Whole(info.path, info.pin, info.size, at))
        at += len(body)
    assert await link.read_many(wanted) == (data, {})
    await link.write("many/5", b"x" * len(data[5]) + b"y")
    await link.delete("many/7")
    wanted[9].at = 1 << 20
    wanted[11].path = "../11"
    got, codes = await link.read_many(wanted)
    assert codes == {5: "source_changed", 7: "no_such_object", 9: "bad_request", 11: "bad_name"}
    assert got == [None if number in codes else body for number, body in enumerate(data)]
    assert await link.read_many([]) == ([], {})
    for number in set(range(12)) - {7}:
        await link.delete(f"many/{number}")
