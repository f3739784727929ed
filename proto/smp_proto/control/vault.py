"""The vault: sealed objects on the box, their entries, and opening them."""

from typing import Any

import msgspec

from smp_proto.control.base import Request


class VaultList(Request, tag="vault-list"):
    """What is kept, newest first, at most :data:`VAULT_PAGE` items. Reply: Vault.

    ``job``: only what this job brought. ``before``: go on after the item of this id; if that is gone by now, ask anew.
    """

    job: str = ""
    before: str = ""


VAULT_PAGE = 1000  # items, which fit one frame


class VaultItem(msgspec.Struct):
    """A sealed object kept on this box. Its names are inside and sealed."""

    id: str
    object_id: str
    size: int
    entries: int
    sender: str
    created: float
    job: str


class Vault(msgspec.Struct):
    """All that the vault holds."""

    items: list[VaultItem]


class VaultEntries(Request, tag="vault-entries"):
    """The names inside one item, which opens its index. DATA: Entries. Reply: Entries. Audited.

    The reply has the last entries; those that do not fit come before it, as DATA.
    """

    id: str


class EntryView(msgspec.Struct):
    """One entry of a bundle."""

    name: str
    size: int
    sha256: str
    media_type: str
    attributes: dict[str, Any] = {}


class Entries(msgspec.Struct):
    """The entries of one bundle, or the next of them."""

    entries: list[EntryView]


class VaultOpen(Request, tag="vault-open"):
    """Open an item in the clear into files of the caller. Audited before the first byte. Reply: Entries.

    DATA messages OpenInto from the client bring one descriptor, open for writing, for each entry wanted.
    The whole object is verified before the reply; the caller keeps its files only then. Of what was opened the
    reply has the last entries, and those that do not fit come before it, as DATA messages Entries.
    """

    id: str


class OpenInto(msgspec.Struct):
    """Where one entry goes: DATA from the client, with one descriptor."""

    name: str
    last: bool = False


class VaultRemove(Request, tag="vault-remove"):
    """Delete an item. Reply: None. Audited."""

    id: str
