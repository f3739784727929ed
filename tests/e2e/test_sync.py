"""Syncs end to end: real servers, the real daemon, kills; each object version gets exactly one result."""

import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from box import Box, box
from e2e.long_sync import soak
from scene import Person, add_remote, believe, box_key, client, faults, read_digests, sha256, until_sync
from servers import BUCKET, admin, moto_s3, sqs

from smp_proto.control import LocalConfig, S3Config, S3Secret, SyncSpec
from smp_proto.errors import UsageError


class Place:
    """A box that watches a folder through a server, and a sender."""

    def __init__(self, machine: Box, sender: Person, folder: Path, remote: str) -> None:
        self.box = machine
        self.sender = sender
        self.folder = folder
        self.remote = remote
        self._work = folder.parent / f"work-{remote}"
        self._work.mkdir()

    def arrive(self, name: str, content: bytes) -> None:
        """An object appears, or replaces another, at once."""
        (self._work / "scan.bin").write_bytes(content)
        sealed = self.sender.seal([self._work / "scan.bin"], self._work / "part")
        (self.folder / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(sealed, self.folder / "in" / name)

    def results(self) -> dict[str, str]:
        """The digest that each result holds, by the result's path."""
        found = {}
        for path in sorted((self.folder / "out").rglob("*.smp")):
            into = self._work / f"opened-{len(list(self._work.iterdir()))}"
            self.sender.open(path, into)
            found[str(path.relative_to(self.folder / "out"))] = read_digests(into)["scan.bin"]
        return found


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Box, Person]]:
    folder = tmp_path_factory.mktemp("sync")
    with box(folder / "box") as machine:
        sender = Person(machine, folder, "hospital")
        sender.knows(box_key(machine, folder), "box")
        believe(machine, sender)
        yield machine, sender
        assert not faults(machine)


def test_while_everything_changes(tmp_path: Path) -> None:
    """S3 to SFTP and back, in short: ``make soak`` does it for as long as one likes."""
    _, wrong = soak(tmp_path, 3.0, random.Random(1))
    assert not wrong


def test_what_arrives_is_worked_on_once(machine, tmp_path: Path) -> None:
    """Back-fill, what comes, changes, is bad; a kill in between; exactly one result for each version that stayed."""
    (tmp_path / "root" / "in").mkdir(parents=True)
    machine[0].ctl("remote", "add", "local", f"file://{tmp_path / 'root'}")
    place = Place(*machine, tmp_path / "root", "local")
    name = "watch-local"
    expected = {}
    for number in range(3):
        place.arrive(f"a/{number}.smp", b"%d" % number)
        expected[f"a/{number}.smp"] = sha256(b"%d" % number)
    (place.folder / "in" / "notes.txt").write_text("no scan")
    (place.folder / "in" / "bad.smp").write_bytes(b"not sealed")
    flags = ["--run", "digest", "--to", f"{place.remote}:out/", "--include", "**/*.smp", "--every", "1s"]
    place.box.ctl("sync", "add", name, f"{place.remote}:in/", *flags)
    with client(place.box) as ctl:
        until_sync(ctl, name, lambda view: view.done == 3 and view.quarantined == 1)
    place.arrive("a/1.smp", b"another")
    place.arrive("new.smp", b"new")
    expected |= {"a/1.smp": sha256(b"another"), "new.smp": sha256(b"new")}
    place.box.kill()
    place.box.start()
    with client(place.box) as ctl:
        view = until_sync(ctl, name, lambda view: view.done == 4 and not view.waiting + view.in_flight)
        assert (view.seen, view.quarantined, view.failed) == (5, 1, 0)
        (trouble,) = ctl.sync_show(name).troubles
        assert (trouble.path, trouble.error.code if trouble.error else "") == ("in/bad.smp", "not_sealed")
        jobs = [job for job in ctl.jobs(limit=1000) if job.source.startswith(f"{place.remote}:in/")]
    assert place.results() == expected
    assert sorted(job.state for job in jobs) == ["done"] * 5 + ["quarantined"]
    shown = place.box.ctl("sync", "show", name).stdout.decode()
    assert "in/bad.smp" in shown
    assert f"smpctl sync retry {name}" in shown
    assert b"is watched by the sync" in place.box.ctl("remote", "remove", place.remote, check=False).stderr
    place.box.ctl("sync", "remove", name)
    assert name not in place.box.ctl("sync", "ls").stdout.decode()
    audit = place.box.ctl("audit", "verify").stdout.decode()
    assert "whole and in order" in audit


