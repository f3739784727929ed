"""Checks of ``doctor`` that ask the machine: files, their rights, memory, descriptors, the clock. Blocking."""

import os
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

from smp_proto.audit.record import parse_line
from smp_proto.control import Check, TrustView
from smp_proto.errors import SmpError, UsageError
from smpd.audit.kept import KeptLog
from smpd.config import Config
from smpd.host import descriptors
from smpd.host.bounds import bounds
from smpd.host.clock import Clock
from smpd.host.credentials import check_secret
from smpd.host.program import is_replaced
from smpd.host.space import Room
from smpd.jobs.holding import Short

_FREE_LOW_BYTES = 1 << 30
_CLOCK_S = 2.0  # more than a leap second
_SKEW_S = 60.0  # a date in HTTP has whole seconds, and S3 refuses requests beyond 15 minutes
_ENDING_S = 14 * 86_400.0
_SET_CLOCK = "run: timedatectl set-ntp true, and see timedatectl timesync-status"


def disk_check(room: Room, short: Short) -> Check:
    """What is free, and what waits for it."""
    text = f"{room.free >> 20} MiB free, {room.held >> 20} of {room.reserve >> 20} MiB held in reserve"
    if room.claimed:
        text += f", {room.claimed >> 20} MiB claimed by running jobs"
    if short.jobs:
        text += f"; {short.jobs} jobs wait for {short.bytes >> 20} MiB"
    low = room.free < _FREE_LOW_BYTES or room.held < room.reserve
    state: Literal["ok", "warn", "fail"] = "fail" if short.jobs or room.held < room.reserve else "warn" if low else "ok"
    return Check("disk", state, text, "free some space: smpctl vault ls, smpctl vault rm ID" if state != "ok" else "")


def program_checks() -> Iterator[Check]:
    """What there is to say of an upgrade while the daemon runs."""
    if is_replaced():
        text = "another version was installed since smpd was started, which starts no worker process any more"
        yield Check("daemon", "fail", text, "run: systemctl restart smpd; jobs go on by themselves")


def files_check(files: descriptors.Descriptors) -> Check:
    """Open files against their limit."""
    text = f"{files.open} open of {files.limit} (RLIMIT_NOFILE); this configuration may come to {files.needed}"
    if files.limit >= files.needed:
        return Check("files", "ok", text)
    return Check("files", "warn", text, "raise LimitNOFILE; until then fewer connections are accepted")


def memory_check(config: Config, mapped_bytes: int) -> Check:
    """Whether the rings of one remote and of one compute process fit into what is left; ``mapped_bytes`` are there."""
    tightest = min(bounds(), key=lambda bound: bound.left, default=None)
    if tightest is None:
        return Check("memory", "warn", "how much there is cannot be told", "see that /proc is mounted")
    slots = config.fetch.processes_max * config.fetch.slots + config.compute.slots + config.compute.result_slots
    needed = slots * config.fetch.slot_bytes
    text = f"{max(tightest.left, 0) >> 20} MiB left of {tightest.name}; a job's rings take {needed >> 20} MiB"
    if tightest.left + mapped_bytes >= needed:
        return Check("memory", "ok", text)
    hint = "lower fetch.slots, fetch.slot_bytes or compute.slots, raise the limit (MemoryMax), or free memory"
    return Check("memory", "fail", text, hint)


def locked_check(ring_bytes: int) -> Check:
    """Whether the rings, which hold plaintext, are kept out of swap."""
    found = _table("/proc/self/status", "VmLck")
    swap = _table("/proc/meminfo", "SwapTotal")
    text = f"{min(found, ring_bytes) >> 20} of {ring_bytes >> 20} MiB of rings are locked in memory"
    if found >= ring_bytes:
        return Check("swap", "ok", text)
    if not swap:
        return Check("swap", "ok", f"{text}; this machine has no swap")
    hint = "set LimitMEMLOCK=infinity in the unit (ulimit -l unlimited), or turn swap off: swapoff -a"
    return Check("swap", "warn", f"{text}: the rest, content and all, may be written to the swap", hint)


