"""A whole object, streaming: entries in, sealed bytes out, and back, in constant memory.

Both sides work over callables and open nothing themselves. A call runs where it is made and keeps a
processor busy; in an event loop, make it in a thread. Large pieces that are written keep a second one busy.
"""

import contextlib
import hashlib
import mmap
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Self

import msgspec
from blake3 import blake3

from smp_proto.errors import IntegrityError, StateError, UsageError
from smp_proto.sealed.entries import VALUES_MAX, Entry, NameSet, Scalar, count_values, pack_entries
from smp_proto.sealed.envelope import OpenedEnvelope, Signed, Trust, open_envelope, seal_envelope
from smp_proto.sealed.filekey import FileKey, wipe
from smp_proto.sealed.keys import Identity, PublicIdentity
from smp_proto.sealed.layout import (
    ENVELOPE_MAX_BYTES,
    HEADER_BYTES,
    SEGMENT_BYTES,
    TAG_BYTES,
    TRAILER_BYTES,
    Layout,
    Trailer,
)
from smp_proto.sealed.payload import Buffer, PayloadSealer, leaf

_INDEX_MAX_BYTES = ENVELOPE_MAX_BYTES - (2 << 20)  # the rest is for the recipients
_SIZE_BYTES = 8  # an entry's size is not known when it begins
_ASIDE_BYTES = 256 << 10  # from here on a piece is worth the other thread's waking


class BundleInfo(NamedTuple):
    """What was written."""

    object_id: bytes
    object_bytes: int
    payload_bytes: int
    plain_bytes: int
    entries: tuple[Entry, ...]
    content_digest: bytes