def test_into_the_vault_and_away(machine, tmp_path: Path) -> None:
    """Without a processor objects go to the vault; with --after delete they leave the remote once they are there."""
    running, sender = machine
    (tmp_path / "root" / "in").mkdir(parents=True)
    running.ctl("remote", "add", "ward", f"file://{tmp_path / 'root'}")
    place = Place(running, sender, tmp_path / "root", "ward")
    for number in range(3):
        place.arrive(f"{number}.smp", b"%d" % number)
    running.ctl("sync", "add", "ward", "ward:in/", "--after", "delete", "--every", "1h", "--max-in-flight", "1")
    with client(running) as ctl:
        until_sync(ctl, "ward", lambda view: view.done == 3)
        assert list((tmp_path / "root" / "in").iterdir()) == []
        ctl.sync_control("ward", "pause")
        place.arrive("late.smp", b"late")
        ctl.sync_control("ward", "resume")
        ctl.sync_control("ward", "now")
        until_sync(ctl, "ward", lambda view: view.done == 4)
        assert len([item for item in ctl.vault() if item.entries == 1]) >= 4
    running.ctl("sync", "remove", "ward")
    running.ctl("sync", "add", "ward", "ward:in/", "--after", "move:old/", "--every", "1h")
    with client(running) as ctl:
        until_sync(ctl, "ward", lambda view: view.last_poll > 0 and view.told)
        place.arrive("a/kept.smp", b"kept")  # which the folder tells of: it is not listed again for an hour
        until_sync(ctl, "ward", lambda view: view.done == 1)
        shown = running.ctl("sync", "show", "ward").stdout.decode()
    assert "the object is moved to ward:old/" in shown
    assert [path.name for path in (tmp_path / "root" / "old" / "a").iterdir()] == ["kept.smp"]
    assert list((tmp_path / "root" / "in" / "a").iterdir()) == []
    running.ctl("sync", "remove", "ward")


def test_what_the_target_has_not_is_no_word_on_the_source(machine, tmp_path: Path) -> None:
    """A result that cannot be written is a failure, which is shown, and not an object that left."""
    running, sender = machine
    (tmp_path / "root" / "out").mkdir(parents=True)
    (tmp_path / "root" / "out" / "a").write_text("where a folder is to be")
    running.ctl("remote", "add", "blocked", f"file://{tmp_path / 'root'}")
    place = Place(running, sender, tmp_path / "root", "blocked")
    place.arrive("a/b.smp", b"1")
    running.ctl("sync", "add", "blocked", "blocked:in/", "--run", "digest", "--to", "blocked:out/", "--every", "1s")
    with client(running) as ctl:
        until_sync(ctl, "blocked", lambda view: view.failed == 1)
        (trouble,) = ctl.sync_show("blocked").troubles
        assert (trouble.path, trouble.error.code if trouble.error else "") == ("in/a/b.smp", "remote_failed")
    running.ctl("sync", "remove", "blocked")


