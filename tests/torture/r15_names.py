"""R15: hostile names, wherever a name of others could become a path: opening an object, local remotes, listings, results."""

import contextlib
import os
import random
import re
import string
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

import anyio
from box import Box
from sealed.forge import entry, forge, trusting

from smp_proto import durable
from smp_proto.control import GetSpec, LocalConfig, ObjectInfo, RunSpec, S3Config, S3Secret
from smp_proto.errors import SmpError
from smp_proto.sealed import entries
from smp_proto.sealed.bundle import BundleWriter
from smp_proto.sealed.keys import PublicIdentity
from smpctl import Client, landing
from smpctl.landing import Landing
from smpctl.sealing import open_file, sealed_file
from smpd.fetch import local
from smpd.fetch.local import LocalRemote
from smpd.fetch.remote import is_listed, walk_folders
from smpd.vault.remotes import parse_location
from torture.harness import Experiment, Trial, Trials, replaced
from torture.tampering import BOX, SENDER

BUCKET = "scans"
EVERY = 10  # one of so many also lies in a bucket that a real daemon takes all from,
PLANTED = 30  # after the first
CONTENT = b"written by a hostile name"


class Arena:
    """A folder that things may be written to, among others that nothing may be written to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "arena"
        self.root = self.folder / "root"
        self.outside = self.folder / "outside"
        for each in (self.root / "inner", self.outside / "folder"):
            each.mkdir(parents=True)
        (self.outside / "file").write_bytes(b"as it was")
        (self.root / "link").symlink_to(self.outside)
        (self.root / "inner" / "up").symlink_to("../..")
        (self.root / "file").symlink_to(self.outside / "file")
        (self.root / "new").symlink_to(self.outside / "made")
        (self.root / "to-root").symlink_to("/")
        self._before = self._seen()

    def _seen(self) -> dict[str, object]:
        """All that is not below the root, the links in it as such."""
        found: dict[str, object] = {}
        for folder, folders, files in os.walk(self.folder):
            if folder == str(self.folder):
                folders.remove("root")
            for name in [*folders, *files]:
                path = os.path.join(folder, name)
                stat = os.lstat(path)
                content = Path(path).read_bytes() if os.path.isfile(path) else b""
                found[path] = (stat.st_mode, stat.st_ino, stat.st_mtime_ns, content)
        return found

    def untouched(self) -> None:
        """See that nothing was written, made or removed outside of the root."""
        assert self._seen() == self._before, "something outside of the root is not as it was"

    def landed(self) -> list[Path]:
        """Plain files below the root that hold what a hostile name was given."""
        found = []
        for path in self.root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                assert path.resolve().is_relative_to(self.root.resolve())
                found.append(path)
        return found


def hostile(arena: Arena, kind: int, rng: random.Random) -> list[str]:
    """A name, or two that clash, of one of the kinds there are."""
    word = "".join(rng.choices(string.ascii_letters, k=6))
    up = "../" * rng.randrange(1, 5)
    kinds: list[Callable[[], list[str]]] = [
        lambda: [f"{up}{word}"],
        lambda: [f"link/{word}"],
        lambda: ["file"],
        lambda: [durable.part_name(), f"{durable.part_name()}/{word}"],
        lambda: [f"{arena.outside}/{word}"],
        lambda: [f"{word}/{up}outside/{word}"],
        lambda: [f"inner/../../outside/{word}"],
        lambda: [f"/{arena.outside}/file"],
        lambda: [f"{word}\0{word}", f"../outside/{word}\0.smp"],
        lambda: ["new"],
        lambda: ["link/file"],
        lambda: ["link"],
        lambda: [f"inner/up/outside/{word}"],
        lambda: [f"to-root{arena.outside}/{word}"],
        lambda: [rng.choice(["", ".", "..", "/", "//", "./x", "x/.", "x/..", "a//b", "a/", "/a"])],
        lambda: [word * 700],
        lambda: ["/".join([word * 40] * 17)],
        lambda: [word * 43],
        lambda: [unicodedata.normalize("NFC", f"é{word}"), unicodedata.normalize("NFD", f"é{word}")],
        lambda: [word.lower(), word.upper()],
        lambda: [f"{word}/stra\u00dfe", f"{word}/STRASSE"],
        lambda: [f"{word}\ufb01", f"{word}fi"],
        lambda: [word, f"{word}/{word}"],
        lambda: [f"{word}/{word}", f"{word.swapcase()}"],
        lambda: [f"..\\{word}", f"C:\\{word}"],
        lambda: [f"{word}\ud800", f"{word}\udcff"],
        lambda: [f"{word}\n{word}", f"\x1b[2J{word}", f"{word}\u2028"],
        lambda: [f"\u202e{word}", f"\uff0e\uff0e/{word}", f"\u2024\u2024/outside/{word}"],
        lambda: [rng.choice(["con", "NUL.txt", "aux", f"{word}.", f"{word} ", "~", "-rf", "*", "$HOME"])],
        lambda: ["".join(chr(rng.choice([*range(1, 0x180), 0x2F, 0x2E])) for _ in range(rng.randrange(1, 40)))],
    ]
    return kinds[kind % len(kinds)]()


# ── where a name becomes a path ────────────────────────────────────────────────────────────────────────────


def land(arena: Arena, names: Sequence[str], rng: random.Random) -> None:
    """What smpctl does with the names that a daemon gives it."""
    with contextlib.suppress(SmpError), Landing(arena.root, overwrite=rng.random() < 0.5) as where:
        where.plan(names)
        for name in names:
            fd = where.create(name)
            os.write(fd, CONTENT)
            os.close(fd)
        where.commit({name: len(CONTENT) for name in names})
    _stay(arena, names)


def open_forged(arena: Arena, names: Sequence[str], rng: random.Random) -> None:
    """``smpctl open`` of an object whose index was signed with these names."""
    made = [entry(_text(name), CONTENT, len(CONTENT) * at) for at, name in enumerate(names)]
    plain = CONTENT * len(names)
    _open(arena, forge(plain, made, sender=SENDER, recipients=[BOX.public]), names, rng)


def open_sealed(arena: Arena, names: Sequence[str], rng: random.Random) -> None:
    """The names of a processor's results, and of files that were put: those that are sealed come out inside."""
    data = bytearray()
    writer = BundleWriter(data.extend, sender=SENDER, recipients=[BOX.public])
    try:
        for name in names:
            writer.begin(name)
            writer.write(CONTENT)
            writer.end()
        writer.finish()
    except SmpError as error:
        assert error.code == "bad_name"
        return
    finally:
        writer.abort()
    _open(arena, bytes(data), names, rng)