class BundleWriter:
    """Seals entries one after the other: ``begin``, ``write`` any number of times, ``end``; then ``finish``.

    Args:
        write: takes the next bytes of the object; the view is reused as soon as it returns.
        sender: signs; may be set until :meth:`finish`, and is let go of by it.
        recipients: who can open it; the sender is no recipient unless named. May be set until :meth:`finish`.
        created: seconds since 1970, now by default.

    After any error, abort it. What was written until then is no object: it has no envelope.
    """

    def __init__(
        self,
        write: Callable[[memoryview], object],
        *,
        sender: Identity | None,
        recipients: Sequence[PublicIdentity],
        created: int | None = None,
    ) -> None:
        self._write, self.sender, self.recipients = write, sender, recipients
        self._created = int(time.time()) if created is None else created
        self._object_id = os.urandom(16)
        self._file_key = FileKey.generate()
        subkey = self._file_key.payload_key()
        self._sealer = PayloadSealer(subkey, self._object_id)
        wipe(subkey)
        # Mapped and not a bytearray: what a small bundle does not use is never touched.
        self._plain, self._sealed = mmap.mmap(-1, SEGMENT_BYTES), mmap.mmap(-1, SEGMENT_BYTES)
        self._filled = self._used = self._segment = self._plain_bytes = self._index_bytes = self._values = 0
        self._leaves = blake3()
        self._entries: list[Entry] = []
        self._names = NameSet()
        self._entry: Entry | None = None
        self._sha256 = hashlib.sha256()
        self._hasher: ThreadPoolExecutor | None = None
        self._open = True

    def begin(
        self, name: str, media_type: str = "", attributes: Mapping[str, Scalar | list[Scalar]] | None = None
    ) -> None:
        """Start an entry.

        Raises:
            UsageError: ``bad_name``; not allowed, or it clashes with an earlier one. ``bad_request``; an
                attribute cannot be stored, or the index grew too large.
            StateError: ``wrong_state``; another entry is not ended, or the writer is done.
        """
        self._must(self._open and self._entry is None)
        try:
            self._names.add(name)
        except ValueError as error:
            raise UsageError("bad_name", f"an entry cannot be sealed: {error}", hint="rename it") from None
        entry = Entry(name, self._plain_bytes, 0, bytes(32), media_type, dict(attributes or {}))
        self._index_bytes += len(pack_entries([entry])) + _SIZE_BYTES
        if self._index_bytes > _INDEX_MAX_BYTES:
            raise UsageError("bad_request", "too many entries for one object", hint="split it in several")
        self._values += count_values(entry.attributes)
        if self._values > VALUES_MAX:
            message = f"the attributes of one object have at most {VALUES_MAX} values"
            raise UsageError("bad_request", message, hint="split it in several")
        self._entry = entry
        self._sha256 = hashlib.sha256()

    @property
    def room(self) -> int:
        """How many bytes the next call of :meth:`write` may bring without anything being sealed and written."""
        return self._capacity() - self._filled

    def write(self, data: Buffer) -> None:
        """Add bytes to the entry. They are read more than once, and not kept: nobody may change them meanwhile."""
        self._must(self._open and self._entry is not None)
        with memoryview(data) as view, view.cast("B") as rest, self._hashing(rest):
            self._plain_bytes += len(rest)
            done = 0
            while done < len(rest):
                room = self._capacity() - self._filled
                if not room:
                    self._flush(last=False)
                    continue
                part = rest[done : done + room]
                if len(part) == room and not self._filled and done + room < len(rest):
                    self._seal(part, last=False)  # a whole segment that is not the last needs no copy
                else:
                    # By a view: a bytearray's own slice is filled from a copy, which is freed as it is.
                    with memoryview(self._plain) as plain:
                        plain[self._filled : self._filled + len(part)] = part
                    self._filled += len(part)
                done += len(part)

    @contextlib.contextmanager
    def _hashing(self, data: memoryview) -> Iterator[None]:
        """Hash for the index while the block seals: SHA-256 takes as long as all else together."""
        if len(data) < _ASIDE_BYTES:
            self._sha256.update(data)
            yield
            return
        if self._hasher is None:
            self._hasher = ThreadPoolExecutor(1, "smp-sha256")
        hashed = self._hasher.submit(self._sha256.update, data)
        try:
            yield
        finally:
            try:
                hashed.result()
            except BaseException:  # a signal: the views cannot be let go of before the other thread is done with them
                hashed.result()
                raise

    def end(self) -> Entry:
        """Finish the entry."""
        self._must(self._open and self._entry is not None)
        assert self._entry is not None
        size = self._plain_bytes - self._entry.offset
        entry = msgspec.structs.replace(self._entry, size=size, sha256=self._sha256.digest())
        self._entries.append(entry)
        self._entry = None
        return entry

    def finish(self) -> BundleInfo:
        """Write the last segment, the envelope and the trailer.

        Raises:
            UsageError: ``bad_request``; there is no entry, no recipient or too many of them.
        """
        self._must(self._open and self._entry is None)
        sender = self.sender
        if sender is None:
            raise StateError("wrong_state", "nobody was named who signs this bundle")
        try:
            self._flush(last=True)
            layout, digest = Layout(self._plain_bytes), self._leaves.digest()
            envelope = seal_envelope(
                file_key=self._file_key,
                object_id=self._object_id,
                header=self._sealer.header,
                layout=layout,
                leaves_digest=digest,
                entries=self._entries,
                sender=sender,
                recipients=self.recipients,
                created=self._created,
            )
            trailer = Trailer(layout.payload_bytes, len(envelope))
            self._write(memoryview(envelope))
            self._write(memoryview(trailer.pack()))
        finally:
            self.abort()
        entries = tuple(self._entries)
        sizes = (trailer.object_bytes, layout.payload_bytes, layout.plain_bytes)
        return BundleInfo(self._object_id, *sizes, entries, digest)

    def abort(self) -> None:
        """Wipe the key and the buffers; harmless when done already."""
        self._open = False
        self.sender = None
        self._file_key.wipe()
        self._sealer.wipe()
        if self._hasher is not None:
            self._hasher.shutdown(wait=False)  # it has nothing to do any more; this may be called in an event loop
            self._hasher = None
        self._sha256 = hashlib.sha256()  # the other one holds the last bytes of an entry
        used = max(self._used, self._filled)  # the rest was never touched, and touching it is what takes long
        self._plain[:used] = bytes(used)

    def _capacity(self) -> int:
        return SEGMENT_BYTES - TAG_BYTES - (0 if self._segment else HEADER_BYTES)

    def _flush(self, *, last: bool) -> None:
        """Seal what was put together."""
        with memoryview(self._plain) as plain:
            self._used = max(self._used, self._filled)
            self._seal(plain[: self._filled], last=last)
        self._filled = 0

    def _seal(self, plain: memoryview, *, last: bool) -> None:
        """Seal the next segment."""
        try:
            with memoryview(self._sealed) as out:
                start = 0 if self._segment else HEADER_BYTES
                out[:start] = self._sealer.header[:start]
                size = self._sealer.seal_segment(self._segment, plain, out[start:], last=last)
                self._leaves.update(leaf(out[: start + size]))
                self._write(out[: start + size])
        except BaseException:
            self.abort()
            raise
        self._segment += 1

    @staticmethod
    def _must(condition: bool) -> None:
        if not condition:
            raise StateError("wrong_state", "a bundle is written as begin, write, end, and then finish")


