"""``make demo``, as it is: real servers, real daemon, real processes."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from examples.demo.findings import messages_to_fetch
from smpd.walls.sandbox import Kernel

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 110

pytestmark = pytest.mark.skipif(
    not shutil.which("rclone", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])),
    reason="rclone is not installed",
)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a short name: the demo's own holds a socket, whose path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="smp-") as folder:
        yield Path(folder)


def _images(folder: Path) -> Path:
    """Three small images, no two alike, and a file that is none."""
    folder.mkdir()
    for number in range(3):
        Image.effect_noise((48 + number, 40), 60).save(folder / f"picture-{number}.png")
    (folder / "notes.txt").write_text("not an image\n")
    return folder


def _command(tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    data = _images(tmp_path / "data")
    (tmp_path / "t").mkdir()
    names = ("PATH", "LANG", "HOME")
    environment = {name: os.environ[name] for name in names if name in os.environ} | {"TMPDIR": str(tmp_path / "t")}
    argv = [sys.executable, "-m", "examples.demo", "--data", str(data), "--output", str(tmp_path / "out")]
    return argv, environment


def _left_behind(tmp_path: Path) -> list[str]:
    """Processes whose command line or working folder is in a temporary folder of the demo."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                where = os.readlink(process / "cwd")
                said = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if str(tmp_path / "t") in where or os.fsencode(tmp_path / "t") in said:
                found.append(f"{process.name} {said!r}")
    return found


def _row(text: str, start: str) -> list[str]:
    """The cells of the first row of a table that begins so."""
    line = next(line for line in text.splitlines() if line.strip().startswith(start))
    return [cell.strip() for cell in line.strip().removeprefix(start).split("  ") if cell]


def test_demo_goes_all_the_way(place: Path) -> None:
    """It ends with exit code 0, the results are pictures, no place of the box holds plaintext, and it tidies up."""
    argv, environment = _command(place)
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    pictures = sorted((place / "out").glob("*.png"))
    assert pictures
    for picture in pictures:
        with Image.open(picture) as image:
            image.verify()
    commands = (place / "out" / "commands.txt").read_text()
    assert all(program in commands for program in ("smpctl seal", "smpctl run image.edges", "smpd --config", "rclone"))
    searched, total = _row(done.stdout, "the sender's own files")[-3].split(" of ")
    assert int(searched) == int(total) > 0  # the search finds what is there
    for medium in ("what the S3", "what the SFTP", "box: spool", "box: vault", "box: data", "box: audit", "box: the d"):
        files, _, content, names, _ = _row(done.stdout, medium)[-5:]
        assert int(files) > 0, medium
        assert (content.split()[0], names.split()[0]) == ("0", "0"), medium
    assert _row(done.stdout, "compute")[3:6] == ["filter", "on", "none"] or not Kernel.probe().seccomp
    assert list((place / "t").iterdir()) == []
    assert _left_behind(place) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_tidies_up_when_interrupted(place: Path, number: signal.Signals) -> None:
    """Ctrl-C, or being told to end, in the middle leaves neither processes nor a folder."""
    argv, environment = _command(place)
    with subprocess.Popen(
        [argv[0], "-u", *argv[1:]],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout
        seen = ""
        for line in process.stdout:
            seen += line
            if "smpctl trust add" in line:
                os.killpg(process.pid, number)
                break
        seen += process.stdout.read()
        assert process.wait(TIMEOUT_S) == 130, seen
    assert list((place / "t").iterdir()) == []
    assert _left_behind(place) == []


def test_the_page_shows_the_messages_of_today() -> None:
    """What README prints of the demo has every message to a fetch process, and what of them is secret."""
    messages, secrets = messages_to_fetch()
    told = f"fetch: can be told {', '.join(messages)}; the secrets in them: {', '.join(secrets)}\n"
    assert told in (ROOT / "README.md").read_text()


def test_demo_names_what_is_missing(tmp_path: Path) -> None:
    """A folder without images is refused with a sentence and exit code 1."""
    (tmp_path / "empty").mkdir()
    argv = [sys.executable, "-m", "examples.demo", "--data", str(tmp_path / "empty"), "--output", str(tmp_path / "out")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 1
    assert "holds no images" in done.stderr
