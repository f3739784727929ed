"""Older states are taken on, newer ones refused untouched; what another version says more is ignored."""

import hashlib
import inspect
import tarfile
from collections import Counter
from pathlib import Path

import anyio
import msgspec
import pytest
from box import Box
from scene import client
from whole import configured, whole

from smp_proto import control as c
from smp_proto.aio import decode, encode
from smp_proto.errors import IntegrityError, KeyFileError, SmpError
from smpd.host.formats import FORMATS, NAME
from smpd.jobs.database import MIGRATIONS
from smpd.state import open_state


def version(archive: Path) -> int:
    """Of the database in it."""
    return int(archive.name.partition(".")[0].removeprefix("state-"))


FIXTURES = Path(__file__).parents[1] / "fixtures"
PAST = sorted(FIXTURES.glob("state-*.tar.xz"), key=version)
CONTENT = b"kept by an older SMP\n"


def unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="fully_trusted")
    folder.chmod(0o700)
    return folder / "state"


@pytest.mark.parametrize("archive", PAST, ids=lambda path: path.name.partition(".")[0])
def test_an_older_state_is_taken_on(archive: Path, tmp_path: Path) -> None:
    """Jobs, vault, remotes, senders and the audit log of a daemon that was killed are all there, and so after a restart."""
    machine = Box(tmp_path, {"compute": {"processors": []}})
    machine.state = unpack(archive, tmp_path)
    quarantined, synced = version(archive) >= 3, version(archive) >= 6
    try:
        for _ in range(2):
            machine.start()
            with client(machine) as caller:
                states = Counter(job.state for job in caller.jobs())
                again = states["queued"] + states["running"] + states["waiting"]  # it is being tried again
                known = (states["done"], states["failed"], states["paused"], states["quarantined"], again)
                assert known == (1 + synced, 1, 1, quarantined, 1)
                assert [item.location for item in caller.quarantine()] == ["disk:bad.smp"] * quarantined
                assert [(sync.spec.name, sync.state, sync.done) for sync in caller.syncs()] == [
                    ("inbox", "paused", 1)
                ] * synced
                assert sorted(remote.name for remote in caller.remotes()) == ["away", "disk"]
                assert [sender.name for sender in caller.trusted()] == ["hospital"]
                item = caller.vault()[-1]
                caller.vault_open(item.id, tmp_path / f"out-{machine.process.pid}")
                assert (tmp_path / f"out-{machine.process.pid}" / "letter.txt").read_bytes() == CONTENT
            machine.ctl("audit", "verify")
            assert machine.stop() == 0
    finally:
        machine.close()


def test_each_past_version_has_its_state() -> None:
    """Whoever adds a migration keeps the state of what was before it."""
    assert [version(path) for path in PAST[: len(MIGRATIONS) - 1]] == list(range(1, len(MIGRATIONS)))


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith("-shm")
    }


def newer_key(state: Path) -> None:
    """A key file of another version, in both its copies."""
    import base64

    path = state / "keys" / "identity.key"
    lines = path.read_bytes().splitlines(keepends=True)
    packed = base64.b64decode(b"".join(lines[1:-1]))
    assert packed.count(b"\xa7version\x01") == 1
    body = base64.encodebytes(packed.replace(b"\xa7version\x01", b"\xa7version\x02"))
    for each in (path, state / "keys" / "copies" / "identity.key"):
        each.write_bytes(lines[0] + body + lines[-1])


def newer_database(state: Path) -> None:
    """A database with a migration more."""
    import sqlite3

    version = len(MIGRATIONS) + 1
    with sqlite3.connect(state / "smpd.db") as database:
        database.execute(f"PRAGMA user_version={version}")
        database.execute(f"PRAGMA application_id={0x534D5000 + version}")
    database.close()


def newer_format(state: Path) -> None:
    """A log or a vault of another form."""
    (state / NAME).write_bytes(msgspec.json.encode({**FORMATS, "vault": 2}))


@pytest.mark.parametrize("newer", [newer_key, newer_database, newer_format])
def test_a_newer_state_is_refused(newer, tmp_path: Path) -> None:
    """It says what to do, and neither database, nor keys, nor log, nor vault are touched."""
    config = configured(tmp_path, space={"reserve_bytes": 1 << 20})
    state = unpack(PAST[-1], tmp_path)
    open_state(config).close()
    newer(state)
    before = digest(state)
    with pytest.raises((IntegrityError, KeyFileError)) as caught:
        open_state(config)
    assert caught.value.code in ("unsupported", "key_invalid")
    assert "newer" in caught.value.hint
    assert digest(state) == before


def test_what_is_not_known_is_ignored() -> None:
    """No message of the protocol forbids a field of a newer peer, and each that has one more is read the same."""
    kinds = [kind for _, kind in inspect.getmembers(c, inspect.isclass) if issubclass(kind, msgspec.Struct)]
    assert len(kinds) > 50
    assert not [kind for kind in kinds if kind.__struct_config__.forbid_unknown_fields]
    hello = c.Hello(1, 9, "9.0", "b")
    assert decode(encode({**msgspec.structs.asdict(hello), "of_a_newer": [1, {"a": None}]}), c.Hello) == hello


async def test_requests_of_a_newer_client(tmp_path: Path) -> None:
    """One with a field more is answered; one that is not known is refused by its type, and the next one is answered."""
    async with whole(tmp_path, compute={"processors": []}, space={"reserve_bytes": 1 << 20}) as daemon:
        async with daemon.client(0) as caller:
            with anyio.fail_after(30):
                found = await caller.call({"op": "status", "of_a_newer": True}, c.Status)
                assert found.role == "admin"
                with pytest.raises(SmpError) as caught:
                    await caller.call({"op": "teleport"}, c.Status)
                assert caught.value.code == "protocol"
                assert (await caller.call(c.StatusRequest(), c.Status)).role == "admin"