class BundleReader:
    """Reads one object; the trailer and the envelope are read and checked at once.

    Args:
        read_into: fills a view with the bytes at an offset of the object, all of them or raises.
        object_bytes: length of the object.
        identities: ours.
        trust: gives a sender by key id; see :func:`~smp_proto.sealed.envelope.open_envelope`.

    Raises:
        IntegrityError: as ``Trailer.parse`` and ``open_envelope``.
    """

    def __init__(
        self,
        read_into: Callable[[int, memoryview], None],
        object_bytes: int,
        *,
        identities: Sequence[Identity],
        trust: Trust,
    ) -> None:
        self._read_into = read_into
        tail = bytearray(min(TRAILER_BYTES, object_bytes))
        read_into(object_bytes - len(tail), memoryview(tail))
        trailer = Trailer.parse(tail, object_bytes)
        data = bytearray(trailer.envelope_bytes)
        read_into(trailer.payload_bytes, memoryview(data))
        self._opened: OpenedEnvelope = open_envelope(bytes(data), trailer, identities, trust)
        self._payload = self._opened.payload()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What is in it, in order."""
        return self._opened.entries

    @property
    def sender(self) -> PublicIdentity:
        """Who signed it."""
        return self._opened.sender

    @property
    def signed(self) -> Signed:
        """What was signed."""
        return self._opened.signed

    def extract(
        self,
        sink: Callable[[Entry, int, memoryview], object],
        *,
        entries: Collection[str] | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        """Stream the whole object once, in order, checking every tag and digest.

        Only when this returns is the object known to be complete: keep back what the sink got until then.

        Args:
            sink: gets an entry, an offset in it, and bytes of it; the view is reused as soon as it returns.
                An entry of 0 bytes comes once, with an empty view.
            entries: names of those the sink gets, all by default. The others are checked as well.
            progress: gets the number of payload bytes checked so far.

        Raises:
            IntegrityError: ``corrupt``; the sink has got no byte of a segment whose tag does not match.
            UsageError: ``bad_request``; no entry has one of the names.
        """
        wanted = {each.name for each in self.entries} if entries is None else set(entries)
        if not wanted <= {each.name for each in self.entries}:
            raise UsageError("bad_request", "the object has no entry of such a name")
        layout, leaves = self._opened.layout, blake3()
        split = _Splitter(self.entries, sink, wanted)
        size = min(SEGMENT_BYTES, layout.payload_bytes)
        sealed, plain = bytearray(size), bytearray(size)
        try:
            for k in range(layout.segments):
                base, end = layout.leaf_span(k)
                with memoryview(sealed)[: end - base] as view, memoryview(plain) as out:
                    self._read_into(base, view)
                    self._check_header(k, view)
                    leaves.update(leaf(view))
                    size = self._payload.open_segment(k, view[layout.segment_span(k)[0] - base :], out)
                    split.feed(out[:size].toreadonly())
                if progress:
                    progress(end)
        finally:
            wipe(plain)
        if leaves.digest() != self.signed.content_digest:
            raise IntegrityError("corrupt", "the content is not what the sender signed")
        split.finish()

    def verify(self) -> None:
        """Check everything and keep nothing.

        Raises:
            IntegrityError: ``corrupt``.
        """
        self.extract(lambda entry, offset, data: None, entries=())

    def close(self) -> None:
        """Wipe the keys."""
        self._opened.file_key.wipe()
        self._payload.wipe()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _check_header(self, k: int, view: memoryview) -> None:
        if k == 0 and view[:HEADER_BYTES] != self.signed.header:
            raise IntegrityError("corrupt", "the payload header is not the one the sender signed")


class _Splitter:
    """Cuts a stream of plaintext at the borders of its entries and checks each one's SHA-256."""

    def __init__(
        self,
        entries: Sequence[Entry],
        sink: Callable[[Entry, int, memoryview], object],
        wanted: Collection[str],
    ) -> None:
        self._entries, self._sink, self._wanted = iter(entries), sink, wanted
        self._entry: Entry | None = next(self._entries, None)
        self._done = 0
        self._sha256 = hashlib.sha256()

    def feed(self, data: memoryview) -> None:
        """Take the next bytes."""
        while self._entry is not None:
            part = data[: self._entry.size - self._done]
            if not part and self._entry.size:
                return
            self._sha256.update(part)
            if self._entry.name in self._wanted:
                self._sink(self._entry, self._done, part)
            self._done += len(part)
            data = data[len(part) :]
            if self._done == self._entry.size:
                self._next()

    def _next(self) -> None:
        assert self._entry is not None
        if self._sha256.digest() != self._entry.sha256:
            raise IntegrityError("corrupt", "an entry does not have the SHA-256 that the index gives")
        self._entry, self._done = next(self._entries, None), 0
        self._sha256 = hashlib.sha256()

    def finish(self) -> None:
        """Raise ``corrupt`` unless every entry came whole."""
        if self._entry is not None:
            raise IntegrityError("corrupt", "the content ends before its entries do")