def _open(arena: Arena, data: bytes, names: Sequence[str], rng: random.Random) -> None:
    file = arena.folder.parent / "object.smp"
    file.write_bytes(data)
    with contextlib.suppress(SmpError), sealed_file(str(file)) as sealed:
        open_file(sealed, str(arena.root), identity=BOX, trust=trusting(SENDER), overwrite=rng.random() < 0.5)
    _stay(arena, names)


def _stay(arena: Arena, names: Sequence[str]) -> None:
    """What landed is still there after something else landed beside it."""
    landed = arena.landed()
    with Landing(arena.root) as where:
        os.close(where.create("another"))
        where.commit({"another": 0})
    assert all(path.exists() for path in landed), "what has landed is gone again"


def write_local(arena: Arena, names: Sequence[str], rng: random.Random) -> None:
    """A local remote asked to write, read, list and remove: by a fetch process, as whatever it is told."""

    async def use() -> None:
        remote = LocalRemote(LocalConfig(str(arena.root)))
        fd = os.memfd_create("source")
        os.write(fd, CONTENT)

        async def progress(_: int) -> None:
            return None

        for name in names:
            for act in (
                lambda name=name: remote.write(name, fd, len(CONTENT), progress),
                lambda name=name: remote.stat(name),
                lambda name=name: _listed(remote, name),
                lambda name=name: remote.delete(name),
            ):
                with contextlib.suppress(SmpError, ValueError):  # a NUL or a lone surrogate: no message has one
                    found = await act()
                    if isinstance(found, ObjectInfo) and found.path == name:
                        assert (arena.root / name).resolve().is_relative_to(arena.root.resolve())
        os.close(fd)

    anyio.run(use)


