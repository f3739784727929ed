"""Jobs over a prefix: every sealed object below it, small and large, as one job."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from box import box as running
from scene import Site, client, digests, read_digests, sha256, spool_empties
from sealed.forge import forge

from smp_proto.control import GetSpec, LocalConfig
from smp_proto.errors import SmpError
from smp_proto.sealed.bundle import BundleWriter
from smp_proto.sealed.keys import Identity, PublicIdentity

MIB = 1 << 20
# Empty, small ones that share a slot of 1 MiB, one that fills it almost, and ones of several ranges.
SIZES = {
    "a/empty": 0,
    "a/one": 1,
    **{f"b/{n:03}": 3000 + n for n in range(300)},
    "c/full": MIB - 5000,
    "c/big": 3 * MIB,
}


def seal(path: Path, sender: Identity, recipient: PublicIdentity, entries: dict[str, bytes]) -> None:
    """One sealed object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        writer = BundleWriter(file.write, sender=sender, recipients=[recipient])
        for name, data in entries.items():
            writer.begin(name, "application/octet-stream")
            writer.write(data)
            writer.end()
        writer.finish()


@pytest.fixture(scope="module")
def sender(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """Someone the box believes."""
    identity = Identity.generate("scanner")
    path = tmp_path_factory.mktemp("scanner") / "public"
    path.write_text(identity.public.text())
    site.box.ctl("trust", "add", "scanner", path)
    return identity


@pytest.fixture(scope="module")
def box(site: Site) -> PublicIdentity:
    with client(site.box) as found:
        return PublicIdentity.parse(found.box_key().text)


@pytest.fixture(scope="module")
def many(site: Site, sender: Identity, box: PublicIdentity) -> dict[str, bytes]:
    """Objects of all sizes in both remotes, and what is in each."""
    contents = {name: os.urandom(size) for name, size in SIZES.items()}
    for folder in site.folders.values():
        for name, data in contents.items():
            seal(folder / "many" / f"{name}.smp", sender, box, {f"{name.replace('/', '-')}.bin": data})
    return contents


def kept(site: Site, job: str = "") -> list[dict[str, Any]]:
    """What the vault holds, of a job."""
    lines = site.box.ctl("vault", "ls", "--json", *(["--job", job] if job else [])).stdout.splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("place", ["s3", "sftp"])
def test_get_brings_every_object(site, many, tmp_path, place):
    """Each is an item of the vault, of the same job; exported, every file is what was sealed; the spool is empty."""
    before = {item["id"] for item in kept(site)}
    job = site.box.json("get", f"{place}:many/", "--export", tmp_path / "out")
    expected = {f"{name.replace('/', '-')}.bin": sha256(data) for name, data in many.items()}
    assert digests(tmp_path / "out") == expected
    result = job["result"]
    assert (result["objects"], result["entries"]) == (len(many), len(many))
    assert result["plain_bytes"] == sum(map(len, many.values()))
    assert job["done_bytes"] == job["total_bytes"] == result["sealed_bytes"]
    items = kept(site, job["id"])
    assert len(items) == len(many)
    assert not before & {item["id"] for item in items}
    spool_empties(site.box)


@pytest.mark.parametrize("remote", ["s3", "s3-streaming", "sftp-streaming"])
def test_run_names_results_after_their_objects(site, many, tmp_path, remote):
    """One sealed result holds what a processor said of each object, below the object's own name."""
    site.box.ctl("run", "digest", f"{remote}:many/", "--export", tmp_path / "out")
    for name, data in many.items():
        assert read_digests(tmp_path / "out" / name) == {f"{name.replace('/', '-')}.bin": sha256(data)}
    spool_empties(site.box)


def test_each_object_is_recorded_before_it_is_opened_and_kept(site, many):
    """The audit log has one record for each object and act, under the object's pseudonym."""
    job = site.box.json("get", "s3:many/")["id"]
    lines = site.box.ctl("audit", "tail", "-n", "2000", "--json").stdout.splitlines()
    records = [json.loads(line) for line in lines]
    for event in ("object.open", "object.store"):
        assert len({r["subject"] for r in records if r["job"] == job and r["event"] == event}) == len(many)


def test_what_is_refused_does_not_keep_the_others(site, sender, box, tmp_path):
    """A bad object among good ones: the good are kept, the job is quarantined and says which and how many."""
    folder = site.folders["s3"] / "mixed"
    for number in range(5):
        seal(folder / f"{number}.smp", sender, box, {f"{number}.bin": bytes([number])})
    seal(folder / "large.smp", sender, box, {"large.bin": os.urandom(3 * MIB)})
    data = bytearray((folder / "large.smp").read_bytes())
    data[2 * MIB] ^= 1
    (folder / "large.smp").write_bytes(data)
    (folder / "notes.txt").write_bytes(b"not sealed")
    seal(folder / "stranger.smp", Identity.generate("stranger"), box, {"x": b"x"})
    for size, name in ((5, "forged.smp"), (3 * MIB, "forged large.smp")):  # each segment opens, the whole is another
        signed = {"content_digest": bytes(32)}
        (folder / name).write_bytes(forge(bytes(size), sender=sender, recipients=[box], signed=signed))
    found = site.box.ctl("get", "s3:mixed/", "--json", check=False)
    job = json.loads(found.stdout)
    assert job["state"] == "quarantined"
    assert "s3:mixed/" in job["error"]["message"]
    assert "5 of 10 were refused" in job["error"]["message"]
    assert len(kept(site, job["id"])) == 5
    with client(site.box) as caller:
        items = caller.quarantine(job["id"])
        assert sorted(item.code for item in items) == ["corrupt"] * 3 + ["not_sealed", "untrusted_sender"]
    assert len(list((site.box.state / "spool").glob(f"{job['id']}*"))) == 4  # all but what may be plaintext
    # Mended, the same job goes on: what it has is not fetched again.
    for name in ("notes.txt", "stranger.smp", "forged.smp", "forged large.smp"):
        (folder / name).unlink()
    data[2 * MIB] ^= 1
    (folder / "large.smp").write_bytes(data)
    site.box.ctl("job", "resume", job["id"])
    site.box.ctl("job", "wait", job["id"])
    done = site.box.json("job", "show", job["id"])
    assert (done["state"], done["result"]["objects"]) == ("done", 6)
    spool_empties(site.box)
    assert done["transfer"]["resumed_bytes"] > 0
    site.box.ctl("run", "digest", "s3:mixed/", "--export", tmp_path / "out")
    assert len(digests(tmp_path / "out")) == 12


def test_a_run_delivers_nothing_unless_all_is_whole(site, sender, box):
    """One flipped bit in one of many objects: the run is quarantined, names the object, and nothing is delivered."""
    folder = site.folders["s3"] / "spoilt"
    for number in range(20):
        seal(folder / f"{number:02}.smp", sender, box, {"scan.bin": os.urandom(5000)})
    data = bytearray((folder / "13.smp").read_bytes())
    data[100] ^= 1
    (folder / "13.smp").write_bytes(data)
    found = site.box.ctl("run", "digest", "s3:spoilt/", "--to", "s3:results/", "--json", check=False)
    job = json.loads(found.stdout)
    assert (job["state"], job["error"]["code"]) == ("quarantined", "corrupt")
    assert "s3:spoilt/13.smp" in job["error"]["message"]
    assert not list((site.folders["s3"] / "results").glob("*"))
    site.box.ctl("job", "cancel", job["id"])
    site.box.ctl("run", "digest", "s3:many/a/")


def test_groups_are_objects(site, sender, box, tmp_path):
    """A processor that takes all entries of an object at once gets each object by itself, of thousands of entries too."""
    folder = site.folders["s3"] / "series"
    sizes = {"one": 3, "two": 3000}
    for name, count in sizes.items():
        seal(folder / f"{name}.smp", sender, box, {f"slice-{n:05}-{'x' * 180}": b"%d" % n for n in range(count)})
    site.box.ctl("run", "digest", "s3:series/", "--export", tmp_path / "out")
    assert {name: len(read_digests(tmp_path / "out" / name)) for name in sizes} == sizes


def test_the_results_are_for_every_sender(site, many, tmp_path):
    """Unless told otherwise, whoever sealed one of the objects can open the results, and so can the box."""
    (tmp_path / "scan.bin").write_bytes(b"scan")
    for person in (site.sender, site.doctor):
        file = site.folders["s3"] / "both" / f"{person.name}.smp"
        file.parent.mkdir(exist_ok=True)
        person.seal([tmp_path / "scan.bin"], file)
    job = site.box.json("run", "digest", "s3:both/", "--to", "s3:both-results/")
    result = site.folders["s3"] / job["result"]["target"].partition(":")[2]
    for person in (site.sender, site.doctor):
        assert "doctor/SHA256SUMS" in person.open(result, tmp_path / person.name)


def test_a_killed_daemon_goes_on_with_what_is_missing(tmp_path):
    """SIGKILL in the middle of a get over a prefix: it ends by itself, each object is kept once, none is kept twice."""
    config = {"fetch": {"slots": 2, "slot_bytes": MIB, "processes": 1}}
    sender, count = Identity.generate("scanner"), 1500
    with running(tmp_path / "box", config) as machine:
        with client(machine) as caller:
            key = PublicIdentity.parse(caller.box_key().text)
            caller.trust_add("scanner", sender.public.text())
            for number in range(count):
                seal(tmp_path / "store" / f"{number:04}.smp", sender, key, {f"{number}.bin": b"%d" % number * 500})
            caller.remote_add("disk", LocalConfig(str(tmp_path / "store")))
            job = caller.submit(GetSpec("disk:")).id
            while not caller.vault(job):
                pass
        machine.kill()
        machine.start()
        with client(machine) as caller:
            view = caller.wait(job)
            assert (view.state, view.result.objects) == ("done", count)
            assert 0 < view.transfer.resumed_bytes < view.result.sealed_bytes
            assert len({item.object_id for item in caller.vault(job)}) == len(caller.vault(job)) == count
        spool_empties(machine)
        assert len(list((machine.state / "vault" / "objects").iterdir())) == count


def test_nothing_below_it(site):
    """A prefix without objects is an error that says where to look."""
    for command in (["get"], ["run", "digest"]):
        found = site.box.ctl(*command, "s3:nothing/", check=False)
        assert found.returncode == 5
        assert b"s3:nothing/ holds no objects" in found.stderr


def test_a_prefix_cannot_be_kept_of_a_streaming_remote(site, many):
    """What is never to touch a disk is not gotten, however it is named."""
    with client(site.box) as caller:
        view = caller.wait(caller.submit(GetSpec("s3-streaming:many/")).id)
    assert view.state == "failed"
    assert view.error
    assert SmpError.from_body(view.error).code == "bad_request"
