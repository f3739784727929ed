"""A signing key, a way to open the log of a directory with fixed keys, and what the database says of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nacl.signing import SigningKey

from smp_proto.audit.note import VerifierKey
from smpd.audit import AuditLog, opening
from smpd.jobs.database import Database
from smpd.jobs.seal import StateSeal
from smpd.vault.checkpoint import LastCheckpoint

SIGNER = SigningKey(bytes(range(32)))
KEY = VerifierKey("audit.example/box1", bytes(SIGNER.verify_key))


def sign(text: bytes) -> bytes:
    return SIGNER.sign(text).signature


@pytest.fixture(params=["short", "long"])
def any_length(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each log is verified whole when it is opened, or else from its last checkpoint on."""
    if request.param == "long":
        monkeypatch.setattr(opening, "WHOLE_RECORDS", 0)


@pytest.fixture
def open_log(tmp_path: Path) -> Callable[..., AuditLog]:
    def opened(directory: str | Path = tmp_path / "audit", **changes: Any) -> AuditLog:
        settings: dict[str, Any] = {
            "sign": sign,
            "key": KEY,
            "pseudonym_key": bytearray(b"p" * 32),
            "detail_key": bytearray(b"d" * 32),
        }
        return AuditLog(str(directory), **(settings | changes))

    return opened


@pytest.fixture
def last(db: Database, seal: StateSeal) -> LastCheckpoint:
    return LastCheckpoint(db, seal)


@pytest.fixture
def signer() -> Callable[[bytes], bytes]:
    return sign


@pytest.fixture
def key() -> VerifierKey:
    return KEY
