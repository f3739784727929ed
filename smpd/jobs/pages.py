"""Reading a SQLite file without SQLite: what its write-ahead log is worth, and rows on pages that can still be read.

SQLite takes a damaged log for one that ends there, and loses without a word what was committed after it; and it gives
up a table at the first page above its rows that is damaged. Here each page is taken by itself. Source of all numbers:
https://www.sqlite.org/fileformat2.html. Nothing is written.
"""

import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

WAL_HEADER_BYTES, FRAME_HEADER_BYTES = 32, 24
_WAL_MAGIC = 0x377F0682  # and one more, for checksums of big-endian words
_HEADER_BYTES = 100
_TABLE_LEAF = 0x0D
_INT_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
_PAYLOAD_MAX = 1 << 27

Value = None | int | float | str | bytes


class Frame(NamedTuple):
    """A page in the log. ``good`` when its checksum follows from the one before it, as that one is written."""

    page: int
    commits: bool
    good: bool
    offset: int


class Wal(NamedTuple):
    """A log. ``damaged``: something committed lies behind what does not check out. ``torn``: its end does not."""

    page_size: int
    frames: list[Frame]
    damaged: bool
    torn: bool


class Row(NamedTuple):
    """A row of an ordinary table: its rowid and its columns, an integer primary key among them as None."""

    rowid: int
    values: tuple[Value, ...]


