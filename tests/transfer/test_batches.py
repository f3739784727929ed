"""Which objects of a prefix travel together; the listing is made up, and so is what a lane brings."""

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transfer.test_ranges import pools

from smp_proto.control import ObjectInfo
from smp_proto.errors import RemoteError, UsageError
from smpd.transfer.collection import BATCH_OBJECTS, Members
from smpd.transfer.members import Batch
from smpd.vault.remotes import PATH_MAX_BYTES

MIB = 1 << 20
SLOT = 8 * MIB


class _Pool:
    """Lists objects, and says of each group in turn how large it may be."""

    name, mode = "bucket", "zero-knowledge"
    settings = SimpleNamespace(slot_bytes=SLOT)

    def __init__(self, sizes: list[int], range_bytes: int) -> None:
        self.sizes = sizes
        self.sizing = SimpleNamespace(range_bytes=range_bytes)

    async def list(self, _path: str) -> AsyncIterator[list[ObjectInfo]]:
        for at in range(0, len(self.sizes), 100):
            yield [ObjectInfo(f"{at + n:06}", size, "p") for n, size in enumerate(self.sizes[at : at + 100])]


def groups_of(sizes: list[int], range_bytes: int) -> list[list[int]]:
    """The sizes, group by group."""
    box = cast("Any", SimpleNamespace(versions=None))
    job = cast("Any", SimpleNamespace(id="job", spec=None))
    members = Members(box, job, cast("Any", _Pool(sizes, range_bytes)), "", cast("Any", None))

    async def found() -> list[list[int]]:
        return [[info.size for info in group] async for group in members._groups()]

    return anyio.run(found)


SIZES = st.lists(
    st.one_of(st.integers(1, 4000), st.integers(1, MIB), st.integers(MIB, 3 * SLOT)), min_size=1, max_size=40
)


@given(SIZES, st.integers(1, 8))
def test_a_group_is_as_large_as_a_range(sizes: list[int], range_mib: int) -> None:
    """In order, none left out; more than that only where one object is; and never more than could be were there one more."""
    groups = groups_of(sizes, range_mib * MIB)
    assert [size for group in groups for size in group] == sizes
    for group, after in zip(groups, [*groups[1:], None], strict=True):
        assert group
        assert len(group) == 1 or sum(group) <= range_mib * MIB
        assert after is None or sum(group) + after[0] > range_mib * MIB


def test_a_group_has_so_many_objects() -> None:
    """However small they are."""
    assert [len(group) for group in groups_of([10] * (2 * BATCH_OBJECTS + 1), SLOT)] == [
        BATCH_OBJECTS,
        BATCH_OBJECTS,
        1,
    ]


async def test_nothing_came_and_there_is_no_ring(tmp_path: Path) -> None:
    """Where a remote goes down before the process of a batch's lane was ever there, the job is told just that."""

    async def audit(*_: object, **__: object) -> None:
        pass

    box = cast("Any", SimpleNamespace(versions=None, audit=audit, spool_dir=str(tmp_path)))
    job = cast("Any", SimpleNamespace(id="job", spec=None, owner="somebody"))
    meter = cast("Any", SimpleNamespace(fetched=lambda count: None))
    async with pools(tmp_path) as found:
        pool = await found.get("local")
        for _ in range(pool.settings.breaker.failures):
            pool.gate.note(RemoteError("remote_unreachable", "it does not answer"))
        members = Members(box, job, pool, "", meter)
        members.believed = cast("Any", [object()])
        async with pool.lane() as lane:
            with pytest.raises(RemoteError) as caught:
                await Batch(members, [ObjectInfo("a", 10, "stat:10:1")]).bring(lane, None)
        assert caught.value.details["held"] == "local"


@pytest.mark.parametrize("kept", [True, False])
async def test_what_is_listed_twice_is_brought_once(kept: bool) -> None:
    """Both would be written to the same file. What came and was kept may come again: the vault takes it once.

    A processor would be given it a second time, so there it does not.
    """
    infos = [ObjectInfo(name, 10, "p") for name in "abcd"]

    async def twice(_path: str) -> AsyncIterator[list[ObjectInfo]]:
        yield [*infos, infos[3]]
        yield [infos[0], ObjectInfo("a", 10, "another"), infos[2]]
        members.settled(infos[:2])
        yield infos[:3]

    box = cast("Any", SimpleNamespace(versions=None))
    pool = cast("Any", _Pool([], SLOT))
    pool.list = twice
    nothing, shelf = cast("Any", None), cast("Any", object() if kept else None)
    members = Members(box, cast("Any", SimpleNamespace(id="job", spec=None)), pool, "", nothing, shelf)
    found = [info async for group in members._groups() for info in group]
    again = [("a", "p"), ("b", "p")] if kept else []
    assert [(info.path, info.pin) for info in found] == [*((name, "p") for name in "abcd"), ("a", "another"), *again]


@pytest.mark.parametrize("shelved", [True, False])
async def test_a_name_that_is_too_long_to_be_asked_for(shelved: bool) -> None:
    """The object is left out of a get, and ends a run; what is said, and kept, of it is short. It is not fetched."""
    pool = _Pool([10] * 4, MIB)
    (found,) = [batch async for batch in pool.list("")]
    found[1] = ObjectInfo("\u20ac" * 16_000, 10, "p")
    found[2] = ObjectInfo("x" * PATH_MAX_BYTES, 10, "p")

    async def listed(_path: str) -> AsyncIterator[list[ObjectInfo]]:
        yield found

    pool.list = listed  # type: ignore[method-assign]
    job, shelf = cast("Any", SimpleNamespace(id="job", spec=None)), cast("Any", object() if shelved else None)
    box = cast("Any", SimpleNamespace(versions=None))
    members = Members(box, job, cast("Any", pool), "", cast("Any", None), shelf)
    groups = []
    with pytest.raises(UsageError, match=r"longer than 1024 bytes") as caught:
        groups += [group async for group in members._groups()]
        members.raise_refused()
    assert len(caught.value.message) < 300
    assert caught.value.message.startswith("bucket:\u20ac")
    assert groups == ([[found[0], found[2], found[3]]] if shelved else [])
