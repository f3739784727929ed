"""Listings without end: no more of one is under way than smpd has asked for; and how times in it are read."""

from collections.abc import AsyncGenerator

import pytest
from botocore.utils import parse_timestamp
from hypothesis import given
from hypothesis import strategies as st

from smp_proto.aio import encode
from smp_proto.control import SIZE_MAX, ObjectInfo
from smp_proto.errors import RemoteError, SmpError
from smpd.fetch.bucket import timestamp
from smpd.fetch.remote import BATCH_NAME_BYTES, LISTED_MAX_BYTES, is_listed
from smpd.fetch.service import _list
from smpd.links import fetching


class SlowTaker:
    """Stands for the link: takes batches, and answers one when it is waited for."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.most = self.answered = 0

    async def send(self, body: fetching.Listed) -> None:
        assert len(encode(body)) <= fetching.LISTED_BYTES
        self.batches.append(len(body.objects))
        self.most = max(self.most, len(self.batches) - self.answered)

    async def receive(self, kind: type) -> tuple[fetching.More, list[int]]:
        assert kind is fetching.More
        self.answered += 1
        return fetching.More(), []


class Endless:
    """Stands for a remote with many objects, whose names are so long."""

    def __init__(self, count: int, length: int = 0) -> None:
        self._count = count
        self._length = length

    async def walk(self, prefix: str, recursive: bool, after: str) -> AsyncGenerator[ObjectInfo, None]:
        for number in range(self._count):
            yield ObjectInfo(str(number).rjust(self._length, "x"), SIZE_MAX, "p" * 512, 1e9)


@pytest.mark.parametrize("batches", [0, 1, fetching.LISTED_AHEAD, 3 * fetching.LISTED_AHEAD])
@pytest.mark.parametrize("more", [0, 1])
async def test_a_listing_waits_for_who_takes_it(batches, more):
    """Every object is told, and never more than so many batches are on their way."""
    taker = SlowTaker()
    each = BATCH_NAME_BYTES // (512 + 8)  # names of eight, and a pin
    await _list(fetching.List("", True), Endless(batches * each + more, 8), taker)
    assert sum(taker.batches) == batches * each + more
    assert taker.most <= fetching.LISTED_AHEAD
    assert taker.answered == max(0, len(taker.batches) - fetching.LISTED_AHEAD)


@pytest.mark.parametrize("length", [0, 1, 50, 126, 1024, 4095, 16380, LISTED_MAX_BYTES])
async def test_names_of_any_length_fit_a_message(length):
    """Folders lie deeper than what may be asked for; a batch of such names is a shorter one."""
    taker = SlowTaker()
    await _list(fetching.List("", True), Endless(600, length), taker)
    assert sum(taker.batches) == 600


async def test_a_name_without_end_is_an_error():
    """It is a server's that means no good, and no fault of the link."""
    with pytest.raises(RemoteError, match="too long") as caught:
        await _list(fetching.List("", True), Endless(1, LISTED_MAX_BYTES + 1), SlowTaker())
    assert not caught.value.retryable


@given(st.datetimes(timezones=st.just(None)), st.sampled_from(["", ".0", ".12", ".123", ".123456"]))
def test_times_of_a_listing_are_what_botocore_reads(moment, fraction):
    """The short way gives what the long way does."""
    text = moment.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0") + fraction + "Z"
    assert timestamp(text) == parse_timestamp(text)


@pytest.mark.parametrize("text", ["Fri, 20 Nov 2026 12:00:00 GMT", "2026-11-20T12:00:00+02:00"])
def test_times_of_heads_are_what_botocore_reads(text):
    """The other forms that servers send mean the same."""
    assert timestamp(text) == parse_timestamp(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2026-13-20T12:00:00Z",
        "2026-11-20T25:00:00Z",
        "1" * 5000,
        "0001-01-01T00:00:00+23:00 J",
        "Fri, 20 Nov 99999 12:00:00 GMT",
        "Fri, 20 Nov 2026 12:00:00 +99999999999",
        "12:00 J",
    ],
)
def test_what_is_no_time_is_an_error(text):
    """Nonsense is a ValueError and nothing else, and no library warns of it in words of the server's."""
    with pytest.raises(ValueError, match="."):
        timestamp(text)


@pytest.mark.parametrize("name", ["", "a/b", "../a", "/a", "a\0", "\udcff"])
def test_a_server_that_lists_what_no_file_can_be_called(name: str) -> None:
    """R15: a name that leads into another folder, or that no message can carry, is refused and not passed over."""
    with pytest.raises(SmpError) as caught:
        is_listed(name, "in/")
    assert not caught.value.retryable
