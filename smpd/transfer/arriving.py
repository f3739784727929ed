"""Plaintext objects of a ``standard`` remote: sealed for this box on arrival, before they touch a disk."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import anyio

from smp_proto.control import ObjectInfo
from smp_proto.errors import UsageError
from smp_proto.sealed.bundle import BundleInfo, BundleWriter
from smp_proto.sealed.entries import guess_media_type
from smpd.host.space import disk_errors
from smpd.opening.ranges import private_copies
from smpd.transfer.lanes import Lane
from smpd.transfer.pool import RemotePool
from smpd.transfer.source import Tally, naming, no_objects
from smpd.vault.remotes import is_prefix

OBJECTS_MAX = 500_000  # of one bundle; a server may list without end


class _Piece(NamedTuple):
    """A part of one object that fits a slot."""

    number: int
    info: ObjectInfo
    name: str
    offset: int
    length: int


async def find_objects(pool: RemotePool, path: str) -> list[ObjectInfo]:
    """The object at ``path``, or all below it when it ends in ``/`` (or is empty).

    Raises:
        NotFoundError: there are none.
        UsageError: ``bad_request``; there are more than one bundle may hold.
    """
    if not is_prefix(path):
        return [await pool.stat(path)]
    found: list[ObjectInfo] = []
    async with contextlib.aclosing(pool.list(path)) as batches:
        async for batch in batches:
            found += batch
            if len(found) > OBJECTS_MAX:
                message = f"below {pool.name}:{path} are more than {OBJECTS_MAX:,} objects"
                raise UsageError("bad_request", message, hint="take a part of them at a time")
    if not found:
        raise no_objects(pool.name, path)
    return sorted(found, key=lambda info: info.path)


async def seal_arriving(
    pool: RemotePool, path: str, objects: Sequence[ObjectInfo], writer: BundleWriter, tally: Tally
) -> BundleInfo:
    """Fetch plaintext objects, several pieces at once, and seal them as entries of one bundle, in order.

    Each is pinned by what it was when it was listed. Names are relative to ``path``.
    """
    turns: dict[int, anyio.Event] = {}

    def turn(index: int) -> anyio.Event:
        return turns.setdefault(index, anyio.Event())

    async def one(piece: _Piece, lane: Lane) -> None:
        try:
            if piece.length:
                asked = await pool.read(lane, piece.info.path, piece.info.pin, piece.offset, piece.length)
                tally.fetched(asked)
            await turn(piece.number).wait()
            await anyio.to_thread.run_sync(_seal, pool, lane, piece, writer)
            tally.advanced(piece.length)
            turn(piece.number + 1).set()
            del turns[piece.number]
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(pool.processes.wipe, lane, piece.length)
            pool.give(lane)

    turn(0).set()
    async with anyio.create_task_group() as group:
        for piece in _pieces(objects, path, pool.settings.slot_bytes):
            group.start_soon(one, piece, await pool.take())
    return await anyio.to_thread.run_sync(writer.finish)


def _pieces(objects: Sequence[ObjectInfo], path: str, slot_bytes: int) -> Iterator[_Piece]:
    folder = path[: path.rfind("/") + 1]
    index = 0
    for info in objects:
        name = info.path.removeprefix(folder)
        for offset in range(0, max(info.size, 1), slot_bytes):
            yield _Piece(index, info, name, offset, min(slot_bytes, info.size - offset))
            index += 1


def _seal(pool: RemotePool, lane: Lane, piece: _Piece, writer: BundleWriter) -> None:
    with disk_errors("the spool"):
        if not piece.length:
            _begin(pool, piece, writer, b"")
        else:
            for start, part in private_copies(pool.processes.ring(lane), lane.slot, piece.length):
                if piece.offset + start == 0:
                    _begin(pool, piece, writer, part)
                writer.write(part)
        if piece.offset + piece.length == piece.info.size:
            writer.end()


def _begin(pool: RemotePool, piece: _Piece, writer: BundleWriter, head: bytes | memoryview) -> None:
    try:
        writer.begin(piece.name, guess_media_type(piece.name, head))
    except UsageError as error:  # of very many objects one has to be found
        raise naming(error, f"{pool.name}:{piece.info.path}") from error
