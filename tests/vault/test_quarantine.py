"""The stores of what was refused and of what was accepted: durable, sealed, bounded, and what damage to them does."""

import sqlite3
import threading

import pytest

from smp_proto.control import GetSpec, QuarantineItem
from smp_proto.errors import IntegrityError, NotFoundError
from smp_proto.sealed.envelope import Signed
from smpd.jobs.database import Database
from smpd.jobs.journal import Journal
from smpd.jobs.seal import StateSeal
from smpd.vault.quarantine import Quarantine, item_id
from smpd.vault.versions import Versions

PLACE = "lake:patients/Doe^Jane.smp"


def job_of(db: Database, seal: StateSeal, key: str = "k") -> str:
    return Journal(db, seal).add(GetSpec(PLACE), owner="a(1)", key=key)[0].id


def item(job: str, place: str = PLACE, kept: int = 0) -> QuarantineItem:
    return QuarantineItem(item_id(job, place), job, place, "corrupt", "a tag does not match", kept_bytes=kept, size=9)


def test_an_item_is_kept_and_replaced(db: Database, seal: StateSeal) -> None:
    """The same object refused again is the same item, with when it began and how often it was."""
    clock = iter([1.0, 2.0])
    store, job = Quarantine(db, seal, 100, wall=lambda: next(clock)), job_of(db, seal)
    assert store.add(item(job, kept=5), "a").unneeded == ()
    added = store.add(item(job, kept=6), "b")
    assert added.unneeded == ("a",)
    (found,) = store.list()
    assert (found.created, found.updated, found.times, found.kept_bytes) == (1.0, 2.0, 2, 6)
    assert found == store.get(found.id)
    assert (added.item.id, added.item.times) == (found.id, 2)
    assert (store.count(), store.count(job), store.count("other"), store.kept_bytes()) == (1, 1, 0, 6)
    assert store.file(found.id) == "b"
    store.remove([found.id])
    with pytest.raises(NotFoundError):
        store.get(found.id)


def test_the_limit_is_for_what_is_new(db: Database, seal: StateSeal) -> None:
    """Beyond it there is a record that says why there is no more, and its file is of no use; the others stay."""
    store, job = Quarantine(db, seal, 10), job_of(db, seal)
    store.add(item(job, "a:1", 7), "one")
    added = store.add(item(job, "a:2", 4), "two")
    assert (added.unneeded, added.item.kept_bytes) == (("two",), 0)
    assert "no room" in added.item.left_out
    assert store.add(item(job, "a:3", 3), "three").unneeded == ()
    assert store.add(item(job, "a:1", 7), "one").unneeded == ()  # it is not counted twice
    assert [each.kept_bytes for each in store.list()] == [7, 3, 0]


def test_pages(db: Database, seal: StateSeal) -> None:
    """Newest first, of a job, a page after another."""
    store, one, two = Quarantine(db, seal, 10), job_of(db, seal), job_of(db, seal, "l")
    for number in range(6):
        store.add(item(one if number % 2 else two, f"a:{number}"))
    assert [each.location for each in store.list()] == [f"a:{n}" for n in (5, 4, 3, 2, 1, 0)]
    page = store.list(one, limit=2)
    assert [each.location for each in page] == ["a:5", "a:3"]
    assert [each.location for each in store.list(one, page[-1].id, 2)] == ["a:1"]
    store.remove([page[-1].id])
    with pytest.raises(NotFoundError):
        store.list(one, page[-1].id, 2)


def test_a_damaged_item_is_shown_as_such(db: Database, seal: StateSeal) -> None:
    """A cell that is another hides neither it nor the others, be it of another type even; it can be refused again."""
    store, job = Quarantine(db, seal, 10), job_of(db, seal)
    store.add(item(job, kept=3), "x")
    store.add(item(job, "a:2"))
    with db.transaction() as connection:
        connection.execute("UPDATE quarantine SET body=x'00' || substr(body, 2) WHERE kept=3")
    damaged = store.get(item_id(job, PLACE))
    assert (damaged.code, damaged.location, damaged.job) == ("corrupt", "", job)
    assert "damaged" in damaged.message
    assert len(store.list()) == 2
    assert store.add(item(job)).item.location == PLACE
    store.remove([damaged.id])


def test_the_end_of_a_job_takes_its_items(db: Database, seal: StateSeal) -> None:
    """In the same transaction."""
    journal, store, job = Journal(db, seal), Quarantine(db, seal, 10), job_of(db, seal)
    journal.move(job, "start")
    store.add(item(job))
    assert journal.move(job, "quarantine").state == store.list()[0].state == "quarantined"
    journal.move(job, "resume")
    assert store.list()[0].state == "queued"
    journal.move(job, "cancel")
    assert store.list() == []


