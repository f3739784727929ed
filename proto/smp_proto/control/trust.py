"""Whom the box believes, and the box's own key."""

import msgspec

from smp_proto.control.base import Request


class TrustAdd(Request, tag="trust-add"):
    """Believe a sender from now on. Reply: TrustView. ``key`` is a public key as text."""

    name: str
    key: str
    prefixes: list[str] = msgspec.field(default_factory=list)
    until: float = 0.0


class TrustList(Request, tag="trust-list"):
    """Reply: Trusted."""


class TrustView(msgspec.Struct):
    """A sender. ``prefixes`` are ``REMOTE:PREFIX``, empty for any; ``removed`` is set once it is a tombstone."""

    name: str
    key_id: str
    fingerprint: str
    added: float
    until: float = 0.0
    prefixes: list[str] = []
    removed: float = 0.0


class Trusted(msgspec.Struct):
    """The trust store, tombstones included."""

    senders: list[TrustView]


class TrustRemove(Request, tag="trust-remove"):
    """Stop believing a sender. Reply: TrustView."""

    name: str


class BoxKey(Request, tag="box-key"):
    """The public key of this box, to seal for it. Reply: PublicKey."""


class BoxRotate(Request, tag="box-rotate"):
    """Give this box a new key; the present one only opens from then on. Reply: PublicKey, the new one."""

    reason: str = ""


class PublicKey(msgspec.Struct):
    """A public key as text, with its short form; the fingerprints of the box's keys before it, newest first."""

    text: str
    key_id: str
    fingerprint: str
    retired: list[str] = []