def read_wal(path: str) -> Wal:
    """Read the log at ``path``; one that is absent or empty has no frames."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        data = b""
    if len(data) < WAL_HEADER_BYTES + FRAME_HEADER_BYTES:
        return Wal(0, [], damaged=False, torn=False)
    magic, _, page_size, _, salt1, salt2, *stored = struct.unpack(">8I", data[:WAL_HEADER_BYTES])
    order = ">" if magic & 1 else "<"
    header_good = magic & ~1 == _WAL_MAGIC and _checksum(data[:24], (0, 0), order) == tuple(stored)
    if not header_good:  # its frames, if there are any, say themselves what it should
        page_size = _page_size_of(data)
        order, (salt1, salt2) = "<", struct.unpack(">2I", data[WAL_HEADER_BYTES + 8 : WAL_HEADER_BYTES + 16])
    frames: list[Frame] = []
    before: tuple[int, ...] | None = tuple(stored) if header_good else None
    size = FRAME_HEADER_BYTES + page_size
    for offset in range(WAL_HEADER_BYTES, len(data) - size + 1, size):
        page, commit, frame_salt1, frame_salt2, *sums = struct.unpack(">6I", data[offset : offset + FRAME_HEADER_BYTES])
        ours = (frame_salt1, frame_salt2) == (salt1, salt2)
        body = data[offset : offset + 8] + data[offset + FRAME_HEADER_BYTES : offset + size]
        good = before is not None and ours and _checksum(body, before, order) == tuple(sums)
        frames.append(Frame(page, commit != 0, good, offset + FRAME_HEADER_BYTES))
        before = tuple(sums)
        # Each round has both salts anew: where one of them is ours the other was changed.
        left = frame_salt1 != salt1 and frame_salt2 != salt2
        if left and not _follows(data, offset + size, size, (salt1, salt2)):
            frames.pop()  # what an earlier round through the file left
            break
    first = next((number for number, frame in enumerate(frames) if not frame.good), len(frames))
    later = any(frame.good and frame.commits for frame in frames[first + 1 :])
    broken_header = not header_good and bool(frames)
    return Wal(page_size, frames, damaged=later or broken_header, torn=first < len(frames))


def _follows(data: bytes, offset: int, size: int, salts: tuple[int, int]) -> bool:
    """Whether some later frame is of this round: then the one before is damaged, and no leftover."""
    return any(
        struct.unpack(">2I", data[at + 8 : at + 16]) == salts for at in range(offset, len(data) - size + 1, size)
    )


def _page_size_of(data: bytes) -> int:
    """The page size of a log whose header is damaged: the distance at which the salts come again."""
    salts = data[WAL_HEADER_BYTES + 8 : WAL_HEADER_BYTES + 16]
    for power in range(9, 17):
        at = WAL_HEADER_BYTES + FRAME_HEADER_BYTES + (1 << power) + 8
        if data[at : at + 8] == salts:
            return 1 << power
    return 4096


def _checksum(data: bytes, seed: tuple[int, ...], order: str) -> tuple[int, int]:
    first, second = seed
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for left, right in zip(words[::2], words[1::2], strict=True):
        first = (first + left + second) & 0xFFFFFFFF
        second = (second + right + first) & 0xFFFFFFFF
    return first, second


class Pages:
    """The pages of a database as far as they can be had: the file's, and over them those of its log that are good.

    Args:
        path: of the database; the log is beside it.
    """

    def __init__(self, path: str) -> None:
        wal = read_wal(path + "-wal")
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close()
        header = self._file.read(_HEADER_BYTES)
        stated = int.from_bytes(header[16:18], "big")
        page_size = {1: 65536}.get(stated, stated)
        if page_size < 512 or page_size & (page_size - 1):
            page_size = wal.page_size or 4096
        self.page_size = page_size
        self._usable = page_size - (header[20] if len(header) > 20 and header[20] <= page_size - 480 else 0)
        self._log: dict[int, bytes] = {}
        if wal.frames and wal.page_size == page_size:
            with open(path + "-wal", "rb") as log:
                for frame in wal.frames:
                    if frame.good:
                        log.seek(frame.offset)
                        self._log[frame.page] = log.read(page_size)
        in_file = os.fstat(self._file.fileno()).st_size // page_size
        self.count = max(in_file, *self._log, 0) if self._log else in_file

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def page(self, number: int) -> bytes:
        """A page, from 1; empty when there is none."""
        if number in self._log:
            return self._log[number]
        if number < 1:
            return b""
        self._file.seek((number - 1) * self.page_size)
        data = self._file.read(self.page_size)
        return data if len(data) == self.page_size else b""

    def rows(self) -> Iterator[Row]:
        """Every row on every leaf of an ordinary table that can be decoded."""
        for number in range(1, self.count + 1):
            page = self.page(number)
            start = _HEADER_BYTES if number == 1 else 0
            if len(page) != self.page_size or page[start] != _TABLE_LEAF:
                continue
            cells = int.from_bytes(page[start + 3 : start + 5], "big")
            for index in range(cells):
                at = start + 8 + 2 * index
                try:
                    yield self._cell(page, int.from_bytes(page[at : at + 2], "big"))
                except (ValueError, IndexError, struct.error, OverflowError):
                    continue

    def _cell(self, page: bytes, at: int) -> Row:
        length, at = _varint(page, at)
        rowid, at = _varint(page, at)
        if not 0 < length <= _PAYLOAD_MAX:
            raise ValueError("no length")
        local = _local(length, self._usable)
        payload = bytearray(page[at : at + local])
        if len(payload) != local:
            raise ValueError("a cell past its page")
        following = int.from_bytes(page[at + local : at + local + 4], "big") if local < length else 0
        while len(payload) < length:
            more = self.page(following)
            if not more:
                raise ValueError("an overflow page is missing")
            following = int.from_bytes(more[:4], "big")
            payload += more[4 : 4 + min(length - len(payload), self._usable - 4)]
        return Row(rowid - (1 << 64) if rowid >> 63 else rowid, tuple(_record(bytes(payload))))


def _local(length: int, usable: int) -> int:
    """How many bytes of a payload are on the leaf itself."""
    if length <= usable - 35:
        return length
    least = (usable - 12) * 32 // 255 - 23
    found = least + (length - least) % (usable - 4)
    return found if found <= usable - 35 else least


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for count in range(9):
        byte = data[at + count]
        if count == 8:
            return (value << 8) | byte, at + 9
        value = (value << 7) | (byte & 0x7F)
        if byte < 0x80:
            return value, at + count + 1
    raise ValueError("no varint")


def _record(payload: bytes) -> Iterator[Value]:
    end, at = _varint(payload, 0)
    kinds = []
    while at < end:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    at = end
    for kind in kinds:
        size = _INT_BYTES.get(kind, 8 if kind == 7 else max(0, (kind - 12) // 2))
        body = payload[at : at + size]
        if len(body) != size or kind in (10, 11):
            raise ValueError("a record is cut short")
        at += size
        yield _value(kind, body)


def _value(kind: int, body: bytes) -> Value:
    if kind == 0:
        return None
    if kind in _INT_BYTES:
        return int.from_bytes(body, "big", signed=True)
    if kind == 7:
        return float(struct.unpack(">d", body)[0])
    if kind in (8, 9):
        return kind - 8
    return body.decode(errors="replace") if kind % 2 else body
