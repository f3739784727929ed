"""Objects kept on this box, and what is left after a crash at any step."""

import contextlib
import errno
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from smp_proto import durable
from smp_proto.control import VaultItem
from smp_proto.errors import IntegrityError, NotFoundError, ResourceError, SmpError, StateError, UsageError
from smpd.jobs.database import Database
from smpd.jobs.seal import StateSeal
from smpd.vault.objects import Adoption, Vault

JOB = "0123456789abcdef"
OTHER = "0123456789abcdeg"
BODY = b"sealed bytes " * 100
FACTS = {
    "object_id": bytes(range(16)),
    "sender_key_id": b"\x01\x02",
    "size": len(BODY),
    "entries": 2,
    "plain_bytes": 1000,
}


class Place:
    """A vault with a spool beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.spool = root / "spool"
        self.spool.mkdir(exist_ok=True)
        self.db = Database(str(root / "smp.db"))
        self.vault = Vault(str(root / "vault"), self.db, StateSeal(bytearray(32)), wall=lambda: 123.0)
        self.files = root / "vault" / "objects"

    def part(self, body: bytes = BODY) -> str:
        path = self.spool / f"{JOB}.part"
        path.write_bytes(body)
        path.chmod(0o640)
        return str(path)

    def adopt(self, part: str, job: str) -> VaultItem:
        self.vault.adopt(job, [Adoption(job, part, **FACTS)])
        return self.vault.get(job)

    def close(self) -> None:
        self.vault.close()
        self.db.close()


@pytest.fixture
def place(tmp_path: Path):
    place = Place(tmp_path)
    yield place
    place.close()


def test_adopt_list_open_remove(place: Place) -> None:
    """An object moves in with its facts, opens for reading only, and goes without a trace."""
    item = place.adopt(place.part(), JOB)
    assert (item.id, item.job, item.object_id, item.sender) == (JOB, JOB, bytes(range(16)).hex(), "0102")
    assert (item.size, item.entries, item.created) == (len(BODY), 2, 123.0)
    assert [item] == place.vault.list()
    assert item == place.vault.get(JOB)
    assert not list(place.spool.iterdir())
    assert stat.S_IMODE((place.files / f"{JOB}.smp").stat().st_mode) == 0o600
    assert stat.S_IMODE(place.files.stat().st_mode) == 0o700
    fd = place.vault.open_fd(JOB)
    assert os.read(fd, 10**6) == BODY
    with pytest.raises(OSError, match="Bad file"):
        os.write(fd, b"x")
    os.close(fd)
    assert item == place.vault.remove(JOB)
    assert (place.vault.list(), list(place.files.iterdir())) == ([], [])
    with pytest.raises(NotFoundError) as caught:
        place.vault.remove(JOB)
    assert caught.value.code == "no_such_object"


def test_no_page_after_what_is_gone(place: Place) -> None:
    """An item that went meanwhile is not taken for the last of all."""
    for job in (OTHER, JOB):
        place.adopt(place.part(), job)
    assert [each.id for each in place.vault.list(before=JOB)] == [OTHER]
    assert not place.vault.list(before=OTHER)
    place.vault.remove(JOB)
    with pytest.raises(NotFoundError) as caught:
        place.vault.list(before=JOB)
    assert caught.value.code == "no_such_object"


def test_adopt_again_gives_the_same_item(place: Place) -> None:
    """The same job adopts once, with or without its part; a new part of it is left to the spool."""
    item = place.adopt(place.part(), JOB)
    assert item == place.adopt(str(place.spool / "gone"), JOB)
    assert item == place.adopt(place.part(b"other"), JOB)
    fd = place.vault.open_fd(JOB)
    assert os.read(fd, 10**6) == BODY
    os.close(fd)
    assert len(place.vault.list()) == 1


def test_many_are_adopted_as_one(place: Place) -> None:
    """A job's objects move in together, once, and are listed by job and page by page."""
    place.adopt(place.part(), OTHER)
    ids = [f"{number:016}" for number in range(9)]
    items = []
    for number in ids:
        path = place.spool / f"{JOB}.{number}.part"
        path.write_bytes(BODY)
        items.append(Adoption(number, str(path), **FACTS))
    place.vault.adopt(JOB, items[:5])
    place.vault.adopt(JOB, items)
    assert place.vault.adopted(JOB) == set(ids)
    assert not list(place.spool.iterdir())
    assert [item.id for item in place.vault.list()] == [*reversed(ids), OTHER]
    assert [item.id for item in place.vault.list(JOB)] == ids[::-1]
    assert [item.id for item in place.vault.list(JOB, before=ids[3], limit=2)] == [ids[2], ids[1]]
    assert place.vault.list(JOB, before=ids[0]) == []
    found = place.vault.summary(JOB)
    assert (found.objects, found.entries, found.plain_bytes, found.sealed_bytes) == (9, 18, 9000, 9 * len(BODY))
    assert all((place.files / f"{number}.smp").read_bytes() == BODY for number in ids)


