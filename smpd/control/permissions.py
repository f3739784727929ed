"""What a caller may use beyond what their role lets them ask: which remotes for what, which processors, whose jobs.

Without a table ``[permissions.NAME]`` nobody is held back by this. With one, whoever is no admin has what the tables
that name them give, taken together, and nothing else. :data:`NEEDS` says what each request needs; the server asks it
before any verb runs, and a job's owner is asked again before each attempt.
"""

import grp
import pwd
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from smp_proto import control as c
from smp_proto.errors import DeniedError
from smpd.config import Permission

Use = Literal["read", "list", "write", "run", "any", "others"]
_SAID: dict[Use, str] = {
    "read": "read from remote {}",
    "list": "list remote {}",
    "write": "deliver to remote {}",
    "run": "run processor {}",
    "any": "use remote {}",
    "others": "see what is everybody's",
}
_HINT = "ask an administrator of this box: its configuration says in [permissions.…] who may use what"


class Need(NamedTuple):
    """One thing that an act needs: to ``use`` what has this ``name``."""

    use: Use
    name: str = ""


class Rights(NamedTuple):
    """What one caller may use. A name that ends in ``*`` stands for all that begin so."""

    read: frozenset[str] = frozenset()
    list: frozenset[str] = frozenset()
    write: frozenset[str] = frozenset()
    run: frozenset[str] = frozenset()
    others: bool = False

    def allow(self, need: Need) -> bool:
        """Whether they cover a need."""
        if need.use == "others":
            return self.others
        if need.use == "any":
            return any(_covers(names, need.name) for names in (self.read, self.list, self.write))
        return _covers(getattr(self, need.use), need.name)

    def see(self, *, own: bool, remotes: Iterable[str]) -> bool:
        """Whether a job that touches these remotes may be seen, and what came of it."""
        return own or (self.others and all(self.allow(Need("any", name)) for name in remotes))


_EVERY = frozenset({"*"})
EVERYTHING = Rights(_EVERY, _EVERY, _EVERY, _EVERY, others=True)
NOTHING = Rights()


class Permissions:
    """The tables of the configuration, with their groups and users as numbers: looked up when they are read.

    Attributes:
        configured: whether there is a table, so that rights are limited at all.
        unknown: what the tables name and this machine does not know.
    """

    def __init__(self, tables: Mapping[str, Permission]) -> None:
        self.configured = bool(tables)
        self.unknown: list[str] = []
        self._tables: list[tuple[frozenset[int], frozenset[int], Permission]] = []
        for name, table in tables.items():
            groups = frozenset(self._numbers(name, "group", table.groups, _gid))
            users = frozenset(self._numbers(name, "user", table.users, _uid))
            self._tables.append((groups, users, table))

    def become(self, other: "Permissions") -> None:
        """Hold what the tables of another hold, from now on."""
        self.configured, self.unknown, self._tables = other.configured, other.unknown, other._tables

    def _numbers(self, table: str, what: str, names: Iterable[str], look_up: Callable[[str], int]) -> Iterator[int]:
        for name in names:
            try:
                yield look_up(name)
            except KeyError:
                self.unknown.append(f"permissions.{table} names the {what} {name}, which does not exist here")

    def of(self, uid: int, groups: frozenset[int], role: c.Role | None) -> Rights:
        """What a user of these groups may use. An admin may change the remotes themselves and is not held back."""
        if not self.configured or role == "admin":
            return EVERYTHING
        named = [table for gids, uids, table in self._tables if uid in uids or groups & gids]
        return Rights(
            read=frozenset(name for table in named for name in table.read),
            list=frozenset(name for table in named for name in table.list),
            write=frozenset(name for table in named for name in table.write),
            run=frozenset(name for table in named for name in table.run),
            others=any(table.jobs == "all" for table in named),
        )


