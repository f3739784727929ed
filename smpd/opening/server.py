"""The handler of an opening process's link."""

import os
import traceback
from typing import Any, cast

import msgspec

from smp_proto.aio import Exchange, close_all, decode, encode
from smp_proto.errors import DaemonError, IntegrityError
from smp_proto.sealed.envelope import OpenedEnvelope
from smp_proto.sealed.filekey import take, wipe
from smp_proto.sealed.keys import DECRYPTION_BYTES, Identity, PublicIdentity
from smpd.links.ring import Ring
from smpd.opening.link import AnyRequest, Believe, Found, Keys, Map, Open, Opened, Refused, Request, Setup, Unmap, Walls
from smpd.opening.ranges import from_ring, open_whole
from smpd.opening.sandbox import enter
from smpd.walls.sandbox import Kernel

_REPLY_BYTES = 768 << 10  # so that a reply fits a frame

_REQUEST = cast("type[Request]", AnyRequest)  # a union is no class to the type checker


class Server:
    """Keys, senders and rings, and what is asked of them; :meth:`handle` fits :func:`smp_proto.serving.serve`.

    Nothing here gives way to the event loop: a process has one thing to do, and does one at a time.

    Args:
        kernel: what the walls may be made of.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._identities: list[Identity] = []
        self._senders: dict[bytes, PublicIdentity] = {}
        self._rings: dict[int, Ring] = {}
        self._asked = b""  # the key id of the sender that was looked up last

    async def handle(self, body: bytes, fds: list[int], exchange: Exchange) -> Any:
        """Answer one request."""
        try:
            request = decode(body, _REQUEST)
            if len(fds) != isinstance(request, Map):
                raise DaemonError("protocol", "a ring comes with one descriptor, and nothing else with any")
        except DaemonError:
            close_all(fds)
            raise
        match request:
            case Setup():
                return Walls(enter(request.sandbox, self._kernel))
            case Keys():
                return self._take(request)
            case Believe():
                for blob in request.senders:
                    sender = PublicIdentity.from_blob(blob)
                    self._senders[sender.key_id] = sender
            case Map():
                self._map(request, fds)
            case Unmap():
                self._unmap(request.number)
            case Open():
                return self._open(request)
        return None

    def close(self) -> None:
        """Wipe the keys and unmap the rings."""
        self._forget()
        for number in list(self._rings):
            self._unmap(number)

    @staticmethod
    def log(error: Exception) -> None:
        """Write an unexpected exception to the log: where, and its type, not its text, which may hold data."""
        frames = "".join(traceback.format_tb(error.__traceback__))
        os.write(2, f"opening: {type(error).__name__}\n{frames}".encode())

    def _take(self, request: Keys) -> None:
        self._forget()
        secrets = take(request.secrets)
        try:
            with memoryview(secrets) as view:
                for at, blob in enumerate(request.publics):
                    key = view[at * DECRYPTION_BYTES : (at + 1) * DECRYPTION_BYTES]
                    self._identities.append(Identity.from_decryption_key(key, PublicIdentity.from_blob(blob)))
                    key.release()
        finally:
            wipe(secrets)

    def _forget(self) -> None:
        for identity in self._identities:
            identity.wipe()
        self._identities.clear()

    def _map(self, request: Map, fds: list[int]) -> None:
        self._unmap(request.number)
        try:
            self._rings[request.number] = Ring(fds[0], request.slots, request.slot_bytes)
        except BaseException:
            close_all(fds)
            raise

    def _unmap(self, number: int) -> None:
        if ring := self._rings.pop(number, None):
            ring.close()

    def _trust(self, key_id: bytes) -> PublicIdentity | None:
        self._asked = key_id
        return self._senders.get(key_id)

    def _open(self, request: Open) -> msgspec.Raw:
        """The reply, encoded."""
        try:
            cipher = self._rings[request.cipher]
            plain = None if request.plain is None else self._rings[request.plain].slot(request.plain_slot)
        except LookupError:
            raise DaemonError("protocol", "a ring or a slot was named that is not there") from None
        found: list[Found | Refused] = []
        filled = 0
        try:
            for at, size in request.objects:
                into = None if plain is None else plain[filled:]
                try:
                    envelope = self._open_one(cipher, request.cipher_slot, at, size, into)
                except IntegrityError as error:
                    found.append(Refused(error.body(), self._asked))
                else:
                    found.append(Found(envelope.signed, envelope.entries))
                    filled += envelope.signed.plain_bytes if plain is not None else 0
                finally:
                    if into is not None:
                        into.release()
        finally:
            if plain is not None:
                plain.release()
        opened = encode(Opened(found))
        return msgspec.Raw(opened if len(opened) <= _REPLY_BYTES else encode(Opened([], too_long=True)))

    def _open_one(self, cipher: Ring, slot: int, at: int, size: int, into: memoryview | None) -> OpenedEnvelope:
        self._asked = b""
        read = from_ring(cipher, slot, at)
        return open_whole(read, size, self._identities, self._trust, into, None)