def test_what_else_is_to_be_true_is_written_with_it(place: Place) -> None:
    """Or neither is; the file is there then, and adopting goes on from it."""
    item = Adoption(JOB, place.part(), **FACTS)

    def fail(connection: sqlite3.Connection) -> None:
        raise StateError("wrong_state", "no")

    with pytest.raises(StateError):
        place.vault.adopt(JOB, [item], fail)
    assert place.vault.list() == []
    seen = []
    place.vault.adopt(JOB, [item], lambda connection: seen.append(connection.in_transaction))
    assert seen == [True]
    assert [each.id for each in place.vault.list()] == [JOB]


def test_one_of_many_that_is_cut_keeps_all_out(place: Place) -> None:
    """A file of another size is refused before any of the others has moved."""
    items = []
    for number in range(6):
        path = place.spool / f"{number}.part"
        path.write_bytes(BODY[: len(BODY) - (number == 5)])
        items.append(Adoption(f"{number:016}", str(path), **FACTS))
    with pytest.raises(IntegrityError):
        place.vault.adopt(JOB, items)
    assert (place.vault.list(), list(place.files.iterdir())) == ([], [])


def test_adopt_refuses_what_is_not_the_object(place: Place, tmp_path: Path) -> None:
    """Another length, no file, a link, and an id that is a path are refused; nothing moves in."""
    with pytest.raises(IntegrityError, match="not 1300") as caught:
        place.adopt(place.part(BODY[:-1]), JOB)
    assert caught.value.code == "truncated"
    with pytest.raises(NotFoundError) as missing:
        place.adopt(str(place.spool / "gone"), JOB)
    assert missing.value.code == "no_such_file"
    (place.spool / "link").symlink_to(place.part())
    with pytest.raises(ResourceError):
        place.adopt(str(place.spool / "link"), JOB)
    for bad in ("../../0123456789", "", JOB + "/", JOB.upper(), JOB + "\n"):
        with pytest.raises(UsageError):
            place.adopt(place.part(), bad)
    assert (place.vault.list(), list(place.files.iterdir())) == ([], [])


