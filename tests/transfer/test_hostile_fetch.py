"""What a fetch process says once a server has taken it over: it is not believed about what is not its own."""

import contextlib
from unittest.mock import AsyncMock, Mock

import anyio
import pytest

from smp_proto.control import SIZE_MAX, ObjectInfo
from smp_proto.errors import CODES, DaemonError, IntegrityError, RemoteError, ResourceError, SmpError, UsageError
from smpd.links import fetching
from smpd.transfer import arriving
from smpd.transfer.bounds import believed_of_fetch
from smpd.transfer.questions import Questions

OF_DATA = {code for code, known in CODES.items() if known.family is IntegrityError and code != "source_changed"}


@pytest.mark.parametrize("code", [*sorted(OF_DATA), "audit_unwritable", "forbidden", "key_locked", "x" * 5000])
def test_errors_that_are_not_its_to_give(code):
    """Above all it cannot have a job quarantined, or wait for ever as the audit log's own trouble would."""
    error = believed_of_fetch(SmpError.from_body(SmpError(code, "patient.dcm", retryable=True).body()))
    assert (type(error), error.code, error.retryable) == (RemoteError, "remote_failed", False)
    assert len(error.message) < 200


def test_errors_that_are_pass_on():
    """With their facts, shortened, and without what a terminal would obey."""
    details = {"retry_after": 5.0, "status": 503, "bare": True, "more": "x" * 9999, "": [1]}
    error = believed_of_fetch(
        RemoteError("remote_busy", "\x1b[2Jbusy" + "m" * 9999, hint="h\r\n" * 999, details=details)
    )
    assert (type(error), error.code, error.retryable) == (RemoteError, "remote_busy", True)
    assert error.message.startswith("?[2Jbusy")
    assert len(error.message) + len(error.hint) < 7000
    assert error.details == {"retry_after": 5.0, "status": 503, "bare": True}
    full = believed_of_fetch(ResourceError("disk_full", "m", hint="h"))
    assert (full.code, full.message, full.hint, full.retryable) == ("disk_full", "m", "h", True)


async def test_a_lie_over_the_link(hosting):
    """It is caught where an answer ends, whatever was asked."""
    async with hosting() as host, host.use() as worker:
        with pytest.raises(SmpError) as caught:
            await worker.caller.call({"op": "lie"}, int)
        assert caught.value.code == "remote_failed"


@pytest.mark.parametrize(
    "message",
    [
        *(ObjectInfo("p", SIZE_MAX + 1), ObjectInfo("p", -1)),
        *(ObjectInfo("p" * 20_000, 1), ObjectInfo("p", 1, "etag:1:" + "x" * 512)),
    ],
)
def test_sizes_and_paths_are_bounded(message):
    """Numbers that no database holds, and paths and pins of a megabyte, do not get past the link."""
    from smp_proto.channel import decode, encode

    for body, kind in ((message, ObjectInfo), (fetching.Listed([message]), fetching.Listed)):
        with pytest.raises(DaemonError):
            decode(encode(body), kind)
    with pytest.raises(DaemonError):
        decode(encode(fetching.Progress(SIZE_MAX + 1)), fetching.Progress)


async def test_a_batch_of_nothing_is_none():
    """Whoever takes a listing in may look at the last object of each batch."""
    found = ObjectInfo("a", 1, "pin")

    class Asked(Questions):
        def __init__(self):
            self.processes = Mock()
            self._limits = Mock(asks=AsyncMock())
            self.gate = Mock()

        @contextlib.asynccontextmanager
        async def _ask(self, *_arguments, **_options):
            said = [fetching.Listed([]), fetching.Listed([], 1.0), fetching.Listed([found])]
            ended = [*((each, []) for each in said), anyio.EndOfStream()]
            yield Mock(), Mock(receive=AsyncMock(side_effect=ended), send=AsyncMock())

    assert [batch async for batch in Asked().list("")] == [[found]]


async def test_a_listing_without_end_is_given_up(monkeypatch):
    """A bundle is put together in memory, so what is listed for it has an end."""
    monkeypatch.setattr(arriving, "OBJECTS_MAX", 100)
    listed = 0

    class Endless:
        name = "pacs"

        async def list(self, _path):
            nonlocal listed
            while True:
                await anyio.lowlevel.checkpoint()
                listed += 10
                yield [ObjectInfo(f"a/{listed}-{number}", 1) for number in range(10)]

    with pytest.raises(UsageError, match="more than 100 objects"):
        await arriving.find_objects(Endless(), "a/")
    assert listed <= 120
