"""The cells of R16: every role by every verb, every permission with and without, every verb by whose job it is.

What is expected of a role is read from docs/reference/roles.md and not from the code.
"""

import itertools
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import msgspec
from whole import ADMINS, OPERATORS, VIEWERS, Whole, sample_requests

from smp_proto import control as c
from smp_proto.errors import SmpError
from smpd.config import Permission
from smpd.control.roles import REQUESTS

ROOT = Path(__file__).resolve().parents[2]
GROUPS: dict[str, tuple[int, ...]] = {
    "none": (),
    "viewer": (VIEWERS,),
    "operator": (VIEWERS, OPERATORS),
    "admin": (VIEWERS, ADMINS),
}
STRANGER, FIRST = 70_001, 80_000  # uids
EVERYTHING = 61_500  # a gid: whoever has it may use all that their role lets them ask for
_uids = itertools.count(2_000_000)
PATIENCE_S = 20.0
Cell = Callable[[Whole], Awaitable[None]]


def documented() -> dict[str, dict[str, bool]]:
    """By verb and role, what docs/reference/roles.md says."""
    page = (ROOT / "docs" / "reference" / "roles.md").read_text()
    table = page.split("<!-- roles -->")[1].split("<!-- end roles -->")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \| (yes|no) \| (yes|no) \| (yes|no) \|$", table, re.MULTILINE)
    return {
        verb: {"none": False, **{role: said == "yes" for role, said in zip(list(GROUPS)[1:], cells, strict=True)}}
        for verb, *cells in rows
    }


async def allowed(box: Whole, uid: int, groups: tuple[int, ...], request: c.Request) -> SmpError | None:
    """The refusal of a request, None where it got past roles and permissions."""
    try:
        async with box.client(uid, groups) as caller:
            await caller.call(request, msgspec.Raw, timeout=PATIENCE_S)
    except SmpError as error:
        assert error.code not in ("rate_limited", "busy"), error
        return error if error.code == "forbidden" else None
    return None


def role_cell(role: str, kind: type[c.Request]) -> Cell:
    """One role, one verb."""
    verb = str(kind.__struct_config__.tag)

    async def do(box: Whole) -> None:
        request = c.Watch(jobs=["nothing"]) if kind is c.Watch else sample_requests()[kind]
        refused = await allowed(box, next(_uids), GROUPS[role] and (*GROUPS[role], EVERYTHING), request)
        expected = documented()[verb][role]
        assert (refused is None) == expected, f"{role} {verb}: {refused}"

    return do


# One of each kind of request that needs permissions, and these, by docs/reference/roles.md.
NEEDING: list[tuple[c.Request, dict[str, str]]] = [
    (c.Submit(c.GetSpec("pacs:a"), "k"), {"read": "pacs"}),
    (c.Submit(c.GetSpec("pacs:a/"), "k"), {"read": "pacs", "list": "pacs"}),
    (c.Submit(c.RunSpec("pacs:a", "digest"), "k"), {"read": "pacs", "run": "digest"}),
    (
        c.Submit(c.RunSpec("pacs:", "digest", target="out:x"), "k"),
        {"read": "pacs", "list": "pacs", "run": "digest", "write": "out"},
    ),
    (c.Submit(c.PutSpec("out:x", []), "k"), {"write": "out"}),
    (c.ListObjects("pacs:"), {"list": "pacs"}),
    (c.RemoveObject("out:x"), {"write": "out"}),
    (c.RemoteTest("pacs"), {"any": "pacs"}),
    (c.AuditRead(), {"others": ""}),
    (c.MetricsRequest(), {"others": ""}),
]
PERMITS = [(request, needs, missing) for request, needs in NEEDING for missing in (None, *needs)]


