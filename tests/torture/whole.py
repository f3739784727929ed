"""A whole daemon at work for several clients: what each was told, and looking for it afterwards."""

import contextlib
import hashlib
import os
import threading
from itertools import count
from pathlib import Path
from typing import Any

from box import Box

from smp_proto.audit.note import VerifierKey
from smp_proto.audit.record import parse_line
from smp_proto.audit.verify import verify_log
from smp_proto.control import GetSpec, JobView, LocalConfig, RunSpec
from smp_proto.errors import SmpError
from smp_proto.sealed.bundle import BundleReader
from smp_proto.sealed.keys import PublicIdentity
from smpctl import Client
from torture import acts

CONFIG: dict[str, dict[str, Any]] = {
    "fetch": {"slots": 4, "slot_bytes": 1 << 20, "processes": 1},
    "compute": {"slots": 2, "result_slots": 2, "device": "cpu", "processors": ["digest"]},
    "jobs": {"running_max": 3, "backoff_base_s": 0.05, "backoff_max_s": 0.2},
    "audit": {"checkpoint_records": 5},
}
PLAIN = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(70_000))  # three ranges


class Whole:
    """A box, its state below ``root``, and what its clients were told.

    Args:
        root: holds the state and the remote that is written to.
        folder: holds what must not be lost with it: configuration, log, and the remote that is read.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        self.stored, self.written = folder / "lake", root / "ward"
        self.told: list[tuple[str, str]] = []
        self._numbers = count()
        self._threads: list[threading.Thread] = []
        self._told = threading.Condition()
        self._clients: list[Client] = []
        config = {**CONFIG, "paths": {"state": str(root / "state")}}
        self.box = Box(folder / "box", config)
        self.box.state = root / "state"

    def begin(self) -> None:
        """Make what the daemon works on."""
        self.stored.mkdir()
        self.written.mkdir(parents=True)
        (self.folder / "plain").write_bytes(PLAIN)
        os.sync()

    def furnish(self, client: Client) -> None:
        """Remotes, a sender, and an object for the box."""
        public = PublicIdentity.parse(client.box_key().text)
        sealed = bytearray()
        writer = acts.BundleWriter(sealed.extend, sender=acts.person(), recipients=[public])
        writer.begin("plain")
        writer.write(PLAIN)
        writer.end()
        writer.finish()
        (self.stored / "one.smp").write_bytes(sealed)
        client.trust_add("person", acts.person().public.text())
        self.tell("believed", "person")
        for name, where in (("lake", self.stored), ("ward", self.written)):
            client.remote_add(name, LocalConfig(str(where)))
            self.tell("remote", name)

    def tell(self, kind: str, what: str) -> None:
        """Note what was acknowledged."""
        with self._told:
            self.told.append((kind, what))
            self._told.notify_all()

    def wait_for(self, wanted: int, seconds: float = 60.0) -> None:
        """Wait until so many things were acknowledged."""
        with self._told:
            assert self._told.wait_for(lambda: len(self.told) >= wanted, seconds), self.told

    # ── what clients do ──────────────────────────────────────────────────────────────────────────────────────

    def get(self, client: Client) -> None:
        """An object comes into the vault."""
        self._done(client, client.submit(GetSpec("lake:one.smp")))

    def put(self, client: Client) -> None:
        """A file is sealed and uploaded."""
        recipients = [acts.person().public.text()]
        target = f"ward:put/{next(self._numbers)}.smp"
        self._done(client, client.put([self.folder / "plain"], target, recipients))

    def run(self, client: Client) -> None:
        """A processor's result is kept."""
        self._done(client, client.submit(RunSpec("lake:one.smp", "digest")))

    def change(self, client: Client) -> None:
        """A sender is believed, a remote known."""
        number = next(self._numbers)
        name = f"s{number}"
        if number < 8:
            client.trust_add(name, acts.stranger(number).public.text())
            self.tell("believed", name)
        client.remote_add(f"r{number}", LocalConfig(str(self.stored)))
        self.tell("remote", f"r{number}")

    def _done(self, client: Client, view: JobView) -> None:
        self.tell("job", view.id)
        if client.wait(view.id, patience_s=0.0).state == "done":
            self.tell("done", view.id)

    def work(self, acts_of_each: list[list[str]], *, forever: bool) -> None:
        """Have several clients do things at once until the daemon is gone, or once."""

        def client_of(names: list[str]) -> None:
            with contextlib.suppress(SmpError, OSError), Client(str(self.box.socket)) as client:
                while True:
                    for name in names:
                        getattr(self, name)(client)
                    if not forever:
                        return

        self._threads = [threading.Thread(target=client_of, args=(names,), daemon=True) for names in acts_of_each]
        for each in self._threads:
            each.start()

    def gone(self) -> None:
        """The daemon is gone, and soon its clients."""
        for each in self._threads:
            each.join(90)
            assert not each.is_alive(), "a client still waits for a daemon that is gone"

    # ── afterwards ───────────────────────────────────────────────────────────────────────────────────────────

    def look(self, told: list[tuple[str, str]]) -> None:
        """Start the daemon again, without a fault, and find what was acknowledged."""
        self.box.start()
        try:
            with Client(str(self.box.socket)) as client:
                self._look(client, told)
        finally:
            status = self.box.stop()
        assert status == 0
        assert not acts.leftovers(self.root)
        assert not [path.name for path in (self.root / "state" / "spool").iterdir()]

    def _look(self, client: Client, told: list[tuple[str, str]]) -> None:
        named = {
            kind: {what for which, what in told if which == kind} for kind in ("believed", "remote", "job", "done")
        }
        assert named["believed"] <= {view.name for view in client.trusted() if not view.removed}
        assert named["remote"] <= {view.name for view in client.remotes()}
        known = {view.id: view for view in client.jobs(limit=1000)}
        assert named["job"] <= known.keys()
        for each in named["done"]:
            assert known[each].state == "done", known[each]
        for each, view in known.items():
            if view.state == "failed":  # by the fault: a person tries again
                client.resume(each)
            assert client.wait(each).state == "done", client.job(each).error
        if not any(view.name == "ward" for view in client.remotes()):
            client.remote_add("ward", LocalConfig(str(self.written)))  # the fault came before it
        self.put(client)  # sweeps what a fault left where it goes
        self._results(client, [client.job(each) for each in known])
        self._audited(client, named["job"])
        found = [check.text for check in client.doctor() if check.state == "warn" and "vault" in check.text]
        assert not found, found

    def _results(self, client: Client, views: list[JobView]) -> None:
        items = {item.id for item in client.vault()}
        for view in views:
            assert view.result is not None
            if view.result.vault_id:
                assert view.result.vault_id in items
                target = self.folder / f"opened-{view.id}"
                client.vault_open(view.result.vault_id, target)
                if view.kind == "get":
                    assert (target / "plain").read_bytes() == PLAIN
            else:
                self._was_sealed(PublicIdentity.parse(client.box_key().text), view.result.target.removeprefix("ward:"))

    def _was_sealed(self, box: PublicIdentity, path: str) -> None:
        data = memoryview((self.written / path).read_bytes())

        def read_into(offset: int, view: memoryview) -> None:
            view[:] = data[offset : offset + len(view)]

        found = bytearray()
        with BundleReader(read_into, len(data), identities=[acts.person()], trust=lambda _id: box) as reader:
            reader.extract(lambda _entry, _offset, data: found.extend(data))
        assert bytes(found) == PLAIN

    def _audited(self, client: Client, jobs: set[str]) -> None:
        lines, proof = client.audit_read()
        verifier = VerifierKey(proof.origin, proof.public_key)
        verify_log(lines, [note.encode() for note in proof.checkpoints], (verifier,))
        recorded = {record.job for record in map(parse_line, lines) if record.event == "job.submit"}
        assert jobs <= recorded
