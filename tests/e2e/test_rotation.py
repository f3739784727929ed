"""The box's key is changed under a running box: what was sealed for the old one opens, what is sealed from then on is by the new."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from box import Box
from gated_s3 import GatedS3, gated_s3
from scene import add_remote, done, faults, read_digests, sha256

from smp_proto.audit.note import Checkpoint, VerifierKey, sign_note
from smp_proto.control import GetSpec, RunSpec
from smp_proto.errors import KeyFileError
from smp_proto.sealed.bundle import BundleReader, BundleWriter
from smp_proto.sealed.keys import Identity, PublicIdentity
from smpctl import Client

MIB = 1 << 20
DATA = os.urandom(3 * MIB)
SECRET = os.urandom(32)


class Bench:
    """A box whose key is sealed by a credential, a bucket, and a sender who seals for whichever key."""

    def __init__(self, machine: Box, store: GatedS3, caller: Client, secret: Path) -> None:
        self.box, self.store, self.client, self.secret = machine, store, caller, secret
        self.sender = Identity.generate("sender")
        self.folder = machine.folder
        self.number = 0

    def key(self) -> PublicIdentity:
        """The box's key by its own word."""
        return PublicIdentity.parse(self.client.box_key().text)

    def seal(self, public: PublicIdentity) -> str:
        """A sealed object in the bucket; its name."""
        sealed = bytearray()
        writer = BundleWriter(sealed.extend, sender=self.sender, recipients=[public])
        writer.begin("scan.bin")
        writer.write(DATA)
        writer.end()
        writer.finish()
        self.number += 1
        name = f"{self.number}.smp"
        self.store.objects[name] = bytes(sealed)
        return name

    def opens(self, item: str) -> None:
        """The box opens what its vault has, to what was sealed."""
        self.number += 1
        out = self.folder / f"out-{self.number}"
        self.client.vault_open(item, out)
        assert sha256((out / "scan.bin").read_bytes()) == sha256(DATA)

    def result(self, item: str, signed_by: PublicIdentity) -> None:
        """A result: the sender opens it, by that key of the box; the box opens it, too, and knows who signed it."""
        (path,) = (self.box.state / "vault" / "objects").glob(f"{item}*")
        data = path.read_bytes()

        def read(offset: int, view: memoryview) -> None:
            view[:] = data[offset : offset + len(view)]

        believed = {signed_by.key_id: signed_by}
        with BundleReader(read, len(data), identities=[self.sender], trust=believed.get) as reader:
            assert reader.entries[0].name == "digests.json"
        assert next(each.sender for each in self.client.vault() if each.id == item) == signed_by.key_id.hex()
        self.number += 1
        out = self.folder / f"out-{self.number}"
        self.client.vault_open(item, out)
        assert read_digests(out) == {"scan.bin": sha256(DATA)}

    def round_trip(self, public: PublicIdentity) -> tuple[str, str]:
        """Seal for a key; get it, and run a processor over it. The ids of both in the vault."""
        name = self.seal(public)
        got = done(self.client.wait(self.client.submit(GetSpec(f"s3:{name}")).id))
        self.opens(got.result.vault_id)
        ran = done(self.client.wait(self.client.submit(RunSpec(f"s3:{name}", "digest")).id))
        self.result(ran.result.vault_id, self.key())
        return got.result.vault_id, ran.result.vault_id


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("rotation")
    secret = folder / "credential"
    secret.write_bytes(SECRET)
    secret.chmod(0o600)
    config = {
        "fetch": {"slots": 2, "slot_bytes": MIB, "processes": 1},
        "compute": {"slots": 2, "processors": ["digest"]},
        "jobs": {"running_max": 2},
        "keys": {"credential_file": str(secret)},
    }
    with ExitStack() as stack:
        store, served = stack.enter_context(gated_s3({}))
        machine = Box(folder / "box", config)
        stack.callback(machine.close)
        machine.start()
        add_remote(machine, "s3", served)
        bench = Bench(machine, store, Client(str(machine.socket)), secret)
        stack.callback(lambda: bench.client.close())  # noqa: PLW0108 - another by then
        bench.client.trust_add("sender", bench.sender.public.text())
        yield bench
        assert not faults(machine)