def _table(uid: int, needs: dict[str, str], missing: str | None) -> Permission:
    """Every right that there is, for everything, but the one that is missing."""
    given = dict.fromkeys(("read", "list", "write", "run"), ("*",))
    uses = ("read", "list", "write") if missing == "any" else (missing,)
    for use in uses:
        given.pop(use or "", None)
        if use in ("read", "list", "write", "run"):
            given[use] = ("elsewhere", f"{needs.get(use, 'pacs')}x*")
    return Permission(users=(str(uid),), jobs="own" if missing == "others" else "all", **given)


TABLES = {f"p{n}": _table(FIRST + n, needs, missing) for n, (_, needs, missing) in enumerate(PERMITS)} | {
    "own": Permission(users=(str(STRANGER),), read=("pacs",)),
    "all": Permission(users=(str(STRANGER + 2),), list=("pacs",), jobs="all"),
    "roles": Permission(groups=(str(EVERYTHING),), read=("*",), list=("*",), write=("*",), run=("*",), jobs="all"),
}


def permission_cell(number: int) -> Cell:
    """One request with all that it needs, or all but one thing."""
    request, _, missing = PERMITS[number]

    async def do(box: Whole) -> None:
        refused = await allowed(box, FIRST + number, GROUPS["operator"], request)
        assert (refused is None) == (missing is None), f"{request} without {missing}: {refused}"
        assert refused is None or refused.details["use"] == missing

    return do


WHO_SEES = {"own": {STRANGER}, "other's": {STRANGER + 2}, "hidden": set[int]()}
BY_ID: list[Callable[[str], c.Request]] = [
    c.JobRequest,
    lambda job: c.JobControl(job, "pause"),
    lambda job: c.JobControl(job, "cancel"),
    lambda job: c.Watch(jobs=[job]),
    c.VaultEntries,
    c.VaultOpen,
    c.VaultRemove,
    c.QuarantineShow,
    c.QuarantineRetry,
    c.QuarantineRemove,
]


def sight_cell(number: int, whose: str, uid: int) -> Cell:
    """One verb, on a job of one's own, of another in a remote one may use, or in one that one may not."""

    async def do(box: Whole) -> None:
        job, _new = box.daemon.box.journal.add(
            c.GetSpec(f"{'lake' if whose == 'hidden' else 'pacs'}:x"),
            owner=f"u({STRANGER if whose == 'own' else STRANGER + 1})",
            key=f"{number}{whose}{uid}",
        )
        item = c.QuarantineItem(job.id, job.id, "pacs:x", "corrupt", "m")
        box.daemon.box.quarantine.add(item)
        request = BY_ID[number](job.id)
        sees = uid in WHO_SEES[whose] or (uid == STRANGER + 2 and whose == "own")
        async with box.client(uid, GROUPS["operator"]) as caller:
            try:
                async with caller.open(request) as exchange:
                    with anyio.fail_after(PATIENCE_S):
                        if isinstance(request, c.Watch):
                            await exchange.receive(c.Event)
                        else:
                            await exchange.result(msgspec.Raw)
                found = True
            except SmpError as error:
                # There is nothing in the vault, which is told of what one may see only by its own id.
                assert error.code not in ("rate_limited", "busy"), error
                found = error.code not in ("no_such_job", "no_such_object")
        if not isinstance(request, c.VaultEntries | c.VaultOpen | c.VaultRemove):
            assert found == sees, f"{request} {whose} {uid}: found {found}"
        else:
            assert not found

    return do


CELLS: list[Cell] = [
    *(role_cell(role, kind) for role in GROUPS for kind in sorted(REQUESTS, key=lambda each: each.__name__)),
    *(permission_cell(number) for number in range(len(PERMITS))),
    *(sight_cell(n, whose, uid) for n in range(len(BY_ID)) for whose in WHO_SEES for uid in (STRANGER, STRANGER + 2)),
]
# One of each sort, in which a fault shows at once.
TELLING: list[Cell] = [role_cell("viewer", c.VaultOpen), permission_cell(1), sight_cell(0, "hidden", STRANGER)]
