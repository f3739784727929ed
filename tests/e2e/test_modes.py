"""The three modes of a remote: what is taken from it, and what of it touches this machine's disk."""

import shutil
from pathlib import Path

import pytest
from scene import Folder, Site, digests, read_digests, sha256, spool_empties

MIB = 1 << 20
PLACES = ["s3", "sftp"]


@pytest.fixture(scope="module")
def loose(site: Site, dicom: list[Path]) -> dict[str, str]:
    """The series as 150 plaintext objects in both remotes, and the digests of its files."""
    for folder in site.folders.values():
        (folder / "patient-0007").mkdir()
        for path in dicom:
            shutil.copyfile(path, folder / "patient-0007" / path.name)
    return {path.name: sha256(path.read_bytes()) for path in dicom}


def fragments(paths: list[Path]) -> set[bytes]:
    """The name of each file, and the 64 bytes of its pixels that are least alike."""
    found = set()
    for path in paths:
        data = path.read_bytes()
        parts = (data[at : at + 64] for at in range(len(data) // 4, len(data) - 64, 256))
        found |= {path.name.encode(), *sorted(parts, key=lambda part: len(set(part)))[-2:]}
    return found


def stamps(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """Every file below a folder: which it is, when it was changed and how long it is."""
    seen = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {path: (stat.st_ino, stat.st_ctime_ns, stat.st_size) for path, stat in seen.items()}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["get", "run"])
def test_loose_objects_are_sealed_on_arrival(site, loose, dicom, tmp_path, place, kind):
    """A folder of plaintext objects becomes one sealed object with the right entries; nothing stays in the clear."""
    source = f"{place}-standard:patient-0007/"
    command = ["get", source] if kind == "get" else ["run", "digest", source]
    before = stamps(site.box.state)
    with Folder(site.box.state / "spool") as spool:
        job = site.box.json(*command, "--export", tmp_path / "out")
        spool_empties(site.box)
        written = [path for path, stamp in stamps(site.box.state).items() if stamp != before.get(path)]
    found = digests(tmp_path / "out") if kind == "get" else read_digests(tmp_path / "out")
    assert found == loose
    assert set(spool.made) <= {f"{job['id']}.part", f"{job['id']}.out"}
    secrets = [*fragments(dicom), b"patient-0007"]
    assert len(secrets) > 300
    assert written
    for path in written:  # into what is older nothing of this job came
        data = path.read_bytes()
        assert not [each for each in secrets if each in data], f"{path} holds plaintext"
    assert not [each for each in secrets if each in site.box.log.read_bytes()]


def test_one_loose_object(site, loose, dicom, tmp_path):
    """One plaintext object is an object of one entry, named as the last part of its path."""
    site.box.ctl("get", f"s3-standard:patient-0007/{dicom[3].name}", "--export", tmp_path / "out")
    assert digests(tmp_path / "out") == {dicom[3].name: loose[dicom[3].name]}


def test_loose_objects_of_all_sizes(site, tmp_path):
    """Empty objects, and objects larger than a slot, arrive whole."""
    folder = site.folders["s3"] / "sizes" / "below"
    folder.mkdir(parents=True)
    for size in (0, 1, MIB - 1, MIB, MIB + 1, 5 * MIB + 7):
        (folder / f"{size}.bin").write_bytes(bytes(range(251)) * (size // 251) + bytes(size % 251))
    site.box.ctl("get", "s3-standard:sizes/", "--export", tmp_path / "out")
    assert digests(tmp_path / "out") == digests(site.folders["s3"] / "sizes")


@pytest.mark.parametrize("size", [0, 3])
def test_one_that_no_entry_can_be_named_after_is_named(site, size):
    """Of very many objects somebody has to find the one to rename."""
    folder = site.folders["sftp"] / f"odd-{size}"
    folder.mkdir()
    for name in ("scan.dcm", "SCAN.dcm"):  # one file for some systems
        (folder / name).write_bytes(b"x" * size)
    found = site.box.ctl("get", f"sftp-standard:odd-{size}/", check=False)
    assert found.returncode
    assert f"sftp-standard:odd-{size}/scan.dcm: ".encode() in found.stderr


def test_an_empty_folder_is_an_error(site):
    """A folder that holds nothing is an error that says where to look, not an empty object."""
    found = site.box.ctl("get", "s3-standard:nothing/here/", check=False)
    assert found.returncode == 5
    assert b"s3-standard:nothing/here/ holds no objects" in found.stderr


@pytest.mark.parametrize("place", PLACES)
def test_streaming_keeps_no_spool(site, tmp_path, place):
    """From a streaming remote a processor runs, and of what was fetched no file is ever made."""
    (tmp_path / "scan.bin").write_bytes(bytes(range(256)) * 24_000)
    site.sender.seal([tmp_path / "scan.bin"], site.folders[place] / "streamed.smp")
    with Folder(site.box.state / "spool") as spool:
        job = site.box.json("run", "digest", f"{place}-streaming:streamed.smp", "--export", tmp_path / "out")
    assert read_digests(tmp_path / "out") == {"scan.bin": sha256((tmp_path / "scan.bin").read_bytes())}
    assert set(spool.made) <= {f"{job['id']}.out"}  # the sealed result
    refused = site.box.ctl("get", f"{place}-streaming:streamed.smp", check=False)
    assert refused.returncode == 2
    assert f"{place}-streaming is in streaming mode".encode() in refused.stderr
    assert b"hint: use smpctl run" in refused.stderr


@pytest.mark.parametrize(
    ("command", "remote"), [(["get"], "s3"), (["run", "digest"], "sftp"), (["run", "digest"], "s3-streaming")]
)
def test_zero_knowledge_refuses_plaintext(site, loose, dicom, command, remote):
    """What is not sealed is refused by name, quarantined, and leaves nothing behind."""
    found = site.box.ctl(*command, f"{remote}:patient-0007/{dicom[0].name}", check=False)
    assert found.returncode == 7
    assert f"{remote}:patient-0007/{dicom[0].name}".encode() in found.stderr
    assert b"hint: " in found.stderr