def clock_checks(clock: Clock, audit: KeptLog) -> list[Check]:
    """Whether the wall clock was set since the start, or is behind what the audit log says."""
    moved = clock.moved_s()
    if abs(moved) > _CLOCK_S:
        text = f"the clock was set {'forward' if moved > 0 else 'back'} by {abs(moved):.0f} s since smpd started"
        return [Check("clock", "warn", text, _SET_CLOCK)]
    behind = _newest(audit) - time.time()
    if behind > _CLOCK_S:
        text = f"the clock is {behind:.0f} s behind the newest record of the audit log"
        return [Check("clock", "fail", text, f"it is wrong, or was: {_SET_CLOCK}")]
    return [Check("clock", "ok", f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, not set since smpd started")]


def _newest(audit: KeptLog) -> float:
    lines = audit.read(audit.size - 1, 1) if audit.size else []
    return datetime.fromisoformat(parse_line(lines[-1]).time).timestamp() if lines else 0.0


def skew_check(remote: str, date: str) -> Check | None:
    """Compare the ``Date`` of a server (RFC 9110 §6.6.1) with this box's clock; None where it says none."""
    try:
        ahead = parsedate_to_datetime(date).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    if abs(ahead) <= _SKEW_S:
        return None
    text = f"its clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this box's"
    return Check(f"remote {remote}", "warn", text, f"beyond 900 s S3 refuses every request; {_SET_CLOCK}")


def trust_checks(senders: list[TrustView], now: float) -> Iterator[Check]:
    """Senders that are soon not believed any more, or are not already."""
    for sender in senders:
        if sender.until and not sender.removed and sender.until - now < _ENDING_S:
            day = f"{datetime.fromtimestamp(sender.until, UTC):%Y-%m-%d}"
            text = f"trust in {sender.name} {'ended' if sender.until <= now else 'ends'} on {day}"
            again = f"smpctl trust remove {sender.name}, then: smpctl trust add {sender.name} KEYFILE --until DATE"
            hint = f"to go on believing it: {again}"
            yield Check("trust", "warn", text, hint)


def rights_checks(config: Config) -> list[Check]:
    """Whether somebody else may read the keys or the state, or write the configuration."""
    state = config.paths.state
    keys = os.path.join(state, "keys")
    places = [state, *_inside(state), *_inside(keys), *_inside(os.path.join(keys, "copies"))]
    found = [check for path in places if (check := _private(path))]
    for secret in (config.keys.credential_file, config.keys.passphrase_file, config.notify.header_file):
        if secret:
            try:
                check_secret(secret)
            except UsageError as error:
                found.append(Check("keys", "fail", error.message, error.hint))
    if config.file:
        found += [check for path in (config.file, os.path.dirname(config.file)) if (check := _trusted(path))]
    return found or [
        Check("rights", "ok", "keys and state are closed to others, the configuration is not theirs to write")
    ]


def _inside(folder: str) -> list[str]:
    try:
        return [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
    except OSError:
        return []


def _private(path: str) -> Check | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None  # gone since it was listed
    if found.st_uid not in (0, os.geteuid()):
        text = f"{path} belongs to user {found.st_uid}"
        return Check("rights", "fail", text, f"run: chown {os.geteuid()} {path}")
    if stat.S_IMODE(found.st_mode) & 0o077 and not stat.S_ISLNK(found.st_mode):
        return Check("rights", "fail", f"{path} is open to others ({_mode(found)})", f"run: chmod go= {path}")
    return None


def _trusted(path: str) -> Check | None:
    try:
        found = os.stat(path)
    except OSError as error:
        text = f"{path} cannot be looked at: {error.strerror}"
        return Check("configuration", "warn", text, "the next start reads it again: put it back")
    sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
    if found.st_uid in (0, os.geteuid()) and (not found.st_mode & 0o022 or sticky):
        return None
    text = f"{path} can be written by others ({_mode(found)}, user {found.st_uid}): they decide who may do what here"
    return Check("configuration", "fail", text, f"run: chown root {path}; chmod go-w {path}")


def _mode(found: os.stat_result) -> str:
    return f"{stat.S_IMODE(found.st_mode):04o}"


def _table(path: str, name: str) -> int:
    """A row in kB of a file of /proc, in bytes; 0 where it is not told."""
    try:
        with open(path) as file:
            return next((int(line.split()[1]) << 10 for line in file if line.startswith(f"{name}:")), 0)
    except (OSError, ValueError):
        return 0


def failed(name: str, error: SmpError) -> Check:
    """A check that ended in an error."""
    return Check(name, "fail", error.message, error.hint)
