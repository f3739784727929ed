"""A storage server that goes away for a while: its jobs wait for it, others go on, and everybody can see why."""

from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from box import box
from faulty import faulty, until
from gated_s3 import gated_s3
from scene import Following, add_remote, client, faults

from smp_proto.control import Event, GetSpec, RemoteHealth, S3Config
from smp_proto.sealed.bundle import BundleWriter
from smp_proto.sealed.keys import Identity, PublicIdentity
from smpctl import Client

QUICK = {"fetch": {"slots": 4, "breaker_failures": 3, "probe_s": 0.1, "probe_max_s": 0.5}}


def sealed(public: PublicIdentity, sender: Identity) -> bytes:
    """An object for the box."""
    found = bytearray()
    writer = BundleWriter(found.extend, sender=sender, recipients=[public])
    writer.begin("a.bin")
    writer.write(b"x" * 3_000_000)
    writer.end()
    writer.finish()
    return bytes(found)


def test_jobs_wait_for_a_remote_that_is_down(tmp_path: Path) -> None:
    """Without burning attempts; status says what is wrong and since when; they go on by themselves when it is back."""
    with box(tmp_path / "box", QUICK) as machine, gated_s3({}) as (store, served), client(machine) as caller:
        sender = Identity.generate("sender")
        data = sealed(PublicIdentity.parse(caller.box_key().text), sender)
        caller.trust_add("sender", sender.public.text())
        store.objects.update({f"{number}.smp": data for number in range(3)})
        assert isinstance(served.config, S3Config)
        port = urlsplit(served.config.endpoint).port
        with faulty("127.0.0.1", port or 0) as proxy, Following(machine) as following:
            through = msgspec.structs.replace(served.config, endpoint=f"http://127.0.0.1:{proxy.port}")
            add_remote(machine, "lake", served._replace(config=through))
            add_remote(machine, "well", served)
            assert caller.wait(caller.submit(GetSpec("lake:0.smp")).id).state == "done"
            proxy.down()
            jobs = [caller.submit(GetSpec(f"lake:{number}.smp")).id for number in (1, 2)]
            health = until(lambda: [each for each in caller.status().health if each.state == "down"])[0]
            assert (health.name, health.code) == ("lake", "remote_unreachable")
            assert health.failures >= 3
            text = machine.ctl("status").stdout.decode()
            assert "remote lake: DOWN for" in text
            assert "next try in" in text
            assert "lake: DOWN" in machine.ctl("top", "--once").stdout.decode()
            late = caller.submit(GetSpec("lake:0.smp")).id
            held = following.until(late, lambda view: view.state == "waiting")
            assert held.error
            assert "lake is down" in held.error.message
            assert held.attempt == 0
            assert caller.wait(caller.submit(GetSpec("well:2.smp")).id).state == "done"
            proxy.up()
            for job in (*jobs, late):
                view = caller.wait(job)
                assert view.state == "done", view.error
            assert view.attempt == 1
            assert {each.state for each in caller.status().health} == {"up"}
        assert "lake: DOWN" not in machine.ctl("status").stdout.decode()
        log = machine.log.read_text()
        assert '"state": "down"' in log
        assert ".smp" not in log
        assert not faults(machine)


def test_who_watches_sees_a_remote_go_and_come_back(tmp_path: Path) -> None:
    """An event at each turn, with how the remote is."""
    with box(tmp_path / "box", QUICK) as machine, gated_s3({}) as (_, served), client(machine) as caller:
        assert isinstance(served.config, S3Config)
        with faulty("127.0.0.1", urlsplit(served.config.endpoint).port or 0) as proxy:
            through = msgspec.structs.replace(served.config, endpoint=f"http://127.0.0.1:{proxy.port}")
            add_remote(machine, "lake", served._replace(config=through))
            proxy.down()
            with Client(str(machine.socket)) as watcher:
                events = watcher.watch()
                caller.submit(GetSpec("lake:0.smp"))
                assert _next(events).state == "down"
                proxy.up()
                assert _next(events).state == "up"


def _next(events: object) -> RemoteHealth:
    for event in events:  # type: ignore[attr-defined]
        assert isinstance(event, Event)
        if event.kind == "remote":
            return msgspec.msgpack.decode(event.body, type=RemoteHealth)
    raise AssertionError("the watch ended")
