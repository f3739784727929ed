"""R11: objects that are what somebody sealed, and still not to be taken: older ones in the place of newer ones, moved ones, for
somebody else, by senders who are not believed any more; by one job over all of them, singly, and again after a crash."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
from box import Box

from smp_proto.control import GetSpec, LocalConfig, QuarantineItem, RunSpec
from smp_proto.sealed.bundle import BundleWriter
from smp_proto.sealed.entries import PLACE
from smp_proto.sealed.keys import Identity, PublicIdentity
from smp_proto.sealed.layout import SEGMENT_BYTES
from smpctl import Client
from torture.harness import Experiment, Trial, Trials
from torture.planted import planting

NOW = int(time.time())
DAY = 86_400
S = SEGMENT_BYTES


class People:
    """Who seals, and the box they seal for."""

    def __init__(self, box: PublicIdentity) -> None:
        self.box = box
        names = ("sender", "colleague", "revoked", "expired")
        self.by = {name: Identity.generate(name) for name in names}
        self.other = Identity.generate("other box").public

    def seal(self, plain: bytes, by: str = "sender", created: int = NOW, to: str = "box", place: str = "") -> bytes:
        """An object, dated as we like."""
        made = bytearray()
        recipient = self.box if to == "box" else self.other
        writer = BundleWriter(made.extend, sender=self.by[by], recipients=[recipient], created=created)
        writer.begin("scan.dcm", "", {PLACE: place} if place else {})
        writer.write(plain)
        writer.end()
        writer.finish()
        return bytes(made)


class Case(NamedTuple):
    """What lies at a place first, which is taken; what is put there then; how that must be refused."""

    first: bytes
    then: bytes
    code: str


def _older(people: People, plain: bytes, name: str, rng: random.Random) -> Case:
    """The storage gives out what it kept from before."""
    age = rng.randrange(1, 1000 * DAY)
    return Case(people.seal(plain), people.seal(plain[::-1], created=NOW - age), "older_version")


def _older_of_another(people: People, plain: bytes, name: str, rng: random.Random) -> Case:
    """One that another sender sealed before, who is believed, too: an earlier key of the same clinic, say."""
    return Case(people.seal(plain), people.seal(plain[::-1], "colleague", NOW - 60), "older_version")


def _from_elsewhere(people: People, plain: bytes, name: str, rng: random.Random) -> Case:
    """A newer object of another place, which its sender bound to that."""
    return Case(people.seal(plain), people.seal(plain, created=NOW + 60, place="theirs/scan.smp"), "misplaced")


def _bound(people: People, plain: bytes, name: str, rng: random.Random) -> Case:
    """An object bound to a name that only ends alike."""
    return Case(people.seal(plain, place=name), people.seal(plain, place=f"x{name}"), "misplaced")


def _for_another(people: People, plain: bytes, name: str, rng: random.Random) -> Case:
    return Case(people.seal(plain), people.seal(plain, created=NOW + 60, to="other"), "wrong_recipient")


def _revoked(people: People, plain: bytes, name: str, rng: random.Random) -> Case:
    """The very object that was taken when its sender was believed; or a new one."""
    first = people.seal(plain, "revoked")
    again = first if rng.random() < 0.5 else people.seal(plain, "revoked", NOW + 60)
    return Case(first, again, "untrusted_sender")


def _expired(people: People, plain: bytes, name: str, rng: random.Random) -> Case:
    first = people.seal(plain, "expired")
    again = first if rng.random() < 0.5 else people.seal(plain, "expired", NOW + 60)
    return Case(first, again, "untrusted_sender")


CASES: list[Callable[[People, bytes, str, random.Random], Case]] = [
    *(_older, _revoked, _older_of_another, _expired, _from_elsewhere, _for_another, _bound),
]


@contextmanager
def _box(folder: Path) -> Iterator[Box]:
    machine = Box(folder / "box", {"fetch": {"slots": 2, "slot_bytes": S}})
    try:
        machine.start()
        yield machine
    finally:
        machine.close()


def run(trials: Trials) -> None:
    """All are taken once; then the storage, or the trust store, changes; then none is, before and after a SIGKILL."""
    store = trials.folder / "store"
    (store / "in").mkdir(parents=True)
    cases: list[tuple[Trial, str, Case]] = []
    with _box(trials.folder) as machine:
        with Client(str(machine.socket)) as client:
            people = People(PublicIdentity.parse(client.box_key().text))
            for person in people.by.values():
                client.trust_add(person.public.name, person.public.text())
            client.remote_add("disk", LocalConfig(str(store)))
            for trial in trials:
                with trial:
                    name = f"in/{trial.number:03}.smp"
                    plain = trial.rng.randbytes(trial.rng.choice([1000, 2 * S + 77]))  # with others in a slot, or alone
                    cases.append((trial, name, CASES[trial.number % len(CASES)](people, plain, name, trial.rng)))
            _change(client, store, people, cases)
            before = _refused(client)
        machine.kill()
        machine.start()
        with Client(str(machine.socket)) as client:
            after = _refused(client)
            alone = {f"disk:{name}": _alone(client, trial, name) for trial, name, _ in cases if not trial.number % 3}
        machine.ctl("audit", "verify")
    for trial, name, case in cases:
        with trial:
            for when, found in (("before", before), ("after", after), ("alone after", alone)):
                if found is alone and trial.number % 3:
                    continue
                item = found.get(f"disk:{name}")
                assert item is not None, f"{case.code}: it was taken, {when} the restart"
                assert item.code == case.code, f"{item.code} instead of {case.code}: {item.message}"
    trials.figures["refused alone, too"] = len(alone)


def _change(client: Client, store: Path, people: People, cases: Sequence[tuple[Trial, str, Case]]) -> None:
    """Have all that comes first taken, and put the rest in its place."""
    for _, name, case in cases:
        (store / name).write_bytes(case.first)
    # One that stays, and one that is replaced by a newer one: both are to be taken again.
    (store / "in/same.smp").write_bytes(people.seal(b"same"))
    (store / "in/newer.smp").write_bytes(people.seal(b"old", created=NOW - DAY))
    first = client.wait(client.submit(GetSpec("disk:in/")).id)
    assert first.state == "done", first.error
    for _, name, case in cases:
        (store / name).write_bytes(case.then)
    (store / "in/newer.smp").write_bytes(people.seal(b"new"))
    for name in ("revoked", "expired"):
        client.trust_remove(name)
    client.trust_add("expired", people.by["expired"].public.text(), until=NOW - DAY)


def _refused(client: Client) -> dict[str, QuarantineItem]:
    """What a job over all of them refuses, which is recorded; the two that are good are taken."""
    view = client.wait(client.submit(GetSpec("disk:in/")).id)
    items = {item.location: item for item in client.quarantine(view.id)}
    assert view.state == ("quarantined" if items else "done"), view
    records = [msgspec.json.decode(line) for line in client.audit_lines()]
    said = [each["fields"]["reason"] for each in records if (each["job"], each["event"]) == (view.id, "quarantine.add")]
    assert sorted(said) == sorted(item.code for item in items.values()), "the audit log does not have each of them"
    assert not {"disk:in/same.smp", "disk:in/newer.smp"} & items.keys()
    assert len(client.vault(view.id)) + len(items) == len(list(client.ls("disk:in/")))
    return items


def _alone(client: Client, trial: Trial, name: str) -> QuarantineItem | None:
    """The same object, by a job of its own."""
    place = f"disk:{name}"
    view = client.wait(client.submit(RunSpec(place, "digest") if trial.number % 12 == 9 else GetSpec(place)).id)
    assert view.state != "failed", view.error
    return next(iter(client.quarantine(view.id)), None)


EXPERIMENT = Experiment(
    id="R11",
    title="replay, older version, object for another place or recipient, revoked or expired sender",
    passes="refused and audited, also after a restart",
    trials=70,
    short=len(CASES),
    run=run,
    plants={
        "nothing is remembered": lambda: planting("torture.faults.quarantine:unremembering"),
        "a sender is believed for ever": lambda: planting("torture.faults.quarantine:believing"),
    },
    planted_trials=2,
)
