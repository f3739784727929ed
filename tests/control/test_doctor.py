"""``doctor``: each check is seen to fail, on a daemon of which that very thing is wrong."""

import os
import resource
import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from unittest.mock import patch

import anyio
import pytest
from scripted_http import Asked, Peer, scripted
from whole import ADMINS, VIEWERS, Whole, configured, whole

from smp_proto import control as c
from smp_proto.sealed.keys import Identity
from smpd.host.clock import Clock
from smpd.links.computing import Ready
from smpd.verbs import checkup
from smpd.verbs.doctor import _compute_checks

NOTHING = {"processors": ()}
PAGE = b"<?xml version='1.0'?><ListBucketResult><Name>scans</Name><KeyCount>0</KeyCount></ListBucketResult>"


async def checks(box: Whole, groups=(ADMINS,)) -> list[c.Check]:
    """What doctor says to an admin, or to somebody in other groups."""
    async with box.client(70_000, groups) as caller:
        return (await caller.call(c.DoctorRequest(), c.Doctor, timeout=100)).checks


def named(found: list[c.Check], name: str) -> c.Check:
    """The one check of this name; it must say what to type if it is not ok."""
    (check,) = [each for each in found if each.name == name]
    assert check.state == "ok" or check.hint
    return check


async def test_a_good_box_has_no_complaint(tmp_path):
    """Nothing fails, and every kind of check is there."""
    async with whole(tmp_path, compute=NOTHING) as box:
        found = await checks(box)
        assert [check for check in found if check.state == "fail"] == []
        names = {"daemon", "identity", "audit", "disk", "files", "clock", "rights", "memory", "swap"}
        assert names <= {check.name for check in found}


async def test_what_others_may_read_or_write_is_named(tmp_path):
    """A key, the credential and the state open to others, and a configuration that others may write."""
    credential = tmp_path / "credential"
    credential.write_bytes(bytes(32))
    credential.chmod(0o600)
    (tmp_path / "config.toml").write_text("")
    async with whole(tmp_path, compute=NOTHING, keys={"credential_file": str(credential)}) as box:
        wrong = {tmp_path / "state/keys/identity.key": 0o640, tmp_path / "state/smpd.db": 0o604}
        for path, mode in {**wrong, credential: 0o644, tmp_path / "config.toml": 0o664}.items():
            path.chmod(mode)
        found = await checks(box)
        failed = [check for check in found if check.state == "fail"]
        assert {check.name for check in failed} == {"rights", "keys", "configuration"}
        for path in (*wrong, credential, tmp_path / "config.toml"):
            (check,) = [each for each in failed if str(path) in each.text]
            assert "chmod" in check.hint
        (tmp_path / "config.toml").unlink()
        assert named(await checks(box), "configuration").state == "warn"


@pytest.mark.skipif(os.geteuid() != 0, reason="to give a file away needs root")
async def test_what_belongs_to_another_is_named(tmp_path):
    """A key file of another user."""
    async with whole(tmp_path, compute=NOTHING) as box:
        os.chown(tmp_path / "state/keys/state.key", 70_000, -1)
        check = named(await checks(box), "rights")
        assert (check.state, check.hint) == ("fail", f"run: chown 0 {tmp_path}/state/keys/state.key")


async def test_damaged_records_are_counted_and_named(tmp_path):
    """Of what was accepted where, and of the quarantine: neither is looked at when the daemon starts."""
    async with whole(tmp_path, compute=NOTHING) as box:
        journal, quarantine = box.daemon.box.journal, box.daemon.box.quarantine

        def damage() -> str:
            job, _ = journal.add(c.GetSpec("lake:x"), owner="somebody(1)", key="1")
            added = quarantine.add(c.QuarantineItem(job.id, job.id, "lake:x", "corrupt", "a tag does not match"))
            with journal._db.transaction() as connection:
                connection.execute("UPDATE quarantine SET body=substr(body, 2)")
                rows = [(b"place", b"no seal"), (b"other", b"none either")]
                connection.executemany("INSERT INTO versions (place, body) VALUES (?, ?)", rows)
            return added.item.id

        item = await anyio.to_thread.run_sync(damage)
        with patch("smpd.verbs.doctor._VERSIONS", 1):
            found = await checks(box)
        assert named(found, "versions").state == "fail"
        assert "of 2 places" in named(found, "versions").text
        assert named(found, "quarantine").state == "fail"
        assert named(found, "quarantine").hint.endswith(f"smpctl quarantine rm {item}")


async def test_a_clock_that_was_set_or_is_wrong_is_told(tmp_path):
    """Set since the start; behind the newest audit record. (No test may set the machine's clock: time is replaced.)"""
    async with whole(tmp_path, compute=NOTHING) as box:
        await box.daemon.box.audit("daemon.start", actor="smpd")
        with patch("smpd.host.clock.time.time", lambda: datetime.now(UTC).timestamp() + 3600):
            check = named(await checks(box), "clock")
        assert (check.state, "forward by 3600 s" in check.text) == ("warn", True)
        with patch("smpd.host.clock.time.time", lambda: datetime.now(UTC).timestamp() - 3600):
            box.daemon.clock = Clock()  # as after a restart with a clock that is an hour behind
            check = named(await checks(box), "clock")
        assert check.state == "fail"
        assert "behind the newest record" in check.text


