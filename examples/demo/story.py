"""What happens in the demo, in order."""

import importlib.util
import os
import secrets
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.demo import findings, servers
from examples.demo.stage import DemoError, Stage, table, write_private
from smp_proto.sealed.entries import guess_media_type

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "camera.png")
WORK = (("image.resize", "-p", "width=320"), ("image.edges", "-p", "method=canny"))
UNLOCK = ("--passphrase-file", "sender/passphrase")
CONFIG = """# Small rings: the demo's objects are small, and a laptop's memory is not endless.
[paths]
state = {state}
socket = {socket}
[fetch]
slots = 4
[compute]
slots = 4
[log]
format = "json"
"""


def said(command: Sequence[str]) -> str:
    """A command as a person would type it."""
    return shlex.join(command)


def tell(stage: Stage, data: Path | None) -> None:
    """Play all of it.

    Raises:
        DemoError: something is missing; the text says what.
        subprocess.CalledProcessError: a command failed; what it said is on the screen.
    """
    for program in ("rclone", "smpd", "smpctl"):
        stage.program(program)
    started = time.monotonic()
    photos = gather(stage, data)
    stage.heading("1. Storage: an S3 server and an SFTP server, which nobody trusts")
    storage = servers.start(stage)
    stage.heading("2. The box starts its daemon, which makes its identity, and hands out its public key")
    start_box(stage)
    stage.run("box", "smpctl", "keys", "export", "--box", to="box.pub")
    stage.heading("3. The sender makes an identity and seals the photographs for the box, which needs no daemon")
    bundles = seal(stage, photos)
    stage.heading("4. The sender uploads what was sealed, with any tool: the files are opaque")
    for bundle, place in bundles.items():
        stage.run("sender", "rclone", "--config", "rclone.conf", "copyto", bundle, f"{place}/{bundle}")
    stage.heading("5. The box believes the sender and learns where the storage is; secrets come from files")
    introduce(stage, storage)
    stage.heading("6. The box works on the objects; the results are sealed for sender and box, and uploaded")
    with findings.SpoolWatch(stage.folder / "box" / "state" / "spool", stage.folder / "spool-seen") as spool:
        results = work(stage, bundles)
    stage.heading("7. The sender fetches a result and opens it")
    pictures = open_result(stage, results[-1])
    stage.heading("8. What each place holds: searched for the photographs, the names of the files, and of the objects")
    probes = findings.probes_of([*photos, *pictures], [*bundles, *(name.rpartition("/")[2] for name in results)])
    show_places(stage, probes, spool.kept)
    stage.heading("9. What each process could and could not do")
    show_processes(stage, probes)
    stage.heading("10. What was done")
    show_jobs(stage)
    stage.run("box", "smpctl", "audit", "verify")
    write_down(stage)
    stage.say("")
    stage.say(f"{time.monotonic() - started:.0f} seconds in all. The results, opened by the sender:")
    for picture in pictures:
        stage.say(f"  {picture}")
    stage.say(f"The commands are listed in {stage.output / 'commands.txt'}")


def gather(stage: Stage, data: Path | None) -> list[Path]:
    """Copy the photographs into the sender's folder.

    Raises:
        DemoError: there are none.
    """
    folder = stage.folder / "sender" / "photos"
    stage.environment("sender")
    folder.mkdir()
    if data is None:
        spec = importlib.util.find_spec("skimage")
        if spec is None or not spec.submodule_search_locations:
            raise DemoError("scikit-image, whose photographs the demo uses, is not installed; run: make install")
        shipped = Path(spec.submodule_search_locations[0], "data")
        found = [shipped / name for name in PHOTOGRAPHS]
    else:
        if not data.is_dir():
            raise DemoError(f"{data} is no folder; name one that holds images")
        found = [path for path in sorted(data.iterdir()) if path.is_file() and _is_image(path)]
        left = sum(1 for _ in data.iterdir()) - len(found)
        if left:
            print(f"{left} of the things in {data} are no images and were left out")
    if not found:
        raise DemoError(f"{data} holds no images; name a folder that does")
    return [Path(shutil.copyfile(path, folder / path.name)) for path in found]


