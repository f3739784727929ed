"""What makes a machine with systemd a box: files to be written and commands to be run, as a plan that can be looked at.

The units come with the package. What is there and the same is left alone, the configuration is never replaced, and an
identity that exists keeps what seals it.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from typing import Literal, NamedTuple

from smp_proto import durable
from smp_proto.errors import DeniedError, ResourceError, UsageError

UNITS = "etc/systemd/system"
KEY_FILE = "/etc/credstore.encrypted/smpd.key"
CONFIG_FILE = "etc/smpd/config.toml"
KEYS_FOLDER = "var/lib/smpd/keys"
KEY_BYTES = 32
_PROGRAMS = "/opt/smp/venv/bin"  # in the units as they come
_COMPUTE_FILE = f"{UNITS}/smpd.service.d/compute.conf"
_CREDENTIAL_FILE = f"{UNITS}/smpd.service.d/credential.conf"
_HIDDEN = ("home", "root", "tmp", "run")  # from the units
_RUN_S = 300.0  # smpd may take three minutes to try its device
_SOURCES = (
    ("sysusers.d/smpd.conf", "etc/sysusers.d/smpd.conf"),
    ("tmpfiles.d/smpd.conf", "etc/tmpfiles.d/smpd.conf"),
    ("smpd.service", f"{UNITS}/smpd.service"),
    ("smpd.socket", f"{UNITS}/smpd.socket"),
    ("smpd-compute@.service", f"{UNITS}/smpd-compute@.service"),
    ("smpd-compute.socket", f"{UNITS}/smpd-compute.socket"),
    ("smpd-metrics.service", f"{UNITS}/smpd-metrics.service"),
)
_CONFIG = """\
# Read by smpd at its start and at: systemctl reload smpd
# Every key has a default. What holds, and where it comes from: smpd check-config
"""
_CONFIG_COMPUTE = """
[compute]
start = "socket"
"""
_CREDENTIAL = f"""\
# The key that unlocks the identity, sealed to this machine. Named, so that smpd does not start without it.
[Service]
LoadCredentialEncrypted=smpd.key:{KEY_FILE}
Environment=SMPD_KEYS_CREDENTIAL_FILE=%d/smpd.key
"""
_NO_DEVICE = """\
# smpd-compute@.service has the device.
[Service]
DeviceAllow=
PrivateDevices=yes
"""


class Options(NamedTuple):
    """What kind of box it is to be.

    Attributes:
        root: the folder that stands for the root folder, where a machine is made that is not this one.
        programs: the folder with ``smpd`` and ``smpctl``, as that machine sees it.
        compute: who starts compute processes, as ``compute.start`` of the configuration.
        credential: whether the identity is to be unlocked by a credential of systemd.
        start: whether the units are to be enabled and started.
    """

    root: str = "/"
    programs: str = _PROGRAMS
    compute: Literal["spawn", "socket"] = "spawn"
    credential: bool = True
    start: bool = True

    @property
    def here(self) -> bool:
        """Whether it is this machine."""
        return self.root == "/"


class File(NamedTuple):
    """A file to be written; with ``keep`` only where there is none."""

    path: str
    text: str
    keep: bool = False


class Gone(NamedTuple):
    """A file of an earlier setup that is to go."""

    path: str


class Run(NamedTuple):
    """A command to be run; with ``key`` it is given a new secret on its standard input."""

    argv: tuple[str, ...]
    key: bool = False


class Note(NamedTuple):
    """Something that a person should know or do."""

    text: str


Step = File | Gone | Run | Note


def sources() -> str:
    """The folder that the units come in: of the checkout, or of the installed package.

    Raises:
        ResourceError: ``setup_failed``, it is not there.
    """
    checkout = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "systemd")
    for folder in (checkout, os.path.join(sys.prefix, "share", "smp", "systemd")):
        if os.path.exists(os.path.join(folder, "smpd.service")):
            return folder
    raise ResourceError("setup_failed", "the units did not come with this package", hint="install it anew, with pip")


def plan(options: Options) -> Iterator[Step]:
    """The steps, in order.

    Raises:
        UsageError: ``bad_request``; the programs are where the units cannot run them, or a link leads out of the root.
        ResourceError: ``setup_failed``; the units are not there.
    """
    check_programs(options)
    _check_root(options)
    folder = sources()
    for name, target in _SOURCES:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            yield File(target, file.read().replace(f"{_PROGRAMS}/", f"{options.programs}/"))
    by_socket, configured = options.compute == "socket", _configured(options)
    yield File(CONFIG_FILE, _CONFIG + (_CONFIG_COMPUTE if by_socket else ""), keep=True)
    if by_socket:
        yield File(_COMPUTE_FILE, _NO_DEVICE)
    elif _there(options, _COMPUTE_FILE):
        yield Gone(_COMPUTE_FILE)
    if options.here:
        yield Run(("systemd-sysusers", "/etc/sysusers.d/smpd.conf"))
        yield Run(("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/smpd.conf"))
    else:
        yield Note("on the machine itself: systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload")
    if options.credential:
        yield from _credential(options)
    if configured != options.compute:
        now = f'start = "{options.compute}" below [compute], where it is {configured or "not to be read"}'
        yield Note(f"/{CONFIG_FILE} is left as it is, and has to say: {now}")
    if options.here:
        yield Run(("systemctl", "daemon-reload"))
        if options.start:
            units = ("smpd-compute.socket", "smpd.socket") if by_socket else ("smpd.socket",)
            yield Run(("systemctl", "enable", "--now", *units, "smpd.service"))
            yield Note("a daemon that ran before goes on as it was: systemctl restart smpd")
            yield Note("give people access: usermod -aG smpd,smpd-operator NAME; then: smpctl doctor")


def _credential(options: Options) -> Iterator[Step]:
    """Have a new identity unlocked by a key that only this machine can open; one that exists stays as it is."""
    encrypt = ("systemd-creds", "encrypt", "--name=smpd.key", "-", KEY_FILE)
    if not options.here:
        yield Note(f"before its first start: head -c {KEY_BYTES} /dev/urandom | {' '.join(encrypt)}")
        yield File(_CREDENTIAL_FILE, _CREDENTIAL)
    elif os.path.exists(KEY_FILE):
        yield File(_CREDENTIAL_FILE, _CREDENTIAL)
    elif os.path.isdir(f"/{KEYS_FOLDER}") and os.listdir(f"/{KEYS_FOLDER}"):
        yield Note("the identity that exists keeps what seals it; smpctl doctor says what that is")
    elif shutil.which("systemd-creds") is None:
        yield Note(
            "there is no systemd-creds: the identity is sealed by a file beside it, see docs/guides/operating.md"
        )
    else:
        yield Run(encrypt, key=True)
        yield File(_CREDENTIAL_FILE, _CREDENTIAL)


def check_programs(options: Options) -> None:
    """See that the units can run the programs.

    Raises:
        UsageError: ``bad_request``.
    """
    wrong = ""
    if not re.fullmatch(r"(/[A-Za-z0-9._+@-]+)+", options.programs):
        wrong = "is no absolute path, or has characters that a unit would not take as they are"
    elif options.programs.split("/")[1] in _HIDDEN:
        wrong = "cannot be seen by the units (ProtectHome=, PrivateTmp=)"
    elif options.here and (found := _unreachable(options.programs)):
        wrong = found
    if wrong:
        hint = "install into a virtual environment at /opt/smp/venv, and run its smpctl; or name it with --programs"
        raise UsageError("bad_request", f"{options.programs} {wrong}", hint=hint)


def _check_root(options: Options) -> None:
    """See that every file is below the root: an absolute link there, say, leads to this machine's own files.

    Raises:
        UsageError: ``bad_request``.
    """
    root = os.path.realpath(options.root)
    for path in (*(target for _, target in _SOURCES), CONFIG_FILE, _COMPUTE_FILE, _CREDENTIAL_FILE):
        place = os.path.join(options.root, path)
        if os.path.commonpath([os.path.realpath(place), root]) != root:
            hint = "make it a folder there, or a relative link that stays below DIR; nothing was done"
            raise UsageError("bad_request", f"{place} leads out of {options.root} by a link", hint=hint)


def _unreachable(folder: str) -> str:
    """Why other users could not run the programs in a folder, or nothing."""
    for name in ("smpd", "smpctl", "python"):
        if not os.access(os.path.join(folder, name), os.X_OK):
            return f"has no program {name}"
    python = os.path.realpath(os.path.join(folder, "python"))  # of a virtual environment it lies elsewhere
    for place in (os.path.realpath(folder), os.path.dirname(python)):
        if place.split("/")[1] in _HIDDEN:
            return f"needs {place}, which cannot be seen by the units (ProtectHome=, PrivateTmp=)"
        at = place
        while at != "/":
            if not os.stat(at).st_mode & 0o001:
                return f"is closed to other users at {at}"
            at = os.path.dirname(at)
    return ""


def require_machine() -> None:
    """See that this machine is one to be set up.

    Raises:
        DeniedError: ``forbidden``; we are not root.
        UsageError: ``bad_request``; it was not booted with systemd (sd_booted(3)).
    """
    if os.geteuid() != 0:
        hint = "see what it would do: smpctl setup --dry-run"
        raise DeniedError("forbidden", "only root can set a box up", hint=hint)
    if not os.path.isdir("/run/systemd/system"):
        hint = "without systemd start smpd by hand; to make files for another machine use --root DIR"
        raise UsageError("bad_request", "this machine was not booted with systemd", hint=hint)


def carry_out(step: Step, options: Options) -> str:
    """Do one step; returns what became of it, for people.

    Raises:
        ResourceError: ``setup_failed``, ``disk_failed``.
    """
    if isinstance(step, File):
        return _write(step, options)
    if isinstance(step, Gone):
        return _remove(step, options)
    if isinstance(step, Run):
        _run(step)
    return ""


def _write(file: File, options: Options) -> str:
    path = os.path.join(options.root, file.path)
    with contextlib.suppress(OSError), open(path, "rb") as there:
        if there.read() == file.text.encode():
            return "is there"
    if file.keep and os.path.lexists(path):  # also one that cannot be read, or a link to what is not mounted yet
        return "is kept"
    folder, name = os.path.split(path)
    before = os.umask(0o022)
    try:
        durable.make_folders(folder, 0o755)
        durable.write_file(folder, name, file.text.encode(), 0o644)
    except OSError as error:
        hint = "check the disk and your rights"
        raise ResourceError("disk_failed", f"{path} cannot be written: {error.strerror}", hint=hint) from error
    finally:
        os.umask(before)
    return "written"


def _remove(file: Gone, options: Options) -> str:
    folder, name = os.path.split(os.path.join(options.root, file.path))
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        durable.remove(name, fd)
    finally:
        os.close(fd)
    return "removed"


def _run(command: Run) -> None:
    key = bytearray(os.urandom(KEY_BYTES)) if command.key else bytearray()
    if command.key:
        durable.make_folders(os.path.dirname(KEY_FILE), 0o700)
    try:
        done = subprocess.run(command.argv, input=key, capture_output=True, timeout=_RUN_S, check=False)  # noqa: S603 - ours
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _failed(command, str(error)) from None
    finally:
        key[:] = bytes(len(key))
    if done.returncode:
        raise _failed(command, done.stderr.decode(errors="replace").strip())


def _failed(command: Run, reason: str) -> ResourceError:
    hint = "mend that and run smpctl setup again: what was done already is left as it is"
    return ResourceError("setup_failed", f"{' '.join(command.argv[:2])} failed: {reason[:1000]}", hint=hint)


def _configured(options: Options) -> str:
    """Who starts compute processes by the configuration that will be there; empty where it cannot be read."""
    if not _there(options, CONFIG_FILE):
        return options.compute
    try:
        with open(os.path.join(options.root, CONFIG_FILE), "rb") as file:
            found = tomllib.load(file).get("compute", {}).get("start", "spawn")
    except (OSError, ValueError, AttributeError):
        return ""
    return found if found in ("spawn", "socket") else ""


def _there(options: Options, path: str) -> bool:
    return os.path.exists(os.path.join(options.root, path))


def describe(step: Step) -> str:
    """A step in words."""
    if isinstance(step, File | Gone):
        return f"/{step.path}"
    if isinstance(step, Run):
        return " ".join(step.argv) + (" < a new key" if step.key else "")
    return step.text