def signed(created: int, object_id: bytes = b"o" * 16) -> Signed:
    return Signed("hybrid", object_id, bytes(40), 1, 1, 1, 1, bytes(32), bytes(32), b"s" * 16, created)


def test_the_time_does_not_go_back(db: Database, seal: StateSeal) -> None:
    """At one place, and only forward by what was verified; the same object, and one of the same second, are fine."""
    store = Versions(db, seal, 1000)
    store.check(PLACE, signed(5))
    store.remember([(PLACE, signed(5))])
    for fine in (signed(5), signed(1), signed(5, b"p" * 16), signed(6, b"q" * 16)):
        store.check(PLACE, fine)
    store.check("lake:other", signed(1, b"x" * 16))
    with pytest.raises(IntegrityError) as caught:
        store.check(PLACE, signed(4, b"x" * 16))
    assert caught.value.code == "older_version"
    assert PLACE not in caught.value.message + caught.value.hint
    store.remember([(PLACE, signed(4, b"x" * 16))])  # by a job that began before: it does not count
    with pytest.raises(IntegrityError):
        store.check(PLACE, signed(4, b"x" * 16))
    store.remember([(PLACE, signed(4, b"x" * 16))], {PLACE})
    store.check(PLACE, signed(4, b"y" * 16))


def test_many_places_are_read_at_once(db: Database, seal: StateSeal, monkeypatch: pytest.MonkeyPatch) -> None:
    """One query for all; each is compared with its own, and told whether it is what was there."""
    store = Versions(db, seal, 1000)
    store.remember([(f"a:{number}", signed(number, bytes([number]) * 16)) for number in range(20)])
    stored = store.stored([f"a:{number}" for number in range(30)])
    monkeypatch.setattr(db, "rows", None)
    for number in range(20):
        assert store.check(f"a:{number}", signed(number, bytes([number]) * 16), stored)
        assert not store.check(f"a:{number}", signed(number + 1, b"x" * 16), stored)
    with pytest.raises(IntegrityError):
        store.check("a:9", signed(8, b"x" * 16), stored)
    assert not store.check("a:25", signed(1, b"x" * 16), stored)


def test_what_is_known_costs_no_write(db: Database, seal: StateSeal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Running over an object again is free."""
    store = Versions(db, seal, 1000)
    store.remember([(PLACE, signed(5))])
    monkeypatch.setattr(db, "transaction", None)
    store.remember([(PLACE, signed(5))])


def test_the_oldest_are_forgotten(db: Database, seal: StateSeal) -> None:
    """So many acceptances are remembered, and no more."""
    store = Versions(db, seal, 3)
    for number in range(9):
        store.remember([(f"a:{number}", signed(5))])
    assert db.rows("SELECT count(*) FROM versions") == [(3,)]
    store.check("a:5", signed(1, b"x" * 16))
    with pytest.raises(IntegrityError):
        store.check("a:6", signed(1, b"x" * 16))


def test_a_changed_memory_is_not_believed(db: Database, seal: StateSeal) -> None:
    """A record moved from another place, or flipped, refuses what is there until a person says otherwise."""
    store = Versions(db, seal, 10)
    store.remember([("a:1", signed(5)), ("a:2", signed(9))])
    with db.transaction() as connection:
        connection.execute("UPDATE versions SET body=(SELECT body FROM versions ORDER BY number LIMIT 1)")
    with pytest.raises(IntegrityError) as caught:
        store.check("a:2", signed(9))
    assert caught.value.code == "corrupt"
    store.remember([("a:2", signed(9))])
    store.check("a:2", signed(9))


def test_no_place_is_in_the_clear(db: Database, seal: StateSeal, tmp_path: object) -> None:
    """Neither table has a name."""
    Quarantine(db, seal, 10).add(item(job_of(db, seal)))
    Versions(db, seal, 10).remember([(PLACE, signed(5))])
    for table in ("quarantine", "versions"):
        assert b"Doe" not in repr(db.rows(f"SELECT * FROM {table}")).encode()


def test_several_threads_at_once(db: Database, seal: StateSeal) -> None:
    """What several jobs accept at one place ends as the newest."""
    store = Versions(db, seal, 1000)
    errors: list[BaseException] = []

    def take(number: int) -> None:
        try:
            store.remember([(PLACE, signed(number, bytes([number]) * 16))])
        except sqlite3.Error as error:
            errors.append(error)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    with pytest.raises(IntegrityError):
        store.check(PLACE, signed(18, b"x" * 16))
