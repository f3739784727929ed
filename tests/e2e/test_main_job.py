"""The main job: a sealed object in storage, to the device, to a sealed result, by commands."""

import contextlib
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scene import Site, add_remote, children, digests, read_digests, spool_empties
from servers import BUCKET, admin, sshd

PLACES = ["s3", "sftp"]
MIB = 1 << 20


@pytest.fixture(scope="module")
def series(site: Site, dicom: list[Path]) -> Path:
    """The series, sealed by the sender for the box, in both remotes."""
    file = site.sender.seal(dicom, site.sender.folder / "series.smp")
    for folder in site.folders.values():
        shutil.copyfile(file, folder / "series.smp")
    return file


def expected(files: list[Path]) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_sealed_series_names_nothing(site, series, dicom):
    """Neither a file's name nor its content is to be read in the object that lies in storage."""
    stored = series.read_bytes()
    assert json.loads(site.sender.ctl("inspect", series, "--json").stdout)["sealed_bytes"] == len(stored)
    assert not [path.name for path in dicom if path.stem.encode() in stored or path.read_bytes()[-64:] in stored]


@pytest.mark.parametrize("place", PLACES)
def test_digests_of_a_series(site, series, dicom, tmp_path, place):
    """Every SHA-256 that the device computes is that of the file the sender had."""
    job = site.box.json("run", "digest", f"{place}:series.smp", "--export", tmp_path / "out")
    assert read_digests(tmp_path / "out") == expected(dicom)
    assert job["transfer"]["device"] == "cpu"
    assert job["transfer"]["fetched_bytes"] < series.stat().st_size + MIB


@pytest.mark.parametrize("place", PLACES)
def test_a_series_comes_into_the_vault_and_out_again(site, series, dicom, tmp_path, place):
    """What get --export lays down is byte for byte what was sealed; the vault holds the sealed object itself."""
    job = site.box.json("get", f"{place}:series.smp", "--export", tmp_path / "out")
    assert digests(tmp_path / "out") == expected(dicom)
    assert job["result"]["entries"] == 150
    kept = site.box.state / "vault" / "objects" / f"{job['result']['vault_id']}.smp"
    assert kept.read_bytes() == series.read_bytes()
    spool_empties(site.box)


def test_digests_over_openssh(site, dicom, tmp_path):
    """The same from OpenSSH's own server."""
    (tmp_path / "keys").mkdir()
    with sshd(tmp_path / "root", tmp_path / "keys") as served:
        add_remote(site.box, "openssh", served)
        site.sender.seal(dicom[:20], tmp_path / "root" / "part.smp")
        site.box.ctl("run", "digest", "openssh:part.smp", "--export", tmp_path / "out")
        site.box.ctl("remote", "remove", "openssh")
    assert read_digests(tmp_path / "out") == expected(dicom[:20])
    assert site.box.process
    assert not [line for line in children(site.box.process.pid).values() if "openssh" in line]


@pytest.mark.parametrize("sizes", [[0], [0, 0, 0], [1], [MIB - 57, 1, 0], [3 * MIB, 0, 5]])
def test_sizes_around_the_boundaries(site, tmp_path, sizes):
    """Empty entries, and objects that end at a segment or a range, come through get and run alike."""
    files = []
    for number, size in enumerate(sizes):
        path = tmp_path / f"{number}.bin"
        path.write_bytes(np.random.default_rng(number).bytes(size))
        files.append(path)
    name = f"sizes-{'-'.join(map(str, sizes))}.smp"
    site.sender.seal(files, tmp_path / name)
    # Through the server: what appears in its folder by another way it may see a moment later.
    admin(site.served["s3"]).put_object(Bucket=BUCKET, Key=name, Body=(tmp_path / name).read_bytes())
    site.box.ctl("get", f"s3:{name}", "--export", tmp_path / "get")
    site.box.ctl("run", "digest", f"s3:{name}", "--export", tmp_path / "run")
    assert digests(tmp_path / "get") == read_digests(tmp_path / "run") == expected(files)


@pytest.mark.parametrize("place", PLACES)
def test_put_for_someone_else(site, tmp_path, place):
    """A put goes up in several parts; the one it is for opens it, the box that sealed it cannot."""
    data = np.random.default_rng(1).bytes(18 * MIB + 3)
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "scan.bin").write_bytes(data)
    (tmp_path / "note.txt").write_text("for the doctor")
    name = f"{place}-put.smp"
    arguments = ["put", tmp_path / "folder", tmp_path / "note.txt", f"{place}:{name}", "--to", "doctor", "--json"]
    job = json.loads(site.sender.ctl(*arguments).stdout)
    assert job["result"]["target"] == f"{place}:{name}"
    stored = site.folders[place] / name
    assert stored.stat().st_size == job["result"]["sealed_bytes"]
    with contextlib.suppress(FileExistsError):
        site.doctor.ctl("keys", "import", box_public(site, tmp_path), "--name", "theirs", check=False)
    found = site.doctor.open(stored, tmp_path / "opened")
    assert {Path(key).name: value for key, value in found.items()} == {"scan.bin": data, "note.txt": b"for the doctor"}
    refused = site.box.ctl("get", f"{place}:{name}", check=False)
    assert refused.returncode == 7
    assert b"hint" in refused.stderr


def box_public(site: Site, folder: Path) -> Path:
    path = folder / "box.pub"
    path.write_bytes(site.box.ctl("keys", "export", "--box").stdout)
    return path


@pytest.fixture(scope="module")
def photograph(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real photograph, sealed, in the bucket."""
    from skimage import data

    path = tmp_path_factory.mktemp("photograph") / "astronaut.png"
    Image.fromarray(data.astronaut()).save(path)
    site.sender.seal([path], site.folders["s3"] / "photograph.smp")
    return path


@pytest.mark.parametrize(
    ("processor", "parameters", "size"),
    [
        ("image.resize", ["-p", "width=128", "-p", "height=96", "-p", "keep_aspect=false"], (128, 96)),
        ("image.edges", [], (512, 512)),
    ],
)
def test_a_photograph_there_and_back(site, photograph, tmp_path, processor, parameters, size):
    """A processed photograph is delivered sealed, and its sender opens it."""
    target = f"sftp:results/{processor}.smp"
    site.box.ctl("run", processor, "s3:photograph.smp", *parameters, "--to", target)
    site.sender.open(site.folders["sftp"] / "results" / f"{processor}.smp", tmp_path / "opened")
    (result,) = [path for path in (tmp_path / "opened").rglob("*") if path.is_file()]
    with Image.open(result) as image:
        assert image.size == size
    site.box.ctl("run", processor, "s3:photograph.smp", *parameters, "--export", tmp_path / "exported")
    (exported,) = [path for path in (tmp_path / "exported").rglob("*") if path.is_file()]
    assert exported.read_bytes() == result.read_bytes()


def test_a_result_delivered_under_a_folder_is_named_by_its_job(site, photograph, tmp_path):
    """A target that ends in / gets an object named by the job, so that a repeated delivery is the same one."""
    job = site.box.json("run", "digest", "s3:photograph.smp", "--to", "s3:out/")
    assert job["result"]["target"] == f"s3:out/{job['id']}.smp"
    assert (site.folders["s3"] / "out" / f"{job['id']}.smp").exists()
    spool_empties(site.box)
