"""A box that is given wrong input, and what has to be true after each of its refusals."""

import contextlib
import os
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from box import Box
from faulty import until
from scene import bytes_below
from servers import BUCKET, Served, admin

from smp_proto.audit.note import VerifierKey
from smp_proto.audit.verify import verify_log
from smp_proto.control import FINAL_STATES, GetSpec, JobView, RunSpec
from smp_proto.errors import CODES, IntegrityError
from smp_proto.sealed.bundle import BundleWriter
from smp_proto.sealed.keys import Identity, PublicIdentity
from smp_proto.sealed.layout import SEGMENT_BYTES
from smpctl import Client
from smpctl.following import exit_code

WRONG_SOURCE = Path(__file__).with_name("wrong_processors.py")
WRONG = re.findall(r'@processor\("([a-z.]+)"', WRONG_SOURCE.read_text())
MARK = random.Random("the mark").randbytes(32)
PATIENT = "Doe^Jane"
WAIT_S = 60.0


def install_wrong_processors(folder: Path) -> Path:
    """Leave the distribution ``smp-wrong`` in a folder, as an installer would; returns the folder."""
    info = folder / "smp_wrong-1.0.dist-info"
    info.mkdir(parents=True)
    source = WRONG_SOURCE.read_text()
    (folder / "smp_wrong.py").write_text(source)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: smp-wrong\nVersion: 1.0\n")
    functions = re.findall(r'@processor\("([a-z.]+)".*\n(?:.*\n)?def (\w+)', source)
    points = [f"{name} = smp_wrong:{function}" for name, function in functions]
    (info / "entry_points.txt").write_text("\n".join(["[smpd.processors]", *points, ""]))
    return folder


def marked(length: int, seed: int = 0) -> bytes:
    """Bytes that cannot be guessed, with the mark in every kilobyte."""
    data = bytearray(random.Random(seed).randbytes(length))
    for start in range(0, length - len(MARK), 1024):
        data[start : start + len(MARK)] = MARK
    return bytes(data)


PLAIN = marked(2 * SEGMENT_BYTES + 1000)


