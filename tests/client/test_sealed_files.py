"""Keys and sealed files on a sender's machine: the real command, no daemon."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from client.conftest import KEY_MATERIAL, PASSPHRASE, Ran, Smpctl, run_smpctl
from client.standin import StandIn

from smp_proto import control as c
from smp_proto.errors import IntegrityError, NotFoundError, ResourceError, StateError, UsageError
from smp_proto.sealed.entries import misplaced
from smp_proto.sealed.keys import Identity
from smpctl.files import LocalFile, collect
from smpctl.keyring import Keyring, Unlock
from smpctl.sealing import rewrap_file, seal_files, sealed_file

SECRET = b"patient Smith, born 1950"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home where Ann has a key and has sealed a folder for herself: made once, each test takes of it what it needs."""
    home = tmp_path_factory.mktemp("made")
    (home / "credential").write_bytes(KEY_MATERIAL)
    (home / "scans/sub").mkdir(parents=True)
    (home / "scans/a.txt").write_bytes(SECRET)
    (home / "scans/sub/empty").write_bytes(b"")
    (home / "scans/big").write_bytes(os.urandom(1 << 20) * 3)
    options = ["--credential-file", "credential"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
        for verb in ["keys", "new", "ann"], ["seal", "scans", "-o", "x.smp", "--to", "ann"]:
            ran = run_smpctl(*verb, *options, cwd=home)
            assert ran.code == 0, ran.err
    return home


@pytest.fixture
def ann(made: Path, home: Path, key_file: Path) -> list[str]:
    """Ann's key in the ring; the options that open it."""
    shutil.copytree(made / ".config", home / ".config")
    return ["--credential-file", str(key_file)]


@pytest.fixture
def sealed(made: Path, home: Path, ann: list[str]) -> Path:
    """A folder sealed by Ann for herself."""
    shutil.copytree(made / "scans", home / "scans")
    return Path(shutil.copy(made / "x.smp", home))


def test_keys_are_private_files_sealed_by_a_passphrase(smpctl: Smpctl, home: Path) -> None:
    """A new key is one 0600 file in a 0700 folder, which opens with its passphrase only and shows no secret."""
    ran = smpctl("keys", "new", "ann", "--passphrase-file", home / "pass")
    assert ran.code == 0, ran.err
    folder = home / ".config/smp/keys"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [(path.name, path.stat().st_mode & 0o777) for path in folder.iterdir()] == [("ann.key", 0o600)]
    data = (folder / "ann.key").read_bytes()
    Identity.from_file(data, passphrase=bytearray(PASSPHRASE.encode())).wipe()
    (home / "pass").write_text("wrong\n")
    ran = smpctl("seal", "pass", "-o", "x", "--to", "ann", "--passphrase-file", home / "pass")
    assert (ran.code, "passphrase" in ran.err) == (12, True)
    assert not (home / "x").exists()


@pytest.mark.parametrize("length", [1, 60, 61, 64])
def test_a_key_is_found_whatever_the_length_of_its_name(
    smpctl: Smpctl, key_file: Path, home: Path, length: int
) -> None:
    """It is listed, and what was sealed for it opens."""
    name, options = "k" * length, ["--credential-file", str(key_file)]
    assert smpctl("keys", "new", name, *options).code == 0
    assert smpctl("keys", "list", "--json").json["name"] == name
    assert smpctl("seal", "pass", "-o", "x.smp", "--to", name, *options).code == 0
    ran = smpctl("open", "x.smp", "-o", "out", *options)
    assert ran.code == 0, ran.err


def test_export_and_import(smpctl: Smpctl, home: Path, ann: list[str]) -> None:
    """A public key goes out as one line and comes in under another name; a private key file stays sealed."""
    ran = smpctl("keys", "export", "ann")
    (home / "ann.pub").write_text(ran.out)
    assert (len(ran.out.splitlines()), "fingerprint" in ran.err) == (1, True)
    assert "compare the fingerprint" in smpctl("keys", "import", "ann.pub", "--name", "her").err
    assert smpctl("keys", "import", "-", "--name", "stdin", stdin=ran.out).code == 0
    assert smpctl("keys", "import", home / ".config/smp/keys/ann.key", "--name", "copy").code == 0
    found = {each["name"]: each["private"] for each in smpctl("keys", "list", "--json").lines}
    assert found == {"ann": True, "copy": True, "her": False, "stdin": False}
    assert smpctl("keys", "import", "ann.pub", "--name", "her").code == 10
    assert smpctl("keys", "import", "pass", "--name", "x").code == 12
    assert smpctl("keys", "import", "ann.pub", "--name", "../x").code == 2


def test_export_of_the_boxs_key(smpctl: Smpctl, daemon: StandIn) -> None:
    """--box asks the daemon; a name and --box together are refused."""
    box = Identity.generate("box").public
    daemon.answers[c.BoxKey] = c.PublicKey(box.text(), box.key_id.hex(), box.fingerprint())
    assert smpctl("keys", "export", "--box").out == box.text() + "\n"
    assert smpctl("keys", "export", "ann", "--box").code == 2
    assert smpctl("keys", "export").code == 2


def test_round_trip(smpctl: Smpctl, home: Path, sealed: Path, ann: list[str]) -> None:
    """What was sealed comes out as it went in, under relative names, in private files."""
    ran = smpctl("open", sealed, "-o", "out", *ann, "--json")
    assert ran.code == 0, ran.err
    entries = {each["name"]: msgspec.convert(each, c.EntryView) for each in ran.lines}
    assert set(entries) == {"scans/a.txt", "scans/big", "scans/sub/empty"}
    for name, entry in entries.items():
        assert (home / "out" / name).read_bytes() == (home / name).read_bytes()
        assert (home / "out" / name).stat().st_size == entry.size
    assert (home / "out/scans/a.txt").stat().st_mode & 0o077 == 0
    assert SECRET not in sealed.read_bytes()
    assert b"a.txt" not in sealed.read_bytes()


def test_open_some_and_not_over_others(smpctl: Smpctl, home: Path, sealed: Path, ann: list[str]) -> None:
    """--name takes some, an unknown one is an error, a file that is there stays unless --force."""
    assert smpctl("open", sealed, "-o", "out", "--name", "scans/a.txt", *ann).code == 0
    assert [path.name for path in (home / "out/scans").iterdir()] == ["a.txt"]
    assert smpctl("open", sealed, "-o", "out", *ann).code == 10
    assert [path.name for path in (home / "out/scans").iterdir()] == ["a.txt"]
    assert smpctl("open", sealed, "-o", "out", "--force", *ann).code == 0
    assert smpctl("open", sealed, "-o", "out2", "--name", "zz", *ann).code == 5


@pytest.mark.parametrize(
    "position", [100, 2_000_000, -100, -3000], ids=["first", "last segment", "trailer", "envelope"]
)
def test_a_changed_byte_leaves_no_file(smpctl: Smpctl, home: Path, sealed: Path, ann: list[str], position: int) -> None:
    """Wherever a byte was changed, opening fails with code 7 and nothing is left, not even the folder."""
    data = bytearray(sealed.read_bytes())
    data[position] ^= 1
    sealed.write_bytes(data)
    ran = smpctl("open", sealed, "-o", "out", *ann)
    assert ran.code == 7, ran.err
    assert not (home / "out").exists()


def test_senders_are_believed_by_import_only(smpctl: Smpctl, home: Path, sealed: Path, ann: list[str]) -> None:
    """An unknown sender is refused before a passphrase is asked for, with the fingerprint and what to type."""
    public = smpctl("keys", "export", "ann").out
    fingerprint = smpctl("keys", "export", "ann", "--json").json["fingerprint"]
    ring = home / ".config/smp/keys"
    assert smpctl("keys", "new", "bob", *ann).code == 0
    assert smpctl("rewrap", sealed, "--to", "bob", "--as", "ann", *ann).code == 0
    (ring / "ann.key").rename(home / "away")
    ran = smpctl("open", sealed, "-o", "out", "--json")
    assert (ran.code, ran.json["error"]["code"]) == (7, "untrusted_sender")
    assert fingerprint in ran.err
    assert "smpctl keys import" in ran.err
    (home / "ann.pub").write_text(public)
    assert smpctl("keys", "import", "ann.pub", "--name", "ann").code == 0
    assert smpctl("open", sealed, "-o", "out", *ann).code == 0


def test_rewrap_changes_the_envelope_only(smpctl: Smpctl, home: Path, sealed: Path, ann: list[str]) -> None:
    """After a rewrap the payload is the same bytes, the file keeps its mode, and only the new recipient opens it."""
    assert smpctl("keys", "new", "bob", *ann).code == 0
    before = sealed.read_bytes()
    sealed.chmod(0o640)
    ran = smpctl("rewrap", sealed, "--to", "bob", "-o", "y.smp", "--as", "ann", *ann)
    assert ran.code == 0, ran.err
    assert sealed.read_bytes() == before
    after = (home / "y.smp").read_bytes()
    payload = int.from_bytes(before[-24:-16], "big")
    assert after[:payload] == before[:payload]
    assert (home / "y.smp").stat().st_mode & 0o777 == 0o640
    assert smpctl("open", "y.smp", "-o", "out", "--as", "ann", *ann).code == 7
    assert smpctl("open", "y.smp", "-o", "out", *ann).code == 0
    assert smpctl("rewrap", sealed, "--to", "bob", "-o", "y.smp", "--as", "ann", *ann).code == 10
    (home / "link").symlink_to("y.smp")
    assert smpctl("rewrap", "link", "--to", "ann", *ann).code == 0
    assert (home / "link").is_symlink()
    assert smpctl("inspect", "y.smp", "--json").json["recipients"][0]["name"] == "ann"


def test_what_is_not_for_us_is_named(smpctl: Smpctl, sealed: Path, ann: list[str]) -> None:
    """With the file, and a command that can be typed as it stands; a key that is not ours is told as that."""
    smpctl("keys", "new", "eve", *ann)
    ran = smpctl("open", sealed, "-o", "out", "--as", "eve", *ann)
    assert (ran.code, f"{sealed} is not sealed for eve" in ran.err) == (7, True), ran.err
    assert "smpctl keys export eve" in ran.err
    assert smpctl("open", sealed, "-o", "out", "--as", "nobody", *ann).code == 5


def test_rewrap_where_ranges_cannot_be_copied(
    home: Path, sealed: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system without copy_file_range gets the same bytes by sendfile."""

    def none(*_args: object) -> int:
        raise OSError(18, "cross-device link")

    monkeypatch.setattr(os, "copy_file_range", none)
    ring = Keyring()
    identity = ring.unlock(ring.own("ann"), Unlock(credential_file=str(key_file)))
    with sealed_file(str(sealed)) as found:
        rewrap_file(
            found, str(home / "y"), identity=identity, trust=ring.trusted, recipients=[identity.public], overwrite=False
        )
        payload = found.trailer.payload_bytes
    identity.wipe()
    assert (home / "y").read_bytes()[:payload] == sealed.read_bytes()[:payload]


def test_what_inspect_calls_checked_is_what_it_shows(smpctl: Smpctl, sealed: Path, ann: list[str], home: Path) -> None:
    """A file that is exchanged for a good one while a key is asked for is not shown as it was before, and called checked."""
    good = sealed.read_bytes()
    object_id = bytes.fromhex(smpctl("inspect", sealed, "--json").json["object_id"])
    sealed.write_bytes(good.replace(object_id, bytes(16)))
    os.mkfifo(home / "pipe")

    def exchange() -> None:
        with (home / "pipe").open("wb") as pipe:  # opens when somebody reads it
            sealed.write_bytes(good)
            pipe.write(KEY_MATERIAL)

    with ThreadPoolExecutor(1) as threads:
        threads.submit(exchange)
        ran = smpctl("inspect", sealed, "--json", "--credential-file", home / "pipe")
    assert (ran.code, "signature" in ran.err) == (7, True)


def test_inspect_with_and_without_a_key(smpctl: Smpctl, sealed: Path, ann: list[str]) -> None:
    """Without a key sizes and fingerprints show, unchecked, and no name; with one, the names."""
    ran = smpctl("inspect", sealed)
    assert (ran.code, "not checked" in ran.out, "a.txt" in ran.out) == (0, True, False)
    assert "--as NAME" in ran.out
    ran = smpctl("inspect", sealed, *ann)
    assert (ran.code, "not checked" in ran.out, "scans/a.txt" in ran.out) == (0, False, True)
    found = smpctl("inspect", sealed, *ann, "--json").json
    assert msgspec.convert(found["entries"], list[c.EntryView])[0].name == "scans/a.txt"
    (sealed.parent / "plain").write_bytes(b"x" * 100)
    assert smpctl("inspect", "plain").code == 7
    assert smpctl("inspect", "nothing").code == 5


def test_an_object_can_be_bound_to_its_place(smpctl: Smpctl, home: Path, sealed: Path, ann: list[str]) -> None:
    """The first entry says where it is to lie, under the signature; a file opens all the same."""
    ran = smpctl("seal", "scans", "-o", "y.smp", "--to", "ann", "--place", "in/y.smp", *ann)
    assert ran.code == 0, ran.err
    (found,) = smpctl("inspect", "y.smp", "--as", "ann", "--json", *ann).lines
    assert [each["attributes"] for each in found["entries"]] == [{"smp.place": "in/y.smp"}, {}, {}]
    assert smpctl("open", "y.smp", "-o", "out", *ann).code == 0


@pytest.mark.parametrize(
    "place", ["/pl.smp", "lake:pl.smp", "lake:in/pl.smp", "./pl.smp", "a/../pl.smp", "pl.smp/", "a\nb", "\udcff"]
)
def test_a_place_where_nothing_can_lie_is_refused(smpctl: Smpctl, home: Path, ann: list[str], place: str) -> None:
    """Nobody could open the object anywhere; it is said when it is sealed, and nothing is written."""
    ran = smpctl("seal", "pass", "-o", "y.smp", "--to", "ann", "--place", place, *ann)
    assert (ran.code, "the place" in ran.err, "hint: give the path" in ran.err) == (2, True, True), ran.err
    assert not (home / "y.smp").exists()


@pytest.mark.parametrize("place", ["pl.smp", "in/a:c.smp", "2026-01-01T10:00.smp", "ä/ö.smp", ".hidden/x"])
def test_places_of_all_kinds(place: str, home: Path) -> None:
    """What can be the end of an object's path is taken."""
    sender = Identity.generate()
    found = seal_files(
        [LocalFile("p", str(home / "pass"))], str(home / "o"), sender=sender, recipients=[sender.public], place=place
    )
    assert not misplaced(found.entries, f"in/{place}")
    with pytest.raises(UsageError):
        seal_files([], str(home / "p"), sender=sender, recipients=[sender.public], place=f"/{place}")


def test_names_left_out_are_shown_and_not_obeyed(smpctl: Smpctl, home: Path, ann: list[str]) -> None:
    """A link may have any name; what a terminal would obey in it is spelled."""
    (home / "d").mkdir()
    (home / "d/a").write_bytes(b"x")
    (home / "d/x\x1b[2J\ny").symlink_to("a")
    ran = smpctl("seal", "d", "-o", "d.smp", "--to", "ann", *ann)
    assert (ran.code, "\x1b" in ran.err) == (0, False), ran.err
    assert "smpctl: left out d/x\\x1b[2J\\ny: a link or no file\n" in ran.err


def test_what_an_export_left_is_sealed_by_nobody(home: Path) -> None:
    """A program that was killed may have left files in the clear, which are not the folder's."""
    (home / "scans/.smp-0123456789abcdef.part").mkdir(parents=True)
    for name in ("a", ".smp-0123456789abcdef.part/0", ".smp-fedcba9876543210.part"):
        (home / "scans" / name).write_bytes(SECRET)
    assert [file.name for file in collect([home / "scans"])] == ["scans/a"]


@pytest.mark.parametrize(
    ("names", "named"), [(["b/A.txt", "b/a.txt"], "b/a.txt"), (["b/x", "b/c\\d"], "c\\\\d"), (["b/n\nm"], "n\\nm")]
)
def test_a_name_that_cannot_be_sealed_is_told(home: Path, names: list[str], named: str) -> None:
    """Which it is, before anything is read: among thousands nobody would find it."""
    for name in names:
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text("x")
    with pytest.raises(UsageError) as caught:
        collect([home / "b"])
    assert (caught.value.code, named in caught.value.message) == ("bad_name", True), caught.value.message


def test_seal_refuses_to_overwrite(smpctl: Smpctl, home: Path, sealed: Path, ann: list[str]) -> None:
    """A file of the name stays unless --force; a failure leaves nothing beside it."""
    before = sealed.read_bytes()
    assert smpctl("seal", "scans", "-o", sealed, "--to", "ann", *ann).code == 10
    assert sealed.read_bytes() == before
    assert smpctl("seal", "scans", "-o", sealed, "--to", "ann", *ann, "--force").code == 0
    assert sealed.read_bytes() != before
    assert smpctl("seal", "nothing", "-o", "z.smp", "--to", "ann", *ann).code == 5
    assert smpctl("seal", "scans", "-o", "z.smp", "--to", "nobody", *ann).code == 5
    assert smpctl("seal", "scans", "-o", "no/such/folder/z.smp", "--to", "ann", *ann).code == 8
    assert not [name for name in os.listdir(home) if "z.smp" in name or name.endswith(".part")]


def test_the_only_key_signs_unless_told(smpctl: Smpctl, home: Path, ann: list[str]) -> None:
    """With several keys --from is needed; with none, how to make one is said."""
    assert smpctl("keys", "new", "bob", *ann).code == 0
    ran = smpctl("seal", "pass", "-o", "x", "--to", "ann", *ann)
    assert (ran.code, "ann, bob" in ran.err, "--from ann" in ran.err) == (2, True, True)
    assert smpctl("seal", "pass", "-o", "x", "--to", "ann", "--from", "bob", *ann).code == 0
    assert smpctl("inspect", "x", "--json").json["sender"]["name"] == "bob"
    ran = smpctl("seal", "pass", "-o", "y", "--to", "ann", "--from", "eve", *ann)
    assert (ran.code, "smpctl keys new eve" in ran.err) == (5, True)


def test_a_recipient_may_be_a_file(smpctl: Smpctl, home: Path, ann: list[str]) -> None:
    """--to takes a public key's file as well, without importing it."""
    stranger = Identity.generate("eve").public
    (home / "eve.pub").write_text(stranger.text())
    assert smpctl("seal", "pass", "-o", "x", "--to", "eve.pub", *ann).code == 0
    assert smpctl("inspect", "x", "--json").json["recipients"] == [{"fingerprint": stranger.fingerprint(), "name": ""}]


def test_the_box_is_the_daemons_and_no_file_at_hand(
    smpctl: Smpctl, home: Path, ann: list[str], daemon: StandIn
) -> None:
    """Who may put files where somebody works does not become who can open what is sealed there."""
    box, other = Identity.generate().public, Identity.generate().public
    daemon.answers[c.BoxKey] = c.PublicKey(box.text(), box.key_id.hex(), box.fingerprint())
    (home / "box").write_text(other.text())
    ran = smpctl("seal", "pass", "-o", "x.smp", "--to", "box", *ann, "--json")
    assert ran.json["recipients"] == [box.fingerprint()], ran.err
    ran = smpctl("seal", "pass", "-o", "y.smp", "--to", "./box", *ann, "--json")
    assert ran.json["recipients"] == [other.fingerprint()], ran.err


def test_without_a_terminal_nobody_is_asked(smpctl: Smpctl) -> None:
    """Where there is no terminal, a passphrase that is needed is an error that names the option."""
    ran = smpctl("keys", "new", "ann")
    assert (ran.code, "--passphrase-file" in ran.err) == (2, True)
    assert smpctl("keys", "new", "ann", "--passphrase-file", "a", "--credential-file", "b").code == 2


def test_a_file_that_grows_while_it_is_sealed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What changes its length under our hands is no object; nothing is left of it."""
    path = home / "growing"
    path.write_bytes(b"x" * 10)
    real = LocalFile.open
    monkeypatch.setattr(LocalFile, "open", lambda self: (real(self)[0], 9))
    sender = Identity.generate()
    with pytest.raises(IntegrityError, match="something writes to it"):
        seal_files([LocalFile("g", str(path))], str(home / "o"), sender=sender, recipients=[sender.public])
    assert sorted(os.listdir(home)) == ["growing", "pass"]


def test_a_file_that_went_before_it_is_sealed(home: Path) -> None:
    """A file that is not there any more is ``no_such_file``, and nothing is written."""
    sender = Identity.generate()
    with pytest.raises(NotFoundError) as caught:
        seal_files([LocalFile("g", str(home / "gone"))], str(home / "o"), sender=sender, recipients=[sender.public])
    assert caught.value.code == "no_such_file"
    assert os.listdir(home) == ["pass"]


def test_a_full_disk_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full the error says so, and no part of the file stays."""
    (home / "big").write_bytes(bytes(3 << 20))
    real = os.write

    def full(fd: int, data: bytes) -> int:
        if len(data) > 1000:
            raise OSError(28, "no space left on device")
        return real(fd, data)

    monkeypatch.setattr(os, "write", full)
    sender = Identity.generate()
    with pytest.raises(ResourceError) as caught:
        seal_files([LocalFile("b", str(home / "big"))], str(home / "o"), sender=sender, recipients=[sender.public])
    assert caught.value.code == "disk_full"
    assert sorted(os.listdir(home)) == ["big", "pass"]


def test_memory_stays_the_same_and_no_plaintext_is_written_elsewhere(
    smpctl: Smpctl, home: Path, ann: list[str]
) -> None:
    """Sealing 192 MiB takes no more memory than 1 MiB, within 24 MiB; nothing lies in a temporary folder."""
    temporary = home / "tmp"
    temporary.mkdir()

    def peak(size: int) -> int:
        with (home / "data").open("wb") as file:
            file.truncate(size)
        command = [sys.executable, "-m", "smpctl", "seal", "data", "-o", "o", "--force", "--to", "ann", *ann]
        code = f"import resource, subprocess; subprocess.run({command!r}, check=True)\n"
        code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        environment = {**os.environ, "TMPDIR": str(temporary)}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=home, env=environment, capture_output=True, check=True, text=True
        )
        return int(done.stdout.splitlines()[-1])

    assert peak(192 << 20) - peak(1 << 20) < 24 << 10
    assert os.listdir(temporary) == []


def test_ran_is_what_it_says(smpctl: Smpctl) -> None:
    """The keyring of a new home is empty, and says what to type."""
    ran: Ran = smpctl("keys", "list")
    assert (ran.code, "smpctl keys new" in ran.out) == (0, True)


def test_a_key_that_came_meanwhile(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two are made under one name at once: the later one is told that there is one, as ever."""
    ring, text = Keyring(), Identity.generate().public.text().encode()
    ring.add("x", text, private=False)
    monkeypatch.setattr(ring, "find", lambda _name: None)
    with pytest.raises(StateError) as caught:
        ring.add("x", text, private=False)
    assert caught.value.code == "exists"
