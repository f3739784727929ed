"""Writes top.svg: the screen of ``smpctl top`` while a real daemon works. Run: make capture-top.

A box of its own, an S3 server on loopback with objects that a sender sealed, jobs and a sync: nothing is made up.
"""

import io
import os
import sys
import tempfile
import time
from pathlib import Path

from box import box
from rich.console import Console
from scene import Person, add_remote, believe, box_key
from servers import rclone_s3

from smp_proto.control import GetSpec, Priority, RunSpec, SyncSpec
from smpctl import Client
from smpctl.commands.top import Look, look
from smpctl.screen import drawn

PICTURE = Path(__file__).with_name("top.svg")
_WIDTH, _HEIGHT = 128, 36
_SCAN_BYTES, _SCANS, _KNEES = 64 << 20, 10, 14
_PRIORITIES: tuple[Priority, ...] = ("normal", "high", "normal", "low")
_CONFIG = {
    "jobs": {"running_max": 5},
    "fetch": {"slots": 16, "slot_bytes": 1 << 20},
    "compute": {"slots": 16, "device": "auto"},
}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="smp-top-") as name:
        folder = Path(name)
        (store := folder / "store" / "scans").mkdir(parents=True)
        with rclone_s3(folder / "store") as served, box(folder / "box", _CONFIG) as machine:
            sender = Person(machine, folder, "clinic")
            believe(machine, sender)
            add_remote(machine, "lake", served)
            sender.knows(box_key(machine, folder), "box")
            (store / "knees").mkdir()
            for kind, count, size in (("2026-11-", _SCANS, _SCAN_BYTES), ("knees/", _KNEES, _SCAN_BYTES // 8)):
                (folder / "scan").write_bytes(os.urandom(size))
                sealed = sender.seal([folder / "scan"], folder / "sealed.smp").read_bytes()
                for number in range(count):
                    (store / f"{kind}{number + 10}.smp").write_bytes(sealed)
            with Client(str(machine.socket)) as client:
                client.sync_add(
                    SyncSpec(name="knees", source="lake:knees/", processor="digest", priority="high", max_in_flight=2)
                )
                for number in range(_SCANS):
                    source = f"lake:2026-11-{number + 10}.smp"
                    spec = GetSpec(source) if number % 2 else RunSpec(source, "tensor.stats")
                    client.submit(spec, priority=_PRIORITIES[number % len(_PRIORITIES)])
                found = _busy(client)
    console = Console(width=_WIDTH, height=_HEIGHT, record=True, file=io.StringIO(), force_terminal=True)
    console.print(drawn(found, _HEIGHT))
    PICTURE.write_text(console.export_svg(title="smpctl top"))


def _busy(client: Client) -> Look:
    """A look at which bytes come in, jobs run and the sync has done something."""
    found = look(client, None)
    while True:
        time.sleep(0.5)
        found = look(client, found)
        running = [each for each in found.jobs if each.job.state == "running" and each.bytes_per_s]
        if running and any(sync.done for sync in found.syncs) and any(r.bytes_per_s for r in found.remotes):
            return found
        if not found.jobs:
            sys.exit("all jobs were done before there was a good look: raise _SCANS")


if __name__ == "__main__":
    main()