@dataclass
class Bench:
    """A running box, who seals for it, and a folder behind its remotes ``s3`` (rclone) and ``disk`` (local)."""

    box: Box
    folder: Path
    stored: Path
    sender: Identity
    client: Client
    s3: Served
    public: PublicIdentity
    good: bytes = b""
    seen: int = 0

    def store(self, name: str, data: bytes, remote: str = "disk") -> str:
        """Put an object into a remote; returns ``REMOTE:PATH``."""
        if remote == "s3":  # rclone sees only late what was not written through it
            admin(self.s3).put_object(Bucket=BUCKET, Key=name, Body=data)
        else:
            path = self.stored / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return f"{remote}:{name}"

    def seal(
        self, contents: Sequence[bytes] = (PLAIN,), *, by: Identity | None = None, to: PublicIdentity | None = None
    ) -> bytes:
        """An object with these entries, by the sender and for the box unless said otherwise."""
        sealed = bytearray()
        writer = BundleWriter(sealed.extend, sender=by or self.sender, recipients=[to or self.public])
        for number, content in enumerate(contents):
            writer.begin(f"{PATIENT} {number}.bin")
            writer.write(content)
            writer.end()
        writer.finish()
        return bytes(sealed)

    def believe(self, person: Identity, **more: Any) -> None:
        """Have the box trust a sender."""
        self.client.trust_add(person.public.name, person.public.text(), **more)

    # ── what holds after a refusal ─────────────────────────────────────────────────────────────────────

    def refuse(self, *arguments: str | Path, code: str, about: str, **more: Any) -> JobView:
        """Run a verb of ``smpctl`` that makes a job; the job must end with this error, and nothing be delivered."""
        kept = self.kept()
        done = self.box.ctl(*arguments, "--json", check=False)
        text = done.stderr.decode()
        assert done.stdout.strip(), text
        answer = msgspec.json.decode(done.stdout)
        assert "error" not in answer or "id" in answer, f"no job was made: {answer}"
        view = msgspec.convert(answer, JobView)
        assert view.error, view
        assert done.returncode == CODES[code].family.exit_code, text
        assert view.error.message in text
        assert f"hint: {view.error.hint}" in text
        return self.check(view, code, about, kept, **more)

    def check(self, view: JobView, code: str, about: str, kept: object, *, state: str = "") -> JobView:
        """The error names what it is about and what to do; the job, the audit log and the vault agree with it."""
        assert view.state in FINAL_STATES
        assert view.error
        assert view.error.code == code, view.error
        assert about in view.error.message, view.error
        assert view.error.hint, view.error
        assert PATIENT not in repr(view.error)
        expected = state or ("quarantined" if issubclass(CODES[code].family, IntegrityError) else "failed")
        assert view.state == expected, view.error
        assert exit_code(view) == CODES[code].family.exit_code
        assert view.result is None
        self.audited(view.id, f"job.{view.state}", code)
        assert self.kept() == kept
        return view

    def kept(self) -> object:
        """What was ever delivered: the vault, by rows and by files, exports, and results in the bucket."""
        objects = sorted(os.listdir(self.box.state / "vault" / "objects"))
        out = sorted(str(path) for name in ("out", "stored/results") for path in (self.folder / name).rglob("*"))
        return [item.id for item in self.client.vault()], objects, out

    def audited(self, job: str, event: str, outcome: str) -> None:
        """Find the record of a job's end, which is written just after the end is announced."""

        def records() -> list[dict[str, Any]]:
            lines = map(msgspec.json.decode, self.client.audit_lines(self.seen))
            return [record for record in lines if record.get("job") == job and record["event"] == event]

        assert until(records)[0]["outcome"] == outcome

    def refuse_all(self, objects: dict[str, bytes], codes: set[str], *, remote: str = "disk") -> dict[str, str]:
        """Get many objects at once; each must be refused with one of the codes. Returns the code of each."""
        kept, jobs = self.kept(), {}
        for name, data in objects.items():
            jobs[name] = self.client.submit(GetSpec(self.store(name, data, remote))).id
        found = {}
        for name, job in jobs.items():
            view = self.client.wait(job)
            assert view.error, f"{name} was taken"
            assert view.error.code in codes, f"{name}: {view.error}"
            self.check(view, view.error.code, f"{remote}:{name}", kept)
            found[name] = view.error.code
        return found

    def spool_of(self, view: JobView, suffix: str = "") -> list[str]:
        """What of a job is in the spool."""
        return [
            name for name in os.listdir(self.box.state / "spool") if name.startswith(view.id) and name.endswith(suffix)
        ]

    def spooled(self) -> list[str]:
        """What is in the spool."""
        return sorted(os.listdir(self.box.state / "spool"))

    def works(self) -> None:
        """A good job after all that."""
        assert self.box.process
        assert self.box.process.poll() is None
        view = self.client.wait(self.client.submit(GetSpec("s3:good.smp")).id)
        assert view.state == "done", view.error
        assert view.result
        self.client.vault_remove(view.result.vault_id)
        lines, proof = self.client.audit_read()
        notes = [note.encode() for note in proof.checkpoints]
        verify_log(lines, notes, [VerifierKey(proof.origin, proof.public_key)])
        assert not proof.broken
        self.seen = self.client.status().audit_size

    def processes(self, processor: str = "digest") -> JobView:
        """A good run after all that."""
        view = self.client.wait(self.client.submit(RunSpec("s3:good.smp", processor)).id)
        assert view.state == "done", view.error
        assert view.result
        self.client.vault_remove(view.result.vault_id)
        return view

    def no_plaintext(self) -> None:
        """Neither a byte of content nor a name is anywhere on the disk of the box or of the storage."""
        for folder in (self.box.folder, self.stored):
            for path, data in bytes_below(folder):
                assert MARK not in data, f"plaintext in {path}"
                assert PATIENT.encode() not in data, f"a name in {path}"


@contextlib.contextmanager
def replaced(path: Path, data: bytes) -> Iterator[None]:
    """A file with other content for the length of a block."""
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)
