"""One large object over HTTP and HTTPS, against the ceiling and against those who decrypt, too."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import peers, work_alone
from benchmarks.bench import Bench, Contestant, Entry, present
from benchmarks.objects import MIB, seal_object, write_plain
from benchmarks.results import Sample
from benchmarks.smp import ENDS_AS
from smp_proto.sealed.keys import Identity

BYTES, QUICK_BYTES = 1024 * MIB, 16 * MIB
CURL_ENDS_AS = "discarded; nothing is checked"
_THEN = "plaintext read through the memory of a second process; tags checked, no signature"


def sized(size: int, sample: Sample) -> Sample:
    """Say how much plaintext a sample moved."""
    sample.bytes, sample.objects = size, 1
    return sample


def in_turn(first: Sample, second: Sample) -> Sample:
    """Two steps, one after the other, as one sample."""
    first.seconds += second.seconds
    first.cpu_s += second.cpu_s
    first.peak_rss |= second.peak_rss
    return first


class LargeHttp:
    """1 GiB sealed, S3 over HTTP, to the plain ring."""

    name = "http"
    title = "1 GiB sealed, S3 over HTTP, to the processor"
    unit = "gb_s"
    ceiling = "curl"
    rounds = 0
    note = "All read from one server on loopback, their data on tmpfs."

    @contextlib.contextmanager
    def open(self, bench: Bench) -> Iterator[list[Entry]]:
        """The same gigabyte in five forms."""
        size = bench.size(BYTES, QUICK_BYTES)
        with bench.folder("large") as folder, Forms(bench, folder, size) as forms:
            sealed = folder / "object.smp"
            digest = seal_object(sealed, size, bench.sender, bench.smp.key)
            source = f"{bench.source}{folder.name}/object.smp"
            bench.smp.check(source, digest)
            url = bench.store.url(f"{folder.name}/object.smp")
            yield [
                Contestant("SMP", ENDS_AS, lambda: bench.smp.run(source, size)),
                Contestant("curl", CURL_ENDS_AS, lambda: sized(size, peers.curl(url))),
                Contestant("the work alone", work_alone.ENDS_AS, forms.work_alone()),
                present("s5cmd, then tink", _THEN, forms.s5cmd_tink),
                present("s5cmd, then age", _THEN, forms.s5cmd_age),
                present("rclone crypt", "piped to /dev/null; tags checked, no signature", forms.rclone),
                present("tensorizer", "tensors in memory; tags checked, no signature", forms.tensorizer),
            ]


class LargeHttps:
    """The same over HTTPS."""

    name = "https"
    title = "1 GiB sealed, S3 over HTTPS, to the processor"
    unit = "gb_s"
    ceiling = "curl"
    rounds = 0
    note = "TLS 1.3, AES-256-GCM, the server's certificate checked by all."

    @contextlib.contextmanager
    def open(self, bench: Bench) -> Iterator[list[Entry]]:
        """A remote of its own, since TLS is a matter of the remote."""
        size = bench.size(BYTES, QUICK_BYTES)
        with bench.folder("large") as folder, Forms(bench, folder, size, tls=True) as forms:
            digest = seal_object(folder / "object.smp", size, bench.sender, bench.smp.key)
            source = f"{bench.smp.s3(bench.store, 'https', tls=True)}{folder.name}/object.smp"
            bench.smp.check(source, digest)
            url = bench.store.url(f"{folder.name}/object.smp", tls=True)
            yield [
                Contestant("SMP", ENDS_AS, lambda: bench.smp.run(source, size)),
                Contestant("curl", CURL_ENDS_AS, lambda: sized(size, peers.curl(url, bench.store.ca))),
                present("s5cmd, then tink", _THEN, forms.s5cmd_tink),
            ]


@dataclasses.dataclass
class Forms:
    """The plaintext in the form of each peer, made when that peer is there, and the way it is read back."""

    bench: Bench
    folder: Path
    size: int
    tls: bool = False
    stack: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> "Forms":
        self.plain = self.bench.work / "plain"
        self.fetched = self.bench.work / "fetched"
        write_plain(self.plain, self.size)
        return self

    def __exit__(self, *_: object) -> None:
        for path in (self.plain, self.fetched):
            path.unlink(missing_ok=True)
        self.stack.close()

    def _key(self, path: Path) -> str:
        return f"{self.folder.name}/{path.name}"

    def _fetched(self, path: Path) -> Sample:
        self.fetched.unlink(missing_ok=True)
        return peers.s5cmd(self.bench.store, f"s3://bucket/{self._key(path)}", self.fetched, tls=self.tls)

    def work_alone(self) -> Callable[[], Sample]:
        """What SMP does with the object, in one process and with nothing around it."""
        path, key_file, key = self.folder / "alone.smp", self.bench.work / "reader.key", os.urandom(32)
        reader = Identity.generate("reader")
        key_file.write_bytes(reader.to_file(credential=bytearray(key)))
        seal_object(path, self.size, self.bench.sender, reader.public)
        asked = {"url": self.bench.store.url(self._key(path)), "size": path.stat().st_size, "key": key.hex()}
        asked |= {"act": "alone_open", "key_file": str(key_file), "sender": self.bench.sender.public.text()}
        return lambda: sized(self.size, self.bench.libraries.do(**asked))

    def s5cmd_tink(self) -> Callable[[], Sample]:
        """s5cmd to tmpfs, then Tink."""
        peers.s5cmd_path()
        path = self.folder / "object.tink"
        keyset = peers.tink_encrypt(self.plain, path)

        def act() -> Sample:
            opened = {"act": "tink_open", "path": str(self.fetched), "keyset": keyset}
            return sized(self.size, in_turn(self._fetched(path), self.bench.libraries.do(**opened)))

        return act

    def s5cmd_age(self) -> Callable[[], Sample]:
        """s5cmd to tmpfs, then age."""
        peers.s5cmd_path()
        path = self.folder / "object.age"
        identity = peers.age_encrypt(self.plain, path)

        def act() -> Sample:
            opened = {"act": "age_open", "path": str(self.fetched), "identity": identity}
            return sized(self.size, in_turn(self._fetched(path), self.bench.libraries.do(**opened)))

        return act

    def rclone(self) -> Callable[[], Sample]:
        """rclone with its crypt backend."""
        rclone = peers.Rclone(self.bench.store)
        self.stack.callback(rclone.forget)
        rclone.encrypt(self.plain, f"{self.folder.name}-object")
        return lambda: sized(self.size, rclone.cat(f"{self.folder.name}-object"))

    def tensorizer(self) -> Callable[[], Sample]:
        """tensorizer, over HTTP by its own curl."""
        path = self.folder / "object.tensors"
        key = peers.tensorizer_encrypt(self.plain, path)
        url = self.bench.store.url(self._key(path))
        return lambda: sized(self.size, self.bench.libraries.do("tensorizer_open", url=url, key=key))
