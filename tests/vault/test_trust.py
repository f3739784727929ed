"""Who is believed, for what, until when."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smp_proto.errors import IntegrityError, NotFoundError, StateError, UsageError
from smpd.jobs.database import Database
from smpd.jobs.seal import StateSeal
from smpd.vault.trust import TrustStore, _day, _within

KEY, OTHER = bytes(16), bytes([1] * 16)
NOW = 1_800_000_000.0


@pytest.fixture
def store(db: Database, seal: StateSeal) -> TrustStore:
    return TrustStore(db, seal, wall=lambda: NOW)


def add(store: TrustStore, name: str = "clinic", key_id: bytes = KEY, **more: object):
    return store.add(name, f"key text of {name}", key_id=key_id, fingerprint="ab cd", **more)


def refused(store: TrustStore, key_id: bytes, location: str = "pacs:ct/1", now: float = NOW) -> IntegrityError:
    with pytest.raises(IntegrityError) as caught:
        store.read().lookup(key_id, location, now)
    assert caught.value.code == "untrusted_sender"
    return caught.value


def test_a_known_sender_is_found(store: TrustStore, db: Database, seal: StateSeal) -> None:
    """The key's text comes back, also after a restart; the list shows all about it."""
    view = add(store)
    assert (view.name, view.key_id, view.fingerprint, view.added) == ("clinic", KEY.hex(), "ab cd", NOW)
    again = TrustStore(db, seal)
    assert again.read().lookup(KEY, "anything:at/all", 9e9) == "key text of clinic"
    assert again.list() == [view]


def test_an_unknown_sender_is_refused_with_what_to_type(store: TrustStore) -> None:
    """Nobody is believed on first use."""
    add(store)
    error = refused(store, OTHER)
    assert OTHER.hex("-", 2) in error.message
    assert "smpctl trust add" in error.hint
    assert "fingerprint" in error.hint


def test_expiry(store: TrustStore) -> None:
    """Believed before the end, refused from it on, saying when it was."""
    add(store, until=NOW + 10)
    assert store.read().lookup(KEY, "a:b", NOW + 9.9)
    error = refused(store, KEY, now=NOW + 10)
    assert "ended on 2027-01-15" in error.message
    assert "--until" in error.hint


def test_removal_is_a_tombstone(store: TrustStore, db: Database, seal: StateSeal) -> None:
    """A removed sender stays in the list, is refused as removed even after a restart; to add it again is explicit."""
    add(store)
    tomb = store.remove("clinic")
    assert tomb.removed == NOW
    again = TrustStore(db, seal, wall=lambda: NOW + 2 * 86400)
    assert again.list() == [tomb]
    assert "was removed on 2027-01-15" in refused(again, KEY).message
    with pytest.raises(NotFoundError) as caught:
        again.remove("clinic")
    assert caught.value.code == "no_such_key"
    add(again)
    assert again.read().lookup(KEY, "a:b", NOW)
    assert [bool(view.removed) for view in again.list()] == [True, False]
    add(again, "second", OTHER)
    again.remove("clinic")
    assert "was removed on 2027-01-17" in refused(again, KEY).message


def test_the_database_is_asked_again_after_a_change_only(store: TrustStore, db: Database, monkeypatch) -> None:
    """Each change is seen at once, by a reader that begins after it; between changes nothing is read."""
    asked = []
    rows = db.rows
    monkeypatch.setattr(db, "rows", lambda *arguments: asked.append(arguments) or rows(*arguments))
    assert not store.read().keys
    add(store, "ward")
    assert store.read().keys == store.read().keys == ["key text of ward"]
    store.remove("ward")
    assert store.read().keys == []
    with pytest.raises(NotFoundError):
        store.remove("ward")
    store.read()
    assert len(asked) == 3


def test_a_name_can_pass_to_a_new_key(store: TrustStore) -> None:
    """After removal the name may get another key; the old one stays refused as removed."""
    add(store)
    store.remove("clinic")
    add(store, key_id=OTHER)
    assert store.read().lookup(OTHER, "a:b", NOW)
    assert "removed" in refused(store, KEY).message


def test_prefixes(store: TrustStore) -> None:
    """Believed only below its prefixes, step by step."""
    add(store, prefixes=["pacs:ct", "archive:"])
    for location in ("pacs:ct", "pacs:ct/1", "archive:any/thing"):
        assert store.read().lookup(KEY, location, NOW)
    for location in ("pacs:ct2/1", "pacs:mr/1", "pacs:", "other:ct/1", "archive2:x"):
        error = refused(store, KEY, location)
        assert "pacs:ct, archive:" in error.message
        assert "--prefix" in error.hint


def test_refusals_of_add(store: TrustStore) -> None:
    """A taken name or key, a bad name, a bad prefix: refused, nothing kept."""
    add(store)
    for name, key_id in (("clinic", OTHER), ("other", KEY)):
        with pytest.raises(StateError, match="clinic"):
            add(store, name, key_id)
    for name, prefixes in (("Clinic", []), ("new", ["pacs"]), ("new", ["pacs:../x"])):
        with pytest.raises(UsageError):
            add(store, name, OTHER, prefixes=prefixes)
    assert len(store.list()) == 1


@pytest.mark.parametrize("until", [-1.0, float("nan"), float("inf"), 1e300])
def test_a_time_that_none_is(store: TrustStore, until: float) -> None:
    """Trust cannot end when no clock will ever be; a record that says so all the same can be talked of."""
    with pytest.raises(UsageError, match="no trust can end"):
        add(store, until=until)
    assert _day(until)


def test_an_altered_record_is_no_sender(store: TrustStore, db: Database) -> None:
    """A record changed on disk, or taken from another place, is not believed; the others are."""
    add(store)
    add(store, "other", OTHER)
    with db.transaction() as connection:
        connection.execute("UPDATE trust SET body=(SELECT body FROM trust WHERE number=2) WHERE number=1")
    refused(store, KEY)
    assert store.read().lookup(OTHER, "a:b", NOW)
    assert [view.name for view in store.list()] == ["other"]


def test_nothing_of_a_sender_is_readable_on_disk(store: TrustStore, tmp_path: Path) -> None:
    """Names and prefixes of senders are sealed."""
    add(store, prefixes=["pacs:mueller-hans"])
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert not [word for word in (b"clinic", b"mueller", b"key text") if word in files]


PATHS = st.lists(st.sampled_from(["ct", "ct2", "1"]), max_size=4).map("/".join)


@given(PATHS, PATHS, st.booleans())
def test_within_goes_by_steps(path: str, prefix: str, slash: bool) -> None:
    """The string rule agrees with comparing lists of steps."""
    steps, first = [s for s in path.split("/") if s], [s for s in prefix.split("/") if s]
    text = f"r:{prefix}/" if slash and prefix else f"r:{prefix}"
    expected = steps[: len(first)] == first and not (text.endswith("/") and steps == first)
    assert _within(f"r:{path}", text) == expected


def test_what_was_verified_keeps_its_key(store: TrustStore) -> None:
    """A sender's key is there for what came from it, also when it was removed or is out of its prefix."""
    add(store, prefixes=["pacs:ct/"])
    store.remove("clinic")
    assert store.key_of(KEY) == "key text of clinic"
    with pytest.raises(IntegrityError) as caught:
        store.key_of(OTHER)
    assert caught.value.code == "untrusted_sender"