async def _listed(remote: LocalRemote, prefix: str) -> None:
    async for info in remote.walk(prefix, recursive=True):
        assert b"as it was" != (await _read(remote, info)), "it lists and reads what is outside"


async def _read(remote: LocalRemote, info: ObjectInfo) -> bytes:
    into = bytearray(info.size)
    await remote.read(info.path, info.pin, 0, memoryview(into))
    return bytes(into)


def targets(arena: Arena, names: Sequence[str], rng: random.Random) -> None:
    """A location that somebody submits: what is let through is written below the root, and is listed then."""

    async def deliver(path: str) -> None:
        remote = LocalRemote(LocalConfig(str(arena.root)))
        fd = os.memfd_create("source")
        try:
            os.write(fd, CONTENT)
            await remote.write(path, fd, len(CONTENT), _no_progress)
        finally:
            os.close(fd)
        assert path in [info.path async for info in remote.walk("", recursive=True)], "what was delivered is not there"

    for name in names:
        with contextlib.suppress(SmpError):
            anyio.run(deliver, parse_location(f"disk:{name}").path)


async def _no_progress(_: int) -> None:
    return None


def listing(arena: Arena, names: Sequence[str], rng: random.Random) -> None:
    """What an SFTP server says is in a folder: no name leads out of that folder."""

    async def look() -> None:
        async def entries_of(folder: str) -> list[ObjectInfo]:
            return [ObjectInfo(f"{folder}{name}", 1) for name in names if is_listed(name, folder)] if folder else []

        with contextlib.suppress(SmpError):
            async for info in walk_folders("in/", False, entries_of):
                assert info.path.startswith("in/")
                rest = info.path.removeprefix("in/")
                assert rest not in ("", ".", ".."), f"{info.path!r} is no object of the folder"
                assert not set("/\0") & set(rest), f"{info.path!r} is in another folder"

    anyio.run(look)


WAYS = [land, open_forged, open_sealed, write_local, targets, listing]


# ── a bucket full of them, and a real daemon ───────────────────────────────────────────────────────────────


@contextlib.contextmanager
def bucket(objects: dict[str, bytes]) -> Iterator[S3Config]:
    """An S3 server that lists whatever keys it likes."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = parse_qs(url.query, keep_blank_values=True)
            if "list-type" in query or "prefix" in query:
                self._answer(200, _xml(objects, query.get("prefix", [""])[0]), [])
                return
            data = objects.get(unquote(url.path, errors="surrogateescape").removeprefix(f"/{BUCKET}/"))
            if data is None:
                self._answer(404, b"", [])
                return
            start, end, asked = 0, len(data), re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
            if asked and asked[1]:
                start, end = int(asked[1]), min(int(asked[2] or len(data)) + 1, len(data))
            elif asked:
                start = max(0, len(data) - int(asked[2]))
            head = [("ETag", f'"{len(data)}"'), ("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")]
            self._answer(206 if asked else 200, data[start:end], head)

        def _answer(self, status: int, body: bytes, head: list[tuple[str, str]]) -> None:
            self.send_response(status)
            self.send_header("Last-Modified", "Fri, 20 Nov 2026 12:00:00 GMT")
            self.send_header("Content-Length", str(len(body)))
            for name, value in head:
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield S3Config(BUCKET, endpoint=f"http://127.0.0.1:{server.server_port}", addressing="path")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _xml(objects: dict[str, bytes], prefix: str) -> bytes:
    found = "".join(
        f"<Contents><Key>{escape(quote(key, errors='surrogateescape'))}</Key><Size>{len(data)}</Size>"
        f"<ETag>&quot;{len(data)}&quot;</ETag><LastModified>2026-11-20T12:00:00.000Z</LastModified></Contents>"
        for key, data in sorted(objects.items())
        if key.startswith(prefix)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{BUCKET}</Name><EncodingType>url</EncodingType><KeyCount>{len(objects)}</KeyCount>"
        f"<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
    ).encode()


def by_a_daemon(folder: Path, keys: Sequence[tuple[Trial, list[str]]]) -> int:
    """A get of each trial's keys, and a run whose results are named after them; returns how many keys there were."""
    if not keys:
        return 0
    arena = Arena(folder)
    machine = Box(folder / "box", {"compute": {"processors": ["digest"], "device": "cpu"}})
    objects: dict[str, bytes] = {}
    try:
        machine.start()
        with bucket(objects) as config, Client(str(machine.socket)) as client:
            public = PublicIdentity.parse(client.box_key().text)
            client.trust_add("sender", SENDER.public.text())
            client.remote_add("s3", config, secret=S3Secret("key", "secret"))
            for trial, names in keys:
                with trial:
                    objects.clear()
                    for name in names:
                        objects[f"in/{name}"] = forge(CONTENT, sender=SENDER, recipients=[public])
                    took = client.wait(client.submit(GetSpec("s3:in/")).id)
                    assert took.state in ("done", "failed", "quarantined"), took
                    assert not took.error or took.error.code != "internal", took.error
                    if trial.number >= 100:
                        _run(client, arena)
                    _within(machine)
                    arena.untouched()
    finally:
        machine.close()
    return sum(len(names) for _, names in keys)


