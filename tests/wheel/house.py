"""Wheels of what is installed here, so that an installation can be tried without a network."""

import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_LOCAL = ("INSTALLER", "REQUESTED", "direct_url.json", "RECORD")


def closure(requirements: Iterable[str], extras: Iterable[str] = ()) -> set[str]:
    """The names of all distributions that these requirements bring, with those named by ``extras``."""
    found: set[str] = set()
    queue = [(text, tuple(extras)) for text in requirements]
    seen = set()
    while queue:
        text, wanted = queue.pop()
        requirement = Requirement(text)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": each}) for each in ("", *wanted)):
            continue
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key not in seen:
            seen.add(key)
            found.add(key[0])
            queue += [(each, tuple(requirement.extras)) for each in distribution(key[0]).requires or ()]
    return found


def repack(name: str, folder: Path) -> Path:
    """Make a wheel of an installed distribution again, from the files that its RECORD names."""
    source: Distribution = distribution(name)
    tags = [
        line.partition(": ")[2] for line in (source.read_text("WHEEL") or "").splitlines() if line.startswith("Tag")
    ]
    path = folder / f"{canonicalize_name(source.name).replace('-', '_')}-{source.version}-{tags[0]}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        record = ""
        for file in source.files or ():
            if ".." in file.parts or file.suffix == ".pyc":
                continue
            info = file.parts[0].endswith(".dist-info")
            if not (info and file.name in _LOCAL):
                archive.write(str(source.locate_file(file)), str(file))
                record += f"{file},,\n"
            elif file.name == "RECORD":
                record_at = str(file)
        archive.writestr(record_at, f"{record}{record_at},,\n")
    return path