def needs_of_job(spec: c.AnyJobSpec) -> Iterator[Need]:
    """Read its source, list it where that is a prefix, run its processor, deliver to its target."""
    if not isinstance(spec, c.PutSpec):
        remote, _, path = spec.source.partition(":")
        yield Need("read", remote)
        if not path or path.endswith("/"):
            yield Need("list", remote)
    if isinstance(spec, c.RunSpec):
        yield Need("run", spec.processor)
    if not isinstance(spec, c.GetSpec) and spec.target:
        for target in (spec.target, *(spec.also if isinstance(spec, c.PutSpec) else ())):
            yield Need("write", target.partition(":")[0])


def needs_of_sync(spec: c.SyncSpec) -> Iterator[Need]:
    """Read and list its source, delete or move there where it does, run its processor, deliver to its target."""
    remote = spec.source.partition(":")[0]
    yield from (Need("read", remote), Need("list", remote))
    if spec.after != "keep":
        yield Need("write", remote)
    if spec.processor:
        yield Need("run", spec.processor)
    if spec.target:
        yield Need("write", spec.target.partition(":")[0])


# What a request needs as it stands. What concerns a job or an item of the vault depends on whose it is, which the verbs
# look up; see :data:`SHOWN`.
NEEDS: dict[type[c.Request], Callable[[Any], Iterable[Need]]] = {
    c.Submit: lambda request: needs_of_job(request.job),
    c.ListObjects: lambda request: [Need("list", request.location.partition(":")[0])],
    c.RemoveObject: lambda request: [Need("write", request.location.partition(":")[0])],
    c.RemoteTest: lambda request: [Need("any", request.name)],
    c.AuditRead: lambda request: [Need("others")],
    c.MetricsRequest: lambda request: [Need("others")],
    c.SyncAdd: lambda request: needs_of_sync(request.sync),
}

# What requests answer with is cut to what the caller may see. These are the words of docs/reference/roles.md.
SHOWN: dict[type[c.Request], str] = {
    c.StatusRequest: "remotes that one may use",
    c.DoctorRequest: "remotes that one may use",
    c.MetricsRequest: "remotes that one may use, and syncs that one may see",
    c.RemoteList: "remotes that one may use",
    c.TrustList: "prefixes in remotes that one may use, and senders believed in one of these or anywhere",
    c.JobsRequest: "jobs that one may see",
    c.JobRequest: "a job that one may see",
    c.Watch: "jobs that one may see",
    c.JobControl: "a job that one may see; to resume it, also what submitting it would need",
    c.VaultList: "what came of jobs that one may see",
    c.VaultEntries: "what came of a job that one may see",
    c.VaultOpen: "what came of a job that one may see",
    c.VaultRemove: "what came of a job that one may see",
    c.SyncList: "syncs that one may see",
    c.SyncShow: "a sync that one may see",
    c.SyncControl: "a sync that one may see; to resume or retry it, also what adding it would need",
    c.QuarantineList: "what jobs refused that one may see",
    c.QuarantineShow: "what a job refused that one may see",
    c.QuarantineRetry: "what a job refused that one may see; also what submitting it would need",
    c.QuarantineRemove: "what a job refused that one may see",
}


def check(rights: Rights, label: str, needs: Iterable[Need]) -> None:
    """Let pass, or say what is not permitted. Whether a remote or a processor of that name exists is not looked at.

    Raises:
        DeniedError: ``forbidden``.
    """
    for need in needs:
        if not rights.allow(need):
            said = _SAID[need.use].format(repr(need.name[:80]))
            details = {"use": need.use, "name": need.name[:80]}
            raise DeniedError("forbidden", f"{label} may not {said}", hint=_HINT, details=details)


def remotes_of(*locations: str) -> tuple[str, ...]:
    """The remotes of what may be empty or ``REMOTE:PATH``."""
    return tuple(location.partition(":")[0] for location in locations if location)


def owner_uid(label: str) -> int | None:
    """The user in an actor's label, None where it names none."""
    found = re.search(r"\((\d{1,10})\)$", label)
    return int(found[1]) if found else None


def _covers(names: frozenset[str], name: str) -> bool:
    return name in names or any(each.endswith("*") and name.startswith(each[:-1]) for each in names)


def _gid(name: str) -> int:
    return grp.getgrnam(name).gr_gid


def _uid(name: str) -> int:
    return pwd.getpwnam(name).pw_uid
