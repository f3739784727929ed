"""What records say of objects: pseudonyms in place of names, and details, sealed under a key of each one's own."""

import os
import sqlite3
from base64 import b64encode
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from smp_proto.audit.record import AuditRecord
from smp_proto.errors import UsageError
from smp_proto.memory import wipe

from .details import DETAILS_NAME, DetailKeys
from .files import unwritable


class Subjects:
    """The subjects of the log in one directory.

    Args:
        directory: of the log.
        pseudonym_key: HMAC key, 32 bytes; wiped at once.
        detail_key: seals the data keys of details, 32 bytes; taken over, and wiped when closed.

    Raises:
        OSError, sqlite3.Error: the data keys cannot be opened.
        AuditError: ``audit_unwritable`` from each method that says so.
    """

    def __init__(self, directory: str, pseudonym_key: bytearray, detail_key: bytearray) -> None:
        self._directory = directory
        self._mac: HMAC | None = HMAC(pseudonym_key, SHA256())
        wipe(pseudonym_key)
        self._detail_key = detail_key
        self._details = DetailKeys(os.path.join(directory, DETAILS_NAME), detail_key)

    def pseudonym(self, name: str) -> str:
        """What stands for an object's name: HMAC-SHA-256 in hex.

        Raises:
            AuditError: ``audit_unwritable``, when they are closed.
        """
        if self._mac is None:
            raise unwritable(self._directory, "it is closed")
        mac = self._mac.copy()  # unlike hmac.digest() it keeps the interpreter lock, which is dear to get back
        mac.update(name.encode("utf-8", "surrogateescape"))
        return mac.finalize().hex()

    def sealed(self, pseudonym: str, detail: dict[str, Any]) -> str:
        """A detail as a record has it, under the data key of its subject.

        Raises:
            UsageError: ``bad_request``; there is no subject, or what is to be sealed is no JSON.
            AuditError: ``audit_unwritable``.
        """
        try:
            if not pseudonym:
                raise ValueError("it has no subject")
            return b64encode(self._details.seal(pseudonym, detail)).decode()
        except (TypeError, ValueError) as exc:
            raise UsageError(
                "bad_request",
                f"the detail of an audit record cannot be written: {exc}",
                hint="name the subject it is about, and give JSON values",
            ) from exc
        except (sqlite3.Error, InvalidTag) as exc:
            reason = f"{DETAILS_NAME}: {str(exc) or 'a data key does not open'}"
            raise unwritable(self._directory, reason) from exc

    def shred(self, name: str) -> None:
        """Destroy an object's data key. Raises AuditError: ``audit_unwritable``."""
        try:
            self._details.destroy(self.pseudonym(name))
        except sqlite3.Error as exc:
            raise unwritable(self._directory, f"the detail keys: {exc}") from exc

    def detail(self, record: AuditRecord) -> dict[str, Any] | None:
        """As :meth:`DetailKeys.of`."""
        return self._details.of(record)

    def close(self) -> None:
        """Close the data keys, and wipe what there is of keys."""
        self._details.close()
        self._mac = None
        wipe(self._detail_key)
