"""``make many OBJECTS=100000``: a sync of a bucket with very many objects, and a SIGKILL in the middle of its listing.

The server is the one of ``counting_s3``, in this process: it keeps the keys sorted and gives pages of 1,000, as S3 does, where
``rclone serve`` hashes every file for every page. The objects are one sealed object under many names. While they are listed
the sync works on the first of them, and is then paused.

It must hold that the listing goes on where it was left, so that all pages are asked for once but those that were ahead; that
every object is known then, and once; that smpd's own memory does not grow with their number. Exits with 1 otherwise.
"""

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from box import Box
from counting_s3 import PAGE, CountingS3, counting_s3
from scene import add_remote, faults

from smp_proto.control import SyncSpec, SyncView
from smp_proto.sealed.bundle import BundleWriter
from smp_proto.sealed.keys import Identity, PublicIdentity
from smpctl import Client
from smpd.links.fetching import LISTED_AHEAD

WAIT_S = 3600.0
GROWTH_BYTES = 48 << 20  # of smpd's own memory; SQLite caches, threads and arenas are of no size that grows
AHEAD_PAGES = 2 + LISTED_AHEAD * 256 // PAGE  # what a fetch process had asked for and nobody kept
CONFIG = {
    "fetch": {"slots": 2, "slot_bytes": 1 << 20, "processes": 2},
    "control": {"requests_per_s": 1e6, "requests_burst": 1_000_000},
}


class Memory(NamedTuple):
    """Of a process, in bytes: all that is resident, and what of it is its own (proc(5): VmRSS, RssAnon)."""

    resident: int
    own: int


class Gauge:
    """Looks at smpd's memory again and again, for the most there was."""

    def __init__(self, pid: int) -> None:
        self.first = self.last = self.most = self._read(pid)
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    @staticmethod
    def _read(pid: int) -> Memory:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines if ":" in line)
        return Memory(*(int(status[name].split()[0]) << 10 for name in ("VmRSS", "RssAnon")))

    def _look(self) -> None:
        while not self._done.wait(0.1):
            try:
                self.last = self._read(self._pid)
            except (OSError, KeyError):
                return  # it was killed
            self.most = Memory(*map(max, self.most, self.last))

    def close(self) -> str:
        """What was seen, for a person."""
        self._done.set()
        self._thread.join()
        parts = [f"{each.resident / (1 << 20):.0f} ({each.own / (1 << 20):.0f})" for each in (self.first, self.most)]
        return " → ".join(parts)


def fill(store: CountingS3, sender: Identity, box: PublicIdentity, count: int) -> None:
    """One sealed object under many names."""
    sealed = bytearray()
    writer = BundleWriter(sealed.extend, sender=sender, recipients=[box])
    writer.begin("scan.bin")
    writer.write(b"small")
    writer.end()
    writer.finish()
    data = bytes(sealed)
    etag = store.store("in/00/000000.smp", data)
    for number in range(count):
        key = f"in/{number % 100:02}/{number:06}.smp"
        store.objects[key], store.etags[key] = data, etag
    store.remove("none")  # so that the keys are sorted anew


def until_listed(client: Client, since: float) -> SyncView:
    """Wait for the end of a listing."""
    end = time.monotonic() + WAIT_S
    while (view := client.sync_show("many").sync).last_poll <= since:
        assert time.monotonic() < end, view
        time.sleep(0.2)
    return view


def pages(store: CountingS3) -> int:
    """How many were asked for."""
    return store.requests["GET list-type"]


def run(folder: Path, count: int) -> list[str]:
    """Do it, print figures, and return what is wrong."""
    sender, wrong = Identity.generate("sender"), list[str]()
    all_pages = -(-count // PAGE)
    with counting_s3() as (store, served):
        box = Box(folder, CONFIG)
        try:
            box.start()
            with Client(str(box.socket)) as client:
                public = PublicIdentity.parse(client.box_key().text)
                client.trust_add("sender", sender.public.text())
                add_remote(box, "lake", served)
                fill(store, sender, public, count)
            middle = threading.Event()
            after: list[str] = []

            def before(method: str, _: str, query: dict[str, list[str]]) -> None:
                if method == "GET" and "list-type" in query:
                    after.append(query.get("start-after", [""])[0])
                    if pages(store) == all_pages // 2:
                        middle.set()

            store.before = before
            assert box.process
            gauge, begun = Gauge(box.process.pid), time.monotonic()
            with Client(str(box.socket)) as client:
                client.sync_add(SyncSpec(name="many", source="lake:in/", every_s=86_400.0, max_in_flight=2))
                assert middle.wait(WAIT_S)
            box.kill()
            asked, took = pages(store), time.monotonic() - begun
            print(f"killed after {asked} of {all_pages} pages, {took:.0f} s; smpd MiB, in all (own): {gauge.close()}")
            box.start()
            gauge, begun = Gauge(box.process.pid), time.monotonic()
            with Client(str(box.socket)) as client:
                view = until_listed(client, 0.0)
                took, growth = time.monotonic() - begun, gauge.most.own - gauge.first.own
                print(
                    f"went on at {next(filter(None, after), 'the start')!r}, {pages(store)} pages in all, {took:.0f} s;",
                    end=" ",
                )
                print(f"smpd MiB: {gauge.close()}; {view.done} of {view.seen} objects done meanwhile")
                if view.seen != count:
                    wrong.append(f"{view.seen} of {count} objects are known")
                if pages(store) > all_pages + AHEAD_PAGES + 2:
                    wrong.append(f"{pages(store)} pages were asked for")
                if growth > GROWTH_BYTES:
                    wrong.append(f"smpd's own memory grew by {growth >> 20} MiB")
                client.sync_control("many", "pause")
                while client.sync_show("many").sync.in_flight:
                    time.sleep(0.2)
                client.sync_control("many", "resume")
                store.forget()
                gauge, begun = Gauge(box.process.pid), time.monotonic()
                client.sync_control("many", "now")
                again = until_listed(client, view.last_poll)
                took, growth = time.monotonic() - begun, gauge.most.own - gauge.first.own
                print(f"listed again, {pages(store)} pages, {took:.0f} s; smpd MiB: {gauge.close()};", end=" ")
                print(f"database {(box.state / 'smpd.db').stat().st_size >> 20} MiB")
                if again.seen != count or growth > GROWTH_BYTES:
                    wrong.append(f"{again.seen} objects are known then, and the memory grew by {growth >> 20} MiB")
            assert box.stop() == 0
            return wrong + faults(box)
        finally:
            box.close()


def main() -> int:
    """1 when anything is wrong."""
    parser = argparse.ArgumentParser(prog="many_objects", description=__doc__)
    parser.add_argument("--objects", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="smp-many-") as folder:
        wrong = run(Path(folder) / "box", options.objects)
    for each in wrong:
        print(f"  {each}"[:1000])
    print(f"{options.objects} objects: {len(wrong)} violations")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