def test_a_rotation_and_a_restart(bench: Bench) -> None:
    """Jobs that were paused, at work or not there yet, and the vault, go on over it; and after a restart all of it again."""
    old, caller = bench.key(), bench.client
    kept, result = bench.round_trip(old)
    early = bench.folder / "early"
    early.write_bytes(bench.box.ctl("audit", "checkpoint").stdout)
    bench.store.hold_after(MIB)
    working = caller.submit(RunSpec(f"s3:{bench.seal(old)}", "digest")).id
    paused = caller.submit(GetSpec(f"s3:{bench.seal(old)}")).id
    bench.store.until_held(1)
    caller.pause(paused)

    shown = bench.box.ctl("keys", "rotate", "--box", "--reason", "a year has passed").stdout.decode()
    new = bench.key()
    assert new != old
    assert shown == f"box  {new.fingerprint()}, in place of {old.fingerprint()}\n"
    bench.store.release()
    caller.resume(paused)

    done(caller.wait(paused))
    ran = done(caller.wait(working))
    bench.result(ran.result.vault_id, signed_by=new)
    for restarted in (False, True):
        if restarted:
            caller.close()
            assert bench.box.stop() == 0
            bench.box.start()
            caller = bench.client = Client(str(bench.box.socket))
        assert bench.key() == new
        assert caller.box_key().retired == [old.fingerprint()]
        assert caller.status().retired_keys == 1
        identity = next(check for check in caller.doctor() if check.name == "identity")
        assert "1 before it only open" in identity.text
        bench.opens(kept)
        bench.result(result, signed_by=old)
        bench.round_trip(old)
        bench.round_trip(new)
        assert not [check for check in caller.doctor() if "damaged" in check.text]
    follows(bench, old, early)


def follows(bench: Bench, old: PublicIdentity, early: Path) -> None:
    """An auditor who only knows the first key verifies, against checkpoints of both, and no stranger's."""
    key = VerifierKey(f"smpd/{old.fingerprint()}", old.verify_key)
    keys, late = bench.folder / "audit-key", bench.folder / "late"
    keys.write_text(f"{key}\n")
    late.write_bytes(bench.box.ctl("audit", "checkpoint").stdout)
    for arguments in ([], ["--checkpoint", early], ["--checkpoint", late, "--dir", bench.box.state / "audit"]):
        more = ["--key", keys] if arguments else []
        found = bench.box.ctl("audit", "verify", *more, *arguments).stdout.decode()
        assert "may sign from there on" in found
        assert found.count("\nkey ") == 2
    stranger = Identity.generate("stranger")
    forger = VerifierKey(key.name, stranger.public.verify_key)
    text = Checkpoint.parse(late.read_text().partition("\n\n")[0] + "\n").text()
    late.write_bytes(sign_note(text, forger, stranger.sign))
    refused = bench.box.ctl("audit", "verify", "--key", keys, "--checkpoint", late, check=False)
    assert refused.returncode == 11
    records = [json.loads(line) for line in bench.client.audit_lines()]
    changes = [each for each in records if each["event"] == "key.rotate"]
    assert [each["outcome"] for each in changes] == ["", "done"]
    assert changes[0]["fields"]["reason"] == "a year has passed"
    assert changes[0]["fields"]["key_id"] == bench.key().key_id.hex()


def test_without_the_secret(bench: Bench) -> None:
    """The file that holds it is read again; while it is gone nothing is changed, and the error names it."""
    before = bench.client.box_key()
    bench.secret.rename(bench.secret.with_name("away"))
    refused = bench.box.ctl("keys", "rotate", "--box", check=False)
    bench.secret.with_name("away").rename(bench.secret)
    assert refused.returncode == 2
    assert str(bench.secret) in refused.stderr.decode()
    bench.secret.write_bytes(bytes(32))
    with pytest.raises(KeyFileError, match="nothing was changed"):
        bench.client.box_rotate()
    bench.secret.write_bytes(SECRET)
    assert bench.client.box_key() == before
    assert bench.client.status().audit_ok
