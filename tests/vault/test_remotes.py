"""Remotes at rest, and the parser of names and locations."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smp_proto.control import LocalConfig, RemoteView, S3Config, S3Secret, SftpConfig, SftpSecret
from smp_proto.errors import IntegrityError, NotFoundError, StateError, UsageError
from smpd.jobs.database import Database
from smpd.jobs.seal import StateSeal
from smpd.vault.remotes import Location, RemoteStore, check_name, parse_location

S3 = S3Config("hospital-bucket", prefix="mueller/", endpoint="https://s3.example")
SECRET = S3Secret("AKIAEXAMPLE", "wJalrXUtnFEMI")


def test_remotes_come_back(db: Database, seal: StateSeal) -> None:
    """All three kinds are kept with mode and secret; what is listed shows no secret; removing forgets."""
    store = RemoteStore(db, seal)
    assert store.add("pacs", S3, secret=SECRET) == RemoteView("pacs", "zero-knowledge", S3, True)
    sftp = SftpConfig("host", "user", "host ssh-ed25519 AAAA")
    store.add("archive", sftp, mode="standard", secret=SftpSecret(password="hunter2"))
    store.add("disk", LocalConfig("/data"), mode="streaming")
    again = RemoteStore(db, seal)
    assert (again.get("pacs").config, again.get("pacs").secret) == (S3, SECRET)
    assert [view.name for view in again.list()] == ["archive", "disk", "pacs"]
    assert [view.has_secret for view in again.list()] == [True, False, True]
    assert [view.mode for view in again.list()] == ["standard", "streaming", "zero-knowledge"]
    again.remove("pacs")
    for act in (again.get, again.remove):
        with pytest.raises(NotFoundError) as caught:
            act("pacs")
        assert caught.value.code == "no_such_remote"


def test_refusals(db: Database, seal: StateSeal) -> None:
    """A taken name, a bad name and a secret of another kind are refused; nothing changes."""
    store = RemoteStore(db, seal)
    store.add("pacs", S3, secret=SECRET)
    with pytest.raises(StateError, match="pacs"):
        store.add("pacs", LocalConfig("/"))
    for config in (LocalConfig("/"), SftpConfig("h", "u", "k")):
        with pytest.raises(UsageError) as caught:
            store.add("new", config, secret=SECRET)
        assert caught.value.code == "bad_request"
    with pytest.raises(UsageError):
        store.add("A", S3)
    assert [view.name for view in store.list()] == ["pacs"]
    assert store.get("pacs").config == S3


def test_another_secret(db: Database, seal: StateSeal) -> None:
    """And other settings, of the same place alone; a damaged one is made anew."""
    store = RemoteStore(db, seal)
    for act in (store.view, lambda name: store.replace(name, S3, mode="zero-knowledge", secret=SECRET)):
        with pytest.raises(NotFoundError):
            act("pacs")
    store.add("pacs", S3, secret=SECRET)
    other, region = S3Secret("AK", "other"), S3Config("hospital-bucket", "mueller/", "https://s3.example", "eu-1")
    assert store.replace("pacs", region, mode="zero-knowledge", secret=other).config == region
    assert store.get("pacs").secret == other
    for config in (S3Config("other"), S3Config("hospital-bucket", "mueller/"), LocalConfig("/")):
        with pytest.raises(StateError, match="another place"):
            store.replace("pacs", config, mode="zero-knowledge")
    with pytest.raises(StateError, match="zero-knowledge"):
        store.replace("pacs", S3, mode="standard", secret=SECRET)
    assert store.get("pacs").secret == other
    with db.transaction() as connection:
        connection.execute("UPDATE remotes SET body=x'00'")
    store.replace("pacs", S3, mode="zero-knowledge", secret=SECRET)
    assert store.get("pacs").secret == SECRET


def test_nothing_is_readable_on_disk_or_in_a_repr(db: Database, seal: StateSeal, tmp_path: Path) -> None:
    """Neither file nor repr shows the secret, before and after it is removed; the files do not show the bucket."""
    store = RemoteStore(db, seal)
    store.add("pacs", S3, secret=SECRET)
    words = [b"AKIAEXAMPLE", b"wJalrXUtnFEMI", b"hospital-bucket", b"mueller", b"s3.example"]
    assert "wJal" not in repr(store.get("pacs"))
    for act in (lambda: None, lambda: store.remove("pacs"), db.close):
        act()
        files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert not [word for word in words if word in files]


def test_a_damaged_remote_is_alone(db: Database, seal: StateSeal) -> None:
    """A record that was changed, or put under another name, is refused by name; the others are there."""
    store = RemoteStore(db, seal)
    for name in ("good", "mine", "yours"):
        store.add(name, S3)
    with db.transaction() as connection:
        connection.execute("UPDATE remotes SET body=(SELECT body FROM remotes WHERE name='mine') WHERE name='yours'")
        connection.execute("UPDATE remotes SET body=substr(body, 2) WHERE name='mine'")
    for name in ("mine", "yours"):
        with pytest.raises(IntegrityError) as caught:
            store.get(name)
        assert caught.value.code == "corrupt"
    assert [view.name for view in store.list()] == ["good"]
    store.remove("mine")
    store.add("mine", S3)


@given(st.text(max_size=70))
def test_names(name: str) -> None:
    """Exactly [a-z0-9][a-z0-9._-]{0,63} is a name."""
    first, rest = "abcdefghijklmnopqrstuvwxyz0123456789", "abcdefghijklmnopqrstuvwxyz0123456789._-"
    good = 1 <= len(name) <= 64 and name[0] in first and all(char in rest for char in name)
    if good:
        assert check_name(name) == name
    else:
        with pytest.raises(UsageError) as caught:
            check_name(name)
        assert caught.value.code == "bad_name"


@given(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True))
def test_good_names(name: str) -> None:
    """What the rule says is taken."""
    assert check_name(name) == name


HOSTILE = ["..", ".", "/", "\0", "\n", "\x7f", "\x85", "\u2028", "\udc80", "a", "é", ":", "~", "\\", "//", "x" * 1024]


@given(st.lists(st.sampled_from(HOSTILE), max_size=6).map("".join) | st.text(max_size=40))
def test_locations(path: str) -> None:
    """What passes is relative, printable, without dot steps and short, and comes back unchanged (R15)."""
    text = f"pacs:{path}"
    try:
        location = parse_location(text)
    except UsageError:
        return
    assert location == Location("pacs", path)
    steps = path.split("/")
    assert steps[0]
    assert not {".", ".."} & set(steps)
    assert not any(unicodedata.category(char) in ("Cc", "Cs") for char in path)
    assert len(path.encode()) <= 1024


@pytest.mark.parametrize(
    "text",
    ["", "pacs", "pacs:", ":x", "Pacs:x", "../x:y", "pacs:/etc", "pacs:a/../b", "pacs:..", "pacs:./a", "pacs:a/.",
     "p:\0", "p:a\nb", "p:\ud800", "p:" + "é" * 513, " p:x", "-p:x", "p:a/.smp-0123456789abcdef.part"],
)  # fmt: skip
def test_bad_locations(text: str) -> None:
    """Each of these is refused with a hint."""
    with pytest.raises(UsageError) as caught:
        parse_location(text)
    assert (caught.value.code, bool(caught.value.hint)) == ("bad_name", True)


@pytest.mark.parametrize(
    "text", ["p:a", "p:a/b/", "p:a:b", "p:..a", "p:a/...", "p:a//b", "p:" + "é" * 512, "p:~/x", "p:a b"]
)
def test_good_locations(text: str) -> None:
    """Odd but harmless paths are taken as they are."""
    assert ":".join(parse_location(text)) == text


def test_prefix_may_be_empty() -> None:
    """A prefix may be the whole remote."""
    assert parse_location("pacs:", prefix=True) == ("pacs", "")


def test_a_name_that_is_no_text_any_more_is_a_damaged_record(db: Database, seal: StateSeal) -> None:
    """A flipped bit may leave no UTF-8: what is read is then not found again."""
    store = RemoteStore(db, seal)
    store.add("lake", LocalConfig(root="/data"))
    store.add("pond", LocalConfig(root="/data"))
    with db.transaction() as connection:
        connection.execute("UPDATE remotes SET name=CAST(x'f0'||substr(name, 2) AS TEXT) WHERE name='pond'")
    assert [view.name for view in store.list()] == ["lake"]
    assert len(store.damaged()) == 1
