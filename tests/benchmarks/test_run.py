"""The bench itself, with small sizes: a real daemon, real servers, and the peers that are here."""

import contextlib
import html
import os
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import pytest
from servers import make_certificate, program

from benchmarks import results
from benchmarks.relay import Line, relay
from benchmarks.servers import own_server, store
from benchmarks.watch import run_program

ROOT = Path(__file__).parents[2]


def test_quick_run(tmp_path):
    """Some loads end with samples of all who are here, a table, and a JSON that says what the server sent."""
    loads = "https,put,resume,far"
    argv = [sys.executable, "-m", "benchmarks", "--quick", "--rounds", "1", "--only", loads, "--out", tmp_path]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    run = results.load(tmp_path / "latest.json")
    https, put, resume, far = run.loads
    for load, name in ((https, "SMP"), (put, "SMP"), (resume, "SMP, killed at half"), (far, "SMP")):
        ours = load.find(name)
        assert not ours.trouble
        [sample] = ours.samples
        assert sample.seconds > 0 < sample.cpu_s
        assert sample.bytes == 16 << 20
        assert "smpd" in sample.peak_rss
        assert not [each.name for each in load.contested if each.trouble and not each.trouble.startswith("absent: ")]
    assert 16 << 20 <= https.find("SMP").samples[0].sent < 18 << 20
    assert 16 << 20 <= far.find("SMP").samples[0].sent < 18 << 20
    assert "| SMP |" in done.stdout
    assert len(run.goals) == 2


def test_a_relay_changes_nothing_and_takes_its_time(tmp_path):
    """What went in comes out, on several connections and both ways, not before the line lets it through."""
    line = Line(0.05, 4e6, 1 << 17)
    data = [os.urandom(300_000) for _ in range(3)]
    (tmp_path / "bucket").mkdir()
    for number, body in enumerate(data):
        (tmp_path / "bucket" / str(number)).write_bytes(body)
    with own_server(tmp_path) as port, relay(port, line) as far, ThreadPoolExecutor(3) as threads:

        def get(number: int) -> bytes:
            with urllib.request.urlopen(f"http://127.0.0.1:{far}/bucket/{number}", timeout=30) as answer:
                return answer.read()

        started = time.monotonic()
        assert list(threads.map(get, range(3))) == data
        took_s = time.monotonic() - started
        # A handshake and a request, and then the bytes of all: never less, however quick the machine.
        assert took_s >= 4 * line.delay_s + 3 * 300_000 / line.rate


@pytest.mark.parametrize("nginx", [True, False])
def test_store(tmp_path, nginx):
    """Both servers serve ranges and listings over HTTP and HTTPS, and count what they send."""
    curl = program("curl")
    with store(tmp_path, make_certificate(tmp_path), nginx=nginx) as served:
        (served.bucket / "a").write_bytes(bytes(100_000))
        served.traffic()
        for tls in (False, True):
            run_program([curl, "-sf", "--cacert", served.ca, "-r", "10-19", served.url("a", tls=tls)])
            assert served.traffic(at_least=10) == (10, 1)
        with urllib.request.urlopen(f"{served.http}/bucket?list-type=2&prefix=a") as answer:
            assert b"<Key>a</Key>" in answer.read()


def test_uploads_are_counted_and_forgotten(tmp_path):
    """A PUT and a multipart upload leave a size behind, and nothing on the disk."""

    def ask(method: str, path: str, body: bytes | None = None) -> bytes:
        connection.request(method, f"/bucket/{path}", body)
        answer = connection.getresponse()
        return answer.read() or f"{answer.status} {answer.headers['Content-Length']}".encode()

    # One connection: what is left of a body would be taken for the next request.
    with own_server(tmp_path) as port, contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        ask("PUT", "whole", bytes(3_000_000))
        assert ask("HEAD", "whole") == b"200 3000000"
        upload = ask("POST", "parts?uploads", b"").partition(b"<UploadId>")[2].partition(b"<")[0].decode()
        for number in (1, 2):
            ask("PUT", f"parts?partNumber={number}&uploadId={upload}", bytes(70_000))
        ask("POST", f"parts?uploadId={upload}", b"<CompleteMultipartUpload/>")
        assert ask("HEAD", "parts") == b"200 140000"
        ask("DELETE", "parts")
        assert ask("HEAD", "parts") == b"404 0"
        assert os.listdir(tmp_path) == []
        (tmp_path / "bucket" / "folder").mkdir(parents=True)
        assert ask("HEAD", "folder") == b"404 0"


def test_a_program_that_fails_says_so():
    with pytest.raises(RuntimeError, match="exited 3: out of luck"):
        run_program([sys.executable, "-c", "import sys; print('out of luck', file=sys.stderr); sys.exit(3)"])


def test_an_object_of_the_end_of_a_second_is_of_that_second(tmp_path):
    """The last nanoseconds of a second are no part of the next one: the ETag is nginx's, who serves what we list."""
    path, second = tmp_path / "bucket" / "object", 1_796_000_000
    path.parent.mkdir()
    path.write_bytes(b"content")
    os.utime(path, ns=(0, second * 10**9 + 999_999_950))
    with own_server(tmp_path) as port, contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("HEAD", "/bucket/object")
        answer = connection.getresponse()
        answer.read()
        assert answer.headers["ETag"] == f'"{second:x}-7"'
        connection.request("GET", "/bucket?list-type=2")
        assert f'"{second:x}-7"' in html.unescape(connection.getresponse().read().decode())