def test_a_bucket_tells(machine, tmp_path: Path) -> None:
    """An object that a notification names is taken without a listing; of one whose message is lost the listing knows."""
    running, sender = machine
    with moto_s3() as served:
        bucket, queue = admin(served), sqs(served)
        url = queue.create_queue(QueueName="q")["QueueUrl"]
        arn = queue.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        told = {"QueueConfigurations": [{"QueueArn": arn, "Events": ["s3:ObjectCreated:*"]}]}
        bucket.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration=told)
        add_remote(running, "moto", served)
        (tmp_path / "in").mkdir()
        place = Place(running, sender, tmp_path, "moto")

        def arrive(name: str) -> None:
            place.arrive(name, name.encode())
            bucket.put_object(Bucket=BUCKET, Key=f"in/{name}", Body=(tmp_path / "in" / name).read_bytes())

        running.ctl("sync", "add", "told", "moto:in/", "--every", "1d", "--events", url)
        with client(running) as ctl:
            until_sync(ctl, "told", lambda view: view.last_poll > 0 and view.told)
            listed = ctl.sync_show("told").sync.last_poll
            arrive("a b+ä.smp")
            view = until_sync(ctl, "told", lambda view: view.done == 1)
            assert (view.last_poll, view.hints) == (listed, 1)
            bucket.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration={})
            arrive("lost.smp")
            ctl.sync_control("told", "now")
            until_sync(ctl, "told", lambda view: view.done == 2)
        assert "by the queue, 1 times" in running.ctl("sync", "show", "told").stdout.decode()
        running.ctl("sync", "remove", "told")


@pytest.mark.parametrize(
    ("flags", "code", "why"),
    [
        (["nowhere:in/"], 5, "nowhere"),
        (["here:in/", "--run", "nothing.such"], 5, "nothing.such"),
        (["here:in/", "--to", "here:out/"], 2, "--run"),
        (["here:", "--run", "digest", "--to", "here:out/"], 2, "own results"),
        (["here:in//scans/"], 2, "two slashes"),
        (["here:in/", "--run", "digest", "--to", "here:out//"], 2, "two slashes"),
        (["here:in/", "--every", "soon"], 2, "no time"),
        (["here:in/", "--every", "0s"], 2, "every second to every day"),
        (["here:in/", "--run", "digest", "--to", "here:out/", "--vault"], 2, "two things"),
        (["here:in/", "--include", ""], 2, "is empty"),
        (["here:in/", "--after", "move"], 2, "move:PREFIX"),
        (["here:in/", "--events", "https://sqs.eu-central-1.amazonaws.com/1/q"], 2, "is no bucket"),
        (["here:in/", "--after", "move:in/old/"], 2, "find again"),
    ],
)
def test_wrong_input(machine, tmp_path_factory, flags: list[str], code: int, why: str) -> None:
    """Each is refused at once, with what is wrong."""
    running, _ = machine
    with client(running) as ctl:
        if "here" not in [remote.name for remote in ctl.remotes()]:
            ctl.remote_add("here", LocalConfig(str(tmp_path_factory.mktemp("here"))))
    done = running.ctl("sync", "add", "wrong", *flags, check=False)
    assert done.returncode == code, done.stderr
    assert why in done.stderr.decode()


@pytest.mark.parametrize("endpoint", ["", "http://127.0.0.1:9"])
def test_a_queue_of_somebody_else(machine, endpoint: str) -> None:
    """Nothing that a remote's key signs, or its session token, goes to a server of whoever adds a sync."""
    running, _ = machine
    with socket.create_server(("127.0.0.1", 0)) as theirs, client(running) as ctl:
        theirs.setblocking(False)
        secret = S3Secret("AKIA", "secret", "TOKEN")
        ctl.remote_add("token", S3Config("b", endpoint=endpoint, addressing="path"), secret=secret)
        try:
            for queue in (f"http://127.0.0.1:{theirs.getsockname()[1]}/1/q", "http://sqs.eu-west-1.amazonaws.com/1/q"):
                with pytest.raises(UsageError, match="own endpoint"):
                    ctl.sync_add(SyncSpec(name="token", source="token:", events=queue))
            with pytest.raises(BlockingIOError):
                theirs.accept()
        finally:
            ctl.remote_remove("token")


@pytest.mark.parametrize("verb", ["show", "pause", "resume", "now", "retry", "remove"])
def test_a_sync_that_is_not_there(machine, verb: str) -> None:
    """Said by name, with where to look."""
    done = machine[0].ctl("sync", verb, "nobody", check=False)
    assert done.returncode == 5
    assert b"nobody" in done.stderr
    assert b"smpctl sync ls" in done.stderr