def _is_image(path: Path) -> bool:
    with path.open("rb") as file:
        return guess_media_type(path.name, file.read(256)).startswith("image/")


def start_box(stage: Stage) -> None:
    """Write a configuration and start ``smpd`` with it."""
    stage.environment("box")
    state, socket = stage.folder / "box" / "state", stage.folder / "run" / "smpd" / "smpd.sock"
    quoted = {name: f'"{value}"' for name, value in (("state", state), ("socket", socket))}
    (stage.folder / "box" / "smpd.toml").write_text(CONFIG.format(**quoted))
    stage.start(
        "box", "smpd", "--config", "box/smpd.toml", ready=r'"event": ?"started"', log="box/smpd.log"
    )  # fmt: skip


def seal(stage: Stage, photos: Sequence[Path]) -> dict[str, str]:
    """Two bundles, and where each is to go."""
    write_private(stage.folder / "sender" / "passphrase", secrets.token_urlsafe(24).encode() + b"\n")
    stage.run("sender", "smpctl", "keys", "new", "clinic", *UNLOCK)
    stage.run("sender", "smpctl", "keys", "export", "clinic", to="clinic.pub")
    # The page that a package is described by holds a transcript of this; what is searched for must not be found there.
    first, second = (f"bundle-{number}-{secrets.token_hex(3)}.smp" for number in (1, 2))
    places = {first: f"lake:{servers.BUCKET}", second: "ward:"}
    for number, bundle in enumerate(places):
        part = photos[number::2] or photos  # with a single photograph, both hold it
        paths = [str(path.relative_to(stage.folder)) for path in part]
        stage.run("sender", "smpctl", "seal", *paths, "-o", bundle, "--to", "box.pub", *UNLOCK)
    stage.run("sender", "smpctl", "inspect", first)
    return places


def introduce(stage: Stage, storage: servers.Storage) -> None:
    """Trust and remotes."""
    stage.run("box", "smpctl", "trust", "add", "clinic", "clinic.pub")
    stage.run(
        "box",
        *("smpctl", "remote", "add", "lake", f"s3://{servers.BUCKET}", "--endpoint", storage.endpoint),
        *("--addressing", "path", "--secret-file", "lake.toml"),
    )
    stage.run(
        "box",
        *("smpctl", "remote", "add", "ward", f"sftp://{servers.USER}@127.0.0.1:{storage.sftp_port}"),
        *("--known-hosts", "known_hosts", "--identity-file", "ssh_key"),
    )
    for name in ("lake", "ward"):
        stage.run("box", "smpctl", "remote", "test", name)


def work(stage: Stage, bundles: dict[str, str]) -> list[str]:
    """Run each processor over each object, and keep one object in the vault; returns where the results are."""
    results = []
    for bundle, place in bundles.items():
        remote = place.partition(":")[0]
        for processor, *parameters in WORK:
            target = f"{remote}:results/{bundle.removesuffix('.smp')}-{processor.partition('.')[2]}.smp"
            command = ("smpctl", "run", processor, f"{remote}:{bundle}", *parameters, "--to", target)
            stage.run("box", *command)
            results.append(target)
    stage.run("box", "smpctl", "get", f"lake:{next(iter(bundles))}")
    return results


def open_result(stage: Stage, where: str) -> list[Path]:
    """Fetch a result as the sender, and open it into the folder that stays."""
    stage.run("sender", "rclone", "--config", "rclone.conf", "copyto", where, "result.smp")
    stage.run("sender", "smpctl", "keys", "import", "box.pub", "--name", "box")
    stage.run("sender", "smpctl", "open", "result.smp", "-o", "opened", *UNLOCK)
    stage.output.mkdir(parents=True, exist_ok=True)
    opened = sorted(path for path in (stage.folder / "opened").rglob("*") if path.is_file())
    return [Path(shutil.copyfile(path, stage.output / path.name)) for path in opened]


