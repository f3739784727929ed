"""Writes top.svg and grafana/panels.svg: what ``smpctl top`` and the dashboard show of a real run. Run: make capture.

A box of its own; an S3 server on loopback with objects that a sender sealed, one of them damaged since; jobs, a sync,
the exporter, and a Prometheus that scrapes it. Nothing is made up. Needs ``prometheus`` (apt-get install prometheus).
"""

import contextlib
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from box import Box, box
from panels import Drawn, Series, draw
from render_dashboard import ROWS, here
from rich.console import Console
from scene import Person, add_remote, believe, box_key
from servers import free_port, rclone_s3

from smp_proto.control import GetSpec, Priority, RunSpec, SyncSpec
from smp_proto.errors import StateError
from smpctl import Client
from smpctl.commands.top import Look, look
from smpctl.screen import drawn

DOCS = Path(__file__).parent
_WIDTH, _HEIGHT = 128, 36
_RUN_S, _SCRAPE_S, _WINDOW = 150, 1, "15s"
_SCAN_BYTES, _SCANS, _KNEES, _AT_ONCE = 24 << 20, 8, 40, 5
_PRIORITIES: tuple[Priority, ...] = ("normal", "normal", "high", "low")
_CONFIG = {
    "jobs": {"running_max": 5},
    "fetch": {"slots": 8, "slot_bytes": 1 << 20},
    "compute": {"slots": 8, "device": "auto", "processors": ["digest", "tensor.stats"]},
}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="smp-capture-") as name:
        folder = Path(name)
        (store := folder / "store" / "scans").mkdir(parents=True)
        with rclone_s3(folder / "store") as served, box(folder / "box", _CONFIG) as machine:
            add_remote(machine, "lake", served)
            _objects(machine, folder, store)
            with _watched(machine, folder) as address, Client(str(machine.socket)) as client:
                began = time.time()
                found = _work(client, store)
                _panels(address, began, time.time())
    console = Console(width=_WIDTH, height=_HEIGHT, record=True, file=io.StringIO(), force_terminal=True)
    console.print(drawn(found, _HEIGHT))
    (DOCS / "top.svg").write_text(console.export_svg(title="smpctl top"))


def _objects(machine: Box, folder: Path, store: Path) -> None:
    """Sealed objects; of the last one a bit was changed since."""
    sender = Person(machine, folder, "clinic")
    believe(machine, sender)
    sender.knows(box_key(machine, folder), "box")
    (store / "knees").mkdir()
    (folder / "later").mkdir()
    for kind, count, size in (("2026-11-", _SCANS, _SCAN_BYTES), ("../../later/", _KNEES, _SCAN_BYTES // 16)):
        (folder / "scan").write_bytes(os.urandom(size))
        sealed = bytearray(sender.seal([folder / "scan"], folder / "sealed.smp").read_bytes())
        for number in range(count):
            (store / f"{kind}{number + 10}.smp").write_bytes(sealed)
    sealed[len(sealed) // 2] ^= 1
    (store / "damaged.smp").write_bytes(sealed)


@contextlib.contextmanager
def _watched(machine: Box, folder: Path) -> Iterator[str]:
    """The exporter and a Prometheus; yields where that one is asked."""
    program = shutil.which("prometheus") or sys.exit("prometheus is not installed: apt-get install prometheus")
    exporter = machine.ctl_begun("metrics", "serve", "--listen", "127.0.0.1:0")
    assert exporter.stderr
    target = exporter.stderr.readline().split("//")[1].split("/")[0]
    scrape = {"job_name": "smp", "scrape_interval": f"{_SCRAPE_S}s", "static_configs": [{"targets": [target]}]}
    (folder / "prometheus.yml").write_text(json.dumps({"scrape_configs": [scrape]}))
    address = f"127.0.0.1:{free_port()}"
    server = subprocess.Popen(  # noqa: S603 - it is on PATH
        [
            program,
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/tsdb",
            f"--web.listen-address={address}",
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        while not _answers(address):
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        exporter.terminate()
        server.wait()
        exporter.communicate()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/-/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _work(client: Client, store: Path) -> Look:
    """Keep the box busy for a while; the look with the most to see."""
    client.sync_add(SyncSpec(name="knees", source="lake:knees/", processor="digest", every_s=5, max_in_flight=2))
    chance = random.Random(7)
    later = sorted((store / ".." / ".." / "later").iterdir())
    until, best, score = time.time() + _RUN_S, None, -1.0
    found = look(client, None)
    client.submit(GetSpec("lake:damaged.smp"))
    while time.time() < until:
        if later and chance.random() < 0.4:
            os.replace(later[0], store / "knees" / later[0].name)
            later.pop(0)
        if len(found.jobs) < _AT_ONCE:
            source = f"lake:2026-11-{chance.randrange(_SCANS) + 10}.smp"
            run = RunSpec(source, chance.choice(["tensor.stats", "digest"]))
            client.submit(run if chance.random() < 0.6 else GetSpec(source), priority=chance.choice(_PRIORITIES))
        time.sleep(0.5)
        found = look(client, found)
        moving = sum(each.bytes_per_s > 0 for each in found.jobs)
        worth = moving * 3 + len(found.jobs) + sum(bool(sync.done and sync.in_flight) for sync in found.syncs)
        if worth > score:
            best, score = found, worth
    assert best is not None
    for job in client.jobs(("queued", "waiting", "running"), limit=1000):
        with contextlib.suppress(StateError):  # it is over
            client.cancel(job.id)
    return best


def _panels(address: str, began: float, ended: float) -> None:
    """Ask Prometheus what the panels ask, over the run."""
    rows: dict[str, list[Drawn]] = {}
    for title, row in ROWS.items():
        for panel in row:
            series = [each for query, legend in panel.queries for each in _series(address, query, legend, began, ended)]
            rows.setdefault(title, []).append(Drawn(panel.title, panel.unit, panel.kind == "stat", series))
    caption = (
        f"The dashboard's queries over {ended - began:.0f} s of a real run, scraped each second, rates over {_WINDOW}; "
        "drawn by docs/panels.py, not by Grafana."
    )
    (DOCS / "grafana" / "panels.svg").write_text(draw(rows, caption))


def _series(address: str, query: str, legend: str, began: float, ended: float) -> Iterator[Series]:
    short = re.sub(r"\[\d+[mh]\]", f"[{_WINDOW}]", here(query).replace("$instance", ".*"))
    asked = urllib.parse.urlencode({"query": short, "start": began, "end": ended, "step": f"{2 * _SCRAPE_S}s"})
    with urllib.request.urlopen(f"http://{address}/api/v1/query_range?{asked}", timeout=60) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    for each in found:
        labels: dict[str, str] = each["metric"]
        name = re.sub(r"\{\{(\w+)\}\}", lambda label, of=labels: str(of.get(label[1], "")), legend)
        points = [(float(when), float(value)) for when, value in each["values"] if value != "NaN"]
        yield Series(name, points)


if __name__ == "__main__":
    main()
