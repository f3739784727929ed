"""``make bench-job``: what the main job costs in memory, and what a crash in the middle of it costs.

Real processes against a static object server on loopback; the figures go to the screen as they are measured.
"""

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from box import Box  # noqa: E402 - the harness of the end-to-end tests

from benchmarks.objects import MIB, seal_object  # noqa: E402
from benchmarks.server import SENT  # noqa: E402
from benchmarks.servers import own_server  # noqa: E402
from smp_proto.control import GetSpec  # noqa: E402
from smp_proto.sealed.keys import Identity, PublicIdentity  # noqa: E402
from smpctl import Client, job_of  # noqa: E402
from smpd.config import Fetch  # noqa: E402

CONNECTIONS = 8


@contextmanager
def prepared(folder: Path, size: int, config: dict[str, Any]) -> Iterator[tuple[Box, str, str]]:
    """A box that trusts a sender and knows the remote ``bench`` with one sealed object ``volume.smp``."""
    sender = Identity.generate("sender")
    bucket = folder / "store" / "bucket"
    bucket.mkdir(parents=True)
    box = Box(
        folder / "box",
        {"compute": {"processors": ["digest"]}, "fetch": {"processes": 2, "connections": CONNECTIONS // 2}, **config},
    )
    try:
        box.start()
        with own_server(folder / "store") as port:
            endpoint = f"http://127.0.0.1:{port}"
            with Client(str(box.socket)) as client:
                key = PublicIdentity.parse(client.box_key().text)
                digest = seal_object(bucket / "volume.smp", size, sender, key)
                client.trust_add("sender", sender.public.text())
            secret = b'access_key = "key"\nsecret_key = "secret"\n'
            add = ("remote", "add", "bench", "s3://bucket", "--endpoint", endpoint, "--addressing", "path")
            box.ctl(*add, "--secret-stdin", stdin=secret)
            yield box, endpoint, digest
    finally:
        box.close()


def check_digest(folder: Path, digest: str) -> None:
    """Raise unless the exported digest is the one expected."""
    found = json.loads((folder / "digests.json").read_text())
    assert digest in json.dumps(found), "the digest differs"


def memory(work: Path, sizes: list[int]) -> None:
    """S3 to device to digest: the peak of each process, for each size."""
    print("peak resident memory in MiB (rings are counted in each process that maps them)")
    for size in sizes:
        folder = work / f"memory-{size}"
        with prepared(folder, size * MIB, {}) as (box, _, digest):
            started = time.monotonic()
            box.ctl("run", "digest", "bench:volume.smp", "--export", folder / "out", timeout=1800)
            seconds = time.monotonic() - started
            check_digest(folder / "out", digest)
            status = box.json("status")
            peaks = {f"{each['role']} {each['pid']}": each["peak_rss_bytes"] for each in status["workers"]}
            peaks = {"smpd": status["peak_rss_bytes"], **peaks}
            row = "  ".join(f"{name} {peak / MIB:.1f}" for name, peak in peaks.items())
            print(f"{size:6} MiB in {seconds:6.1f} s, digest equal: {row}")
        shutil.rmtree(folder)


def kill(work: Path, size: int) -> None:
    """SIGKILL of smpd at half of a get, start again: what is fetched twice."""
    folder = work / "kill"
    with prepared(folder, size * MIB, {}) as (box, endpoint, digest):
        with Client(str(box.socket)) as client:
            job = client.submit(GetSpec("bench:volume.smp")).id
            for event in client.watch(jobs=[job]):
                view = job_of(event)
                if view and view.total_bytes and view.done_bytes * 2 >= view.total_bytes:
                    break
        box.kill()
        box.start()
        box.ctl("job", "wait", job, timeout=1800)
        view = box.json("job", "show", job)
        box.ctl("vault", "open", job, "-o", folder / "out", timeout=1800)
        found = hashlib.file_digest((folder / "out" / "000000.raw").open("rb"), "sha256").hexdigest()
        assert found == digest, "the digest differs"
        sealed = (folder / "store" / "bucket" / "volume.smp").stat().st_size
        with urllib.request.urlopen(endpoint + SENT) as answer:
            sent = int(answer.read().split()[0])
        print(f"{size} MiB get, SIGKILL at half: state {view['state']}, digest equal")
        print(f"object {sealed} bytes, from the spool {view['transfer']['resumed_bytes']}, sent by the server {sent}")
        twice = (sent - sealed) / Fetch().slot_bytes
        print(f"fetched twice: {sent - sealed} bytes, {twice:.1f} ranges over {CONNECTIONS} connections")


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["memory", "kill"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 2048], help="MiB, for memory")
    parser.add_argument("--kill-size", type=int, default=1024, help="MiB, for kill")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="smp-bench-") as work:
        if "memory" in options.what:
            memory(Path(work), options.sizes)
        if "kill" in options.what:
            kill(Path(work), options.kill_size)


if __name__ == "__main__":
    main()