def show_places(stage: Stage, probes: findings.Probes, spooled: Path) -> None:
    """Search every place that outlives the work."""
    folder, state = stage.folder, stage.folder / "box" / "state"
    originals = [folder / "sender" / "photos", folder / "opened", *folder.glob("*.smp")]
    database = [path for path in state.iterdir() if path.name.startswith("smpd.db")]
    rows = [
        findings.search("the sender's own files, to see that the search finds", originals, probes),
        findings.search("what the S3 server keeps", [folder / "storage/s3"], probes),
        findings.search("what the SFTP server keeps", [folder / "storage/sftp"], probes),
        findings.search("box: spool, while the jobs ran", [spooled], probes),
        findings.search("box: vault", [state / "vault"], probes),
        findings.search("box: database", database, probes),
        findings.search("box: audit log", [state / "audit"], probes),
        findings.search("box: the daemon's log", [folder / "box/smpd.log"], probes),
    ]
    _show_found(rows, "files")
    stage.say("An object's name is what its uploader chose, and the storage sees it: do not let it speak.")


def _show_found(rows: Sequence[findings.Found], what: str) -> None:
    heads = ("", what, "bytes", "content", "file names", "object names")
    table([heads, *((row.where, str(row.files), f"{row.size:,}", *row.sums) for row in rows)], right=range(1, 6))


def show_processes(stage: Stage, probes: findings.Probes) -> None:
    """Ask the kernel about the daemon and its workers, and the code about its messages."""
    status = stage.ask("smpctl", "status")[0]
    known = [("smpd", "", status["pid"], status["peak_rss_bytes"])]
    known += [(w["role"], w["label"], w["pid"], w["peak_rss_bytes"]) for w in status["workers"] if w["pid"]]
    heads = ("process", "for", "pid", "peak", "seccomp", "no new privs", "capabilities", "inet sockets", "libraries")
    rows = [heads]
    for role, label, pid, peak in known:
        rows.append((role, label, str(pid), f"{peak >> 20} MiB", *findings.process(pid)))
    table(rows, right=(2, 3))
    stage.say("")
    for role in findings.IMPORTS:
        modules, unwanted, found = findings.brought_along(role)
        verdict = f"brings {', '.join(found)}" if found else f"brings none of {', '.join(unwanted)}"
        stage.say(f"{role}: importing {modules} {verdict}")
    names, fields = findings.messages_to_fetch()
    stage.say(f"fetch: can be told {', '.join(names)}; the secrets in them: {', '.join(fields) or 'none'}")
    for check in stage.ask("smpctl", "doctor"):
        if check["name"].startswith("sandbox"):
            stage.say(f"compute: {check['name']}: {check['text']}")
    stage.say("")
    rows_found = [
        row
        for role, label, pid, _ in known
        if (row := findings.search_memory(f"memory of {role} {label}".rstrip(), pid, probes))
    ]
    if rows_found:
        _show_found(rows_found, "regions")
        stage.say("smpd and compute work on plaintext, so some may be left in memory they freed; fetch never has any.")
    else:
        stage.say("The memory of these processes cannot be searched: the kernel hides it even from their own user.")


def show_jobs(stage: Stage) -> None:
    """The closing table."""
    heads = ("job", "processor", "object", "result", "sealed", "fetched", "seconds", "device", "")
    rows: list[tuple[str, ...]] = [heads]
    jobs: list[Any] = stage.ask("smpctl", "jobs")
    for job in reversed(jobs):
        result, moved = job["result"], job["transfer"]
        sizes = (result["plain_bytes"], result["sealed_bytes"], moved["fetched_bytes"])
        what = (job["id"], job["processor"] or job["kind"], job["source"])
        how = (f"{moved['seconds']:.2f}", moved["device"] or "none", job["state"])
        rows.append((*what, *(f"{size:,}" for size in sizes), *how))
    table(rows, right=(3, 4, 5, 6))


def write_down(stage: Stage) -> None:
    """The commands, for going on by hand."""
    lines = [
        "# The commands that the demo ran, by the sender and by the box. Paths are relative to its temporary folder,",
        "# which `python -m examples.demo --keep` leaves in place. In it, the box's smpctl needs",
        "# XDG_RUNTIME_DIR=$PWD/run, and the sender's XDG_CONFIG_HOME=$PWD/sender/config. Ports are those of that run.",
        *stage.commands,
    ]
    (stage.output / "commands.txt").write_text(os.linesep.join(lines) + "\n")
