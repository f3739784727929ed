"""``digest``: SHA-256 of each entry, read back from the device. It tells whether what was sealed is what arrived."""

import hashlib
from collections.abc import Iterator

import msgspec

from smpd.processors.api import Context, Output, StreamItem, processor
from smpd.processors.host import host_bytes


@processor("digest", accepts="*", group=True, stream=True)
def digest(items: Iterator[StreamItem], _context: Context[None]) -> Iterator[Output]:
    """SHA-256 of each entry, as JSON and in the form that ``sha256sum -c`` reads."""
    found: list[dict[str, str | int]] = []
    for item in items:
        hasher = hashlib.sha256()
        for window in item:
            hasher.update(host_bytes(window))
        found.append({"name": item.name, "sha256": hasher.hexdigest(), "size": item.size})
    yield Output("digests.json", msgspec.json.encode(found), "application/json")
    yield Output("SHA256SUMS", "".join(map(_line, found)).encode(), "text/plain")


def _line(entry: dict[str, str | int]) -> str:
    """One line of sha256sum(1): a name with a backslash or a line break is escaped, and the line says so first."""
    name = str(entry["name"])
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    mark = "\\" if escaped != name else ""
    return f"{mark}{entry['sha256']}  {escaped}\n"
