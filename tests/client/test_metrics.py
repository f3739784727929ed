"""``smpctl metrics``: printed, written, served; while the daemon is away, too."""

import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from client.conftest import Smpctl
from client.standin import StandIn, standin
from prometheus_client.parser import text_string_to_metric_families

from smp_proto import aio
from smp_proto import control as c
from smpctl import Client, exporter
from smpctl.exposition import CONTENT_TYPE


def keep(daemon: StandIn) -> None:
    """Have the stand-in send one metric in two parts, and one without a value."""

    async def answer(request: c.MetricsRequest, exchange: aio.Exchange) -> None:
        for name in ("lake", "ward"):
            sample = c.MetricSample("smp_lanes", {"remote": name}, 8.0)
            await exchange.send(c.MetricFamily("smp_lanes", "gauge", "Lanes.", [sample]))
        await exchange.send(c.MetricFamily("smp_jobs_ended_total", "counter", "Jobs.", []))

    daemon.answers[c.MetricsRequest] = answer


TEXT = """\
# HELP smp_lanes Lanes.
# TYPE smp_lanes gauge
smp_lanes{remote="lake"} 8
smp_lanes{remote="ward"} 8
"""


def test_print(smpctl: Smpctl, daemon: StandIn) -> None:
    """As text, or the families as they came."""
    keep(daemon)
    assert smpctl("metrics", "print").out == TEXT
    assert [len(each["samples"]) for each in smpctl("metrics", "print", "--json").lines] == [2, 0]


def test_write_is_whole_or_not_at_all(smpctl: Smpctl, daemon: StandIn, tmp_path: Path) -> None:
    """The file is replaced, others may read it, nothing is left beside it; without a daemon it stays as it was."""
    keep(daemon)
    folder = tmp_path / "collector"
    folder.mkdir()
    file = folder / "smp.prom"
    file.write_text("older")
    assert smpctl("metrics", "write", file).code == 0
    assert (file.read_text(), file.stat().st_mode & 0o777) == (TEXT, 0o644)
    assert smpctl("metrics", "write", file, "--socket", tmp_path / "none").code == 3
    assert smpctl("metrics", "write", folder / "absent" / "x.prom").code == 8
    assert smpctl("metrics", "write", f"{folder}/").code == 2
    assert os.listdir(folder) == ["smp.prom"]
    assert file.read_text() == TEXT


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_write_replaces_files_alone(smpctl: Smpctl, daemon: StandIn, tmp_path: Path, kind: str) -> None:
    """A pipe, a device (/dev/null), a link (/dev/stdout) stays what it is: root would be let replace it."""
    keep(daemon)
    there = tmp_path / "there"
    {"pipe": os.mkfifo, "folder": os.mkdir, "link": lambda path: os.symlink("elsewhere", path)}[kind](there)
    before = there.lstat()
    ran = smpctl("metrics", "write", there)
    assert (ran.code, "hint: " in ran.err) == (10, True), ran.err
    assert (there.lstat().st_ino, there.lstat().st_mode) == (before.st_ino, before.st_mode)


def get(url: str) -> Any:
    return urllib.request.urlopen(url, timeout=60)


def test_serve(home: Path) -> None:
    """On loopback, the metrics at one path; 503 while the daemon is away; SIGTERM ends it well."""
    path = os.environ["SMPD_SOCKET"]
    argv = [sys.executable, "-m", "smpctl", "metrics", "serve", "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    url = process.stderr.readline().split()[-1]
    for _ in range(2):
        with pytest.raises(urllib.error.HTTPError, match="503") as caught:
            get(url)
        caught.value.close()
        with standin(path) as daemon:
            keep(daemon)
            with get(url) as answer:
                assert answer.headers["Content-Type"] == CONTENT_TYPE
                (family,) = list(text_string_to_metric_families(answer.read().decode()))
                assert [sample.value for sample in family.samples] == [8, 8]
            with pytest.raises(urllib.error.HTTPError, match="404") as caught:
                get(url.replace("metrics", "secrets"))
            caught.value.close()
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60) == (None, "")
    assert process.returncode == 0


@pytest.mark.parametrize("address", ["0.0.0.0:1", "192.0.2.1:9464", "localhost", "127.0.0.1", "127.0.0.1:x", "[::]:1"])
def test_serve_is_for_loopback_alone(smpctl: Smpctl, address: str) -> None:
    """An address that others reach, or none, is refused."""
    ran = smpctl("metrics", "serve", "--listen", address)
    assert ran.code == 2
    assert "no address of loopback" in ran.err


def test_one_who_asks_a_letter_at_a_time_is_dropped(daemon: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its request is whole, so that nobody of this box keeps the others from their metrics."""
    daemon.answers[c.MetricsRequest] = None
    monkeypatch.setattr(exporter, "_PATIENCE_S", 0.5)
    monkeypatch.setattr(exporter._Handler, "timeout", 0.5)
    stop = threading.Event()
    with Client(daemon.path) as client, exporter.Exporter("127.0.0.1", 0, client) as serving:
        serve = threading.Thread(target=serving._server.serve_forever)
        serve.start()

        def dribble() -> None:
            with socket.create_connection(serving._server.server_address[:2]) as slow:
                try:
                    while not stop.wait(0.1):
                        slow.send(b"G")
                except OSError:
                    pass

        asking = threading.Thread(target=dribble)
        asking.start()
        try:
            stop.wait(0.2)
            with urllib.request.urlopen(serving.url, timeout=5) as answer:
                assert answer.status == 200
        finally:
            stop.set()
            asking.join()
            serving._server.shutdown()
            serve.join()