def test_a_removal_that_was_cut_off_is_finished_at_start(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it began the object is neither listed nor opened, and the next start finishes; a disk that still fails waits."""
    place.adopt(place.part(), JOB)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(durable, "remove", fail)
        with pytest.raises(ResourceError):
            place.vault.remove(JOB)
        assert (place.vault.list(), place.vault.count()) == ([], 0)
        with pytest.raises(NotFoundError):
            place.vault.open_fd(JOB)
        assert place.vault.recover().orphans == [f"{JOB}.smp"]
    assert not any(place.vault.recover())
    assert list(place.files.iterdir()) == []


def test_a_file_that_its_job_takes_after_all_is_no_stray(place: Place) -> None:
    """A crash between renaming and recording leaves a file without a row until the job goes on."""
    os.rename(place.part(), place.files / f"{JOB}.smp")
    (place.files / "stray").touch()
    assert place.vault.recover().orphans == [f"{JOB}.smp", "stray"]
    assert place.vault.strays() == [f"{JOB}.smp", "stray"]
    place.adopt(str(place.spool / f"{JOB}.part"), JOB)
    assert place.vault.strays() == ["stray"]


def test_ids_that_are_no_text_any_more_are_named_with_the_others(place: Place) -> None:
    """A flipped bit can change what kind of value a column holds."""
    for job in (JOB, OTHER):
        place.adopt(place.part(), job)
    with place.db.transaction() as connection:
        connection.execute("UPDATE vault SET id=CAST(id AS BLOB) WHERE id=?", (JOB,))
        connection.execute("UPDATE vault SET size=size+1")
    (place.files / f"{OTHER}.smp").unlink()
    found = place.vault.recover()
    assert len(found.unproved) == len(found.missing) == 2
    assert OTHER in found.unproved
    assert OTHER in found.missing


def test_recover_reports_and_touches_nothing(place: Place) -> None:
    """Files without rows, rows without files and files of another size are named; all stay as they are."""
    for job in (JOB, OTHER):
        place.adopt(place.part(), job)
    assert place.vault.recover() == ([], [], [], [])
    (place.files / f"{JOB}.smp").write_bytes(b"short")
    (place.files / f"{OTHER}.smp").rename(place.files / "stray.smp")
    assert place.vault.recover() == (["stray.smp"], [OTHER], [JOB], [])
    assert len(place.vault.list()) == 2
    with pytest.raises(IntegrityError) as cut:
        place.vault.open_fd(JOB)
    assert cut.value.code == "truncated"
    with pytest.raises(ResourceError, match="is gone") as gone:
        place.vault.open_fd(OTHER)
    assert not gone.value.retryable
    place.vault.remove(OTHER)
    assert place.vault.recover() == (["stray.smp"], [], [JOB], [])


def test_a_link_in_the_vault_is_not_followed(place: Place, tmp_path: Path) -> None:
    """Somebody's link in place of a file leads nowhere."""
    place.adopt(place.part(), JOB)
    file = place.files / f"{JOB}.smp"
    file.unlink()
    file.symlink_to("/etc/passwd")
    with pytest.raises(ResourceError):
        place.vault.open_fd(JOB)
    place.vault.remove(JOB)
    assert os.path.exists("/etc/passwd")


# ── crashes and disk errors at each system call (R3) ───────────────────────────────────────────────────

CHILD = """
import os, sys
sys.path[:0] = {paths!r}
from smp_proto.errors import SmpError
from smpd.jobs.database import Database
from smpd.jobs.seal import StateSeal
from smpd.vault.objects import Adoption, Vault
root, act = sys.argv[1:]
facts = {facts!r}
try:
    vault = Vault(root + "/vault", Database(root + "/smp.db"), StateSeal(bytearray(32)))
    if act == "adopt":
        vault.adopt("{job}", [Adoption("{job}", root + "/spool/{job}.part", **facts)])
    elif act == "many":
        vault.adopt("{job}", [Adoption(n * 16, root + "/spool/" + n + ".part", **facts) for n in "12345"])
    else:
        vault.remove("{job}")
except SmpError as error:
    print(error.code)
    sys.stdout.flush()
    os._exit(3)
print("done")
sys.stdout.flush()
os._exit(0)
"""

CALLS = {
    "adopt": ["fsync", "fdatasync", "rename,renameat,renameat2", "fchmod", "pwrite64"],
    "remove": ["unlinkat,unlink"],
}
CALLS["remove"] += ["fsync", "fdatasync", "pwrite64"]


def strace(root: Path, act: str, *options: str) -> subprocess.CompletedProcess:
    script = CHILD.format(paths=sys.path, facts=FACTS, job=JOB)
    # An injected signal does not fire under --seccomp-bpf (strace 6.1); all else is faster with it.
    fast = [] if any("signal=" in option for option in options) else ["--seccomp-bpf"]
    command = ["strace", "-f", *fast, "-o", str(root / "trace"), *options]
    return subprocess.run(
        [*command, sys.executable, "-B", "-S", "-c", script, str(root), act], capture_output=True, text=True
    )


def strace_works() -> bool:
    return bool(shutil.which("strace")) and subprocess.run(["strace", "-o", "/dev/null", "true"]).returncode == 0


needs_strace = pytest.mark.skipif(not strace_works(), reason="strace is not installed or may not trace")


def prepare(root: Path, act: str) -> None:
    """A vault before the act, on a fresh folder."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    place = Place(root)
    place.part()
    for number in "12345":
        (place.spool / f"{number}.part").write_bytes(BODY)
    if act == "remove":
        place.adopt(str(place.spool / f"{JOB}.part"), JOB)
    place.close()


def finish(root: Path, act: str) -> None:
    """After a crash: open again, do it again, and exactly one item (or none) is there, whole."""
    place = Place(root)
    assert place.vault.recover().damaged == []
    if act == "adopt":
        item = place.adopt(str(place.spool / f"{JOB}.part"), JOB)
        assert [item] == place.vault.list()
        fd = place.vault.open_fd(JOB)
        assert os.read(fd, 10**6) == BODY
        os.close(fd)
        assert [path.name for path in place.files.iterdir()] == [f"{JOB}.smp"]
    else:
        assert place.vault.recover() == ([], [], [], [])
        with contextlib.suppress(NotFoundError):
            place.vault.remove(JOB)
        assert (place.vault.list(), list(place.files.iterdir())) == ([], [])
    assert place.vault.recover() == ([], [], [], [])
    place.close()


@needs_strace
@pytest.mark.parametrize(("act", "fault"), [("adopt", "signal=SIGKILL"), ("remove", "error=EIO")])  # R3 has all of them
def test_a_fault_at_each_call_leaves_one_item_once(tmp_path: Path, act: str, fault: str) -> None:
    """Killed or failed at the n-th fsync, rename, write or unlink: done again, the item is there once, or gone."""
    root = tmp_path / "box"
    tried = 0
    for call in CALLS[act]:
        for n in range(1, 50):
            prepare(root, act)
            done = strace(root, act, "-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={n}")
            struck = done.returncode != 0
            if struck and fault != "signal=SIGKILL":
                assert done.returncode == 3, done.stderr
                assert done.stdout.strip() in ("disk_full", "disk_failed")
            finish(root, act)
            tried += struck
            if not struck and "INJECTED" not in (root / "trace").read_text():
                break
    assert tried >= 4


@needs_strace
def test_order_is_sync_file_rename_sync_folder_commit(tmp_path: Path) -> None:
    """The file is synced before it is renamed, the folder before the row is committed."""
    root = tmp_path / "box"
    prepare(root, "adopt")
    assert strace(root, "adopt", "-y", "-e", "trace=fsync,fdatasync,rename,renameat,renameat2").returncode == 0
    trace = (root / "trace").read_text().splitlines()
    calls = [re.search(r"(fsync|fdatasync|rename)\w*\((?:\d+<(?:.*/)?([^/>]*)>)?", line) for line in trace]
    order = [call.groups() for call in calls if call]
    start = order.index(("fsync", f"{JOB}.part"))
    moved = [(name, what if name == "fsync" else None) for name, what in order[start + 1 : start + 3]]
    assert moved == [("rename", None), ("fsync", "objects")]
    assert ("fdatasync", "smp.db-wal") in order[start + 3 :]
    assert ("fdatasync", "smp.db-wal") not in order[:start]


@needs_strace
def test_order_of_many_is_sync_all_rename_all_sync_folder_commit(tmp_path: Path) -> None:
    """Many files are synced with their file system before any is renamed, the folder before the rows are committed."""
    root = tmp_path / "box"
    prepare(root, "many")
    calls = "trace=syncfs,fsync,fdatasync,rename,renameat,renameat2"
    assert strace(root, "many", "-e", calls).returncode == 0
    order = re.findall(r"(syncfs|fsync|fdatasync|rename)", (root / "trace").read_text())
    start = order.index("syncfs")
    assert order[start : start + 8] == ["syncfs", *["rename"] * 5, "fsync", "fdatasync"]


@needs_strace
@pytest.mark.parametrize("fault", ["signal=SIGKILL", "error=EIO"])
def test_a_fault_among_many_leaves_each_once(tmp_path: Path, fault: str) -> None:
    """Killed or failed at the n-th sync or rename: adopted again, each is there once."""
    root = tmp_path / "box"
    for call, count in (("syncfs", 1), ("rename,renameat,renameat2", 5), ("fsync", 2)):
        for n in range(1, count + 1):
            prepare(root, "many")
            strace(root, "many", "-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={n}")
            place = Place(root)
            items = [Adoption(number * 16, str(place.spool / f"{number}.part"), **FACTS) for number in "12345"]
            place.vault.adopt(JOB, items)
            assert [item.id for item in place.vault.list(JOB)] == [number * 16 for number in "54321"]
            assert place.vault.recover() == ([], [], [], [])
            place.close()


def test_another_file_system_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename that cannot be one is a disk error by name; the part stays."""

    def rename(*args, **more):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "rename", rename)
    part = place.part()
    with pytest.raises(SmpError, match="cross-device"):
        place.adopt(part, JOB)
    assert os.path.exists(part)


def test_cells_that_are_of_another_type_now_do_not_hide_the_other_items(place: Place) -> None:
    """The damaged one is listed as it is, and can be removed as the notes say."""
    for job in (JOB, OTHER):
        place.adopt(place.part(), job)
    with place.db.transaction() as connection:
        connection.execute("UPDATE vault SET object_id=CAST(object_id AS TEXT), size=x'' WHERE id=?", (JOB,))
    assert {item.id for item in place.vault.list()} == {JOB, OTHER}
    assert place.vault.recover().unproved == [JOB]
    assert place.vault.remove(JOB).id == JOB
    assert [item.id for item in place.vault.list()] == [OTHER]