def _run(client: Client, arena: Arena) -> None:
    view = client.wait(client.submit(RunSpec("s3:in/", "digest")).id)
    assert not view.error or view.error.code != "internal", view.error
    if view.result:
        with contextlib.suppress(SmpError):
            client.vault_open(view.result.vault_id, arena.root)


def _within(machine: Box) -> None:
    """The daemon's own folders hold only what it names itself."""
    for name in os.listdir(machine.state / "vault" / "objects"):
        assert re.fullmatch(r"[0-9a-v]{16}\.smp", name), name
    for name in os.listdir(machine.state / "spool"):
        assert re.fullmatch(r"[0-9a-v]{16}(\.[0-9a-f]{16})?\.(part|out)", name), name


def run(trials: Trials) -> None:
    """A way and a name in turn, in an arena of its own."""
    keys: list[tuple[Trial, list[str]]] = []
    inside = 0
    for trial in trials:
        with trial:
            arena = Arena(trial.folder)
            names = hostile(arena, trial.number // len(WAYS), trial.rng)
            WAYS[trial.number % len(WAYS)](arena, names, trial.rng)
            arena.untouched()
            inside += sum(path.read_bytes() == CONTENT for path in arena.landed())
        if trial.number % EVERY == EVERY // 2 and trial.number >= PLANTED:
            keys.append((trial, [name for name in names if _utf8(name)]))
    trials.figures["written inside"] = inside
    trials.figures["names in a bucket, by a daemon"] = by_a_daemon(trials.folder / "daemon", keys)


def _utf8(name: str) -> bool:
    with contextlib.suppress(UnicodeEncodeError):
        return bool(name.encode())
    return False


def _text(name: str) -> str:
    """A name that msgpack can say."""
    return name.encode("utf-8", "replace").decode()


def _any_name(names: entries.NameSet, name: str) -> None:
    names._names.add(name)


def _follow(root: int, path: str, flags: int, mode: int = 0) -> int:
    return os.open(path, flags | os.O_CLOEXEC, mode, dir_fd=root)


EXPERIMENT = Experiment(
    id="R15",
    title="hostile names: .., absolute, NUL, symlinks in the way, 4 KB, normal forms, case, reserved",
    passes="0 writes outside the root",
    trials=200,
    short=36,
    run=run,
    plants={
        "any name goes": lambda: replaced(entries.NameSet, "add", _any_name),
        "links are followed": lambda: replaced(landing, "_FOLDER", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC),
        "a local remote goes anywhere": lambda: replaced(local, "open_beneath", _follow),
    },
    planted_trials=PLANTED,
)