async def test_remotes_are_tried_and_let_go(tmp_path):
    """One that works, one that is not there, one with another time; and no process of an unused remote stays."""

    async def page(peer: Peer, asked: Asked) -> bool:
        date = format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)
        head = (
            f"HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Type: application/xml\r\nContent-Length: {len(PAGE)}\r\n\r\n"
        )
        await peer.send(head.encode() + PAGE)
        return True

    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # and nobody listens
        closed = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        async with scripted({"scans": page}) as endpoint, whole(tmp_path, compute=NOTHING) as box:
            for name, url in (("late", endpoint), ("gone", closed)):
                config = c.S3Config("scans", endpoint=url, addressing="path")
                box.daemon.remotes.add(name, config, secret=c.S3Secret("key", "secret"))
            box.daemon.remotes.add("here", c.LocalConfig(str(tmp_path)))
            assert [check for check in await checks(box, (VIEWERS,)) if check.name.startswith("remote")] == []
            assert box.daemon.pools.open == {}  # whoever may not try a remote does not start a process for it
            found = await checks(box)
            assert named(found, "remote here").state == "ok"
            assert named(found, "remote gone").state == "fail"
            works, late = (check for check in found if check.name == "remote late")
            assert (works.state, late.state) == ("ok", "warn")
            assert "behind this box's" in late.text
            assert "timedatectl" in late.hint
            with anyio.fail_after(60):
                while any(host.worker for pool in box.daemon.pools.open.values() for host in pool.processes.hosts):
                    await anyio.sleep(0.01)


async def test_a_remote_that_says_nothing_is_not_waited_for_for_long(tmp_path):
    """It accepts and is silent."""
    with socket.create_server(("127.0.0.1", 0)) as silent, patch("smpd.verbs.doctor._REMOTE_S", 0.1):
        async with whole(tmp_path, compute=NOTHING) as box:
            endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
            config = c.S3Config("scans", endpoint=endpoint, addressing="path")
            box.daemon.remotes.add("mute", config, secret=c.S3Secret("key", "secret"))
            check = named(await checks(box), "remote mute")
            assert (check.state, "does not answer within" in check.text) == ("fail", True)


async def test_walls_that_are_off_are_named(tmp_path):
    """With what to take out of the configuration."""
    async with whole(tmp_path, compute={"processors": (), "sandbox": "off"}) as box:
        box.daemon.remotes.add("here", c.LocalConfig(str(tmp_path)))
        found = [check for check in await checks(box) if check.name.startswith("fetch here")]
        assert found
        assert {check.state for check in found} == {"warn"}
        assert all("compute.sandbox" in check.hint for check in found)


async def test_a_sender_whose_trust_ends_is_named(tmp_path):
    """Two weeks before, and afterwards; not one who is trusted for long, and not one who was removed."""
    async with whole(tmp_path, compute=NOTHING) as box:
        now = datetime.now(UTC).timestamp()
        for name, days in (("soon", 13), ("over", -1), ("long", 30), ("gone", 1)):
            key = Identity.generate(name).public
            box.daemon.trust.add(name, key.text(), key_id=key.key_id, fingerprint="f", until=now + days * 86_400)
        box.daemon.trust.remove("gone")
        said = [check.text for check in await checks(box) if check.name == "trust"]
        assert [text.split(" on ")[0] for text in said] == ["trust in soon ends", "trust in over ended"]


def test_memory_that_the_rings_do_not_fit_into(tmp_path):
    """A configuration that asks for more than there is; and what is mapped already counts as there."""
    config = configured(tmp_path, fetch={"slots": 1024, "slot_bytes": 256 << 20, "processes": 64})
    check = checkup.memory_check(config, 0)
    assert (check.state, "fetch.slots" in check.hint) == ("fail", True)
    assert checkup.memory_check(config, 1 << 50).state == "ok"


def test_rings_that_may_be_swapped_out():
    """More rings than the kernel says are locked; only where there is a swap. (This machine may have none.)"""
    kept = checkup._table
    for swap, state in ((1 << 30, "warn"), (0, "ok")):
        with patch.object(
            checkup, "_table", lambda path, name, swap=swap: swap if name == "SwapTotal" else kept(path, name)
        ):
            assert checkup.locked_check(1 << 50).state == state
            assert checkup.locked_check(0).state == "ok"


async def test_rings_that_are_not_pinned():
    """Where the device copies from pinned memory. (A stand-in for a compute process with a GPU, which is not had here.)"""

    async def describe() -> Ready:
        return Ready("cuda:0", "GPU", "2", False, {}, [])

    kept = SimpleNamespace(kept_bytes=0, runs=0, growth_bytes=0, device_bytes=0)
    found = await _compute_checks(
        SimpleNamespace(distribution="x", describe=describe, started="by smpd", health=kept, recycled=0)
    )
    assert [(check.state, "LimitMEMLOCK" in check.hint) for check in found] == [
        ("ok", False),
        ("warn", True),
        ("ok", False),
        ("ok", False),
    ]


async def test_too_few_descriptors(tmp_path):
    """A limit below what the configuration may come to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with whole(tmp_path, compute=NOTHING) as box:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        try:
            check = named(await checks(box), "files")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (check.state, "LimitNOFILE" in check.hint) == ("warn", True)
