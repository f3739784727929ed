"""Writes the tables of roles.md from the code, between its markers. Run: python docs/render_roles.py."""

from pathlib import Path

from smp_proto import control as c
from smpd.control.permissions import NEEDS, SHOWN
from smpd.control.roles import LEAST_ROLE, RANK

PAGE = Path(__file__).parent.joinpath("reference", "roles.md")
ROLES: tuple[c.Role, ...] = ("viewer", "operator", "admin")
# What permissions are asked for depends on what a request names: one of each kind.
EXAMPLES: dict[str, c.Request] = {
    "`submit` of a get": c.Submit(c.GetSpec("REMOTE:PATH"), ""),
    "`submit` of a get over a prefix": c.Submit(c.GetSpec("REMOTE:PREFIX/"), ""),
    "`submit` of a run, results to the vault": c.Submit(c.RunSpec("REMOTE:PATH", "PROCESSOR"), ""),
    "`submit` of a run over a prefix": c.Submit(c.RunSpec("REMOTE:PREFIX/", "PROCESSOR", target="TARGET:PATH"), ""),
    "`submit` of a put": c.Submit(c.PutSpec("TARGET:PATH", []), ""),
    "`sync-add`": c.SyncAdd(c.SyncSpec(name="NAME", source="REMOTE:PREFIX/")),
    "`sync-add` with a processor, a target, and objects deleted or moved after": c.SyncAdd(
        c.SyncSpec(name="NAME", source="REMOTE:", processor="PROCESSOR", target="TARGET:PREFIX/", after="delete")
    ),
    "`ls`": c.ListObjects("REMOTE:"),
    "`remote-test`": c.RemoteTest("REMOTE"),
    "`audit-read`": c.AuditRead(),
    "`metrics`": c.MetricsRequest(),
}
_WORDS = {"any": "`read`, `list` or `write` of {}", "others": '`jobs = "all"`'}


def render(page: str) -> str:
    """The page with fresh tables between its markers."""
    for name, text in (("roles", _roles()), ("needs", _needs()), ("shown", _shown())):
        head, rest = page.split(f"<!-- {name} -->\n")
        _, tail = rest.split(f"<!-- end {name} -->\n")
        page = f"{head}<!-- {name} -->\n{text}<!-- end {name} -->\n{tail}"
    return page


def _tag(kind: type[c.Request]) -> str:
    return str(kind.__struct_config__.tag)


def _roles() -> str:
    rows = ["| request | viewer | operator | admin |", "|---|---|---|---|"]
    for kind, least in sorted(LEAST_ROLE.items(), key=lambda each: (RANK[each[1]], _tag(each[0]))):
        cells = ["yes" if RANK[role] >= RANK[least] else "no" for role in ROLES]
        rows.append(f"| `{_tag(kind)}` | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _needs() -> str:
    rows = ["| request | needs |", "|---|---|"]
    for name, request in EXAMPLES.items():
        needs = NEEDS[type(request)](request)
        said = [_WORDS.get(need.use, f"`{need.use}` of {{}}").format(need.name) for need in needs]
        rows.append(f"| {name} | {', '.join(said)} |")
    return "\n".join(rows) + "\n"


def _shown() -> str:
    rows = ["| request | answers with |", "|---|---|"]
    rows += [f"| `{_tag(kind)}` | {said} |" for kind, said in sorted(SHOWN.items(), key=lambda each: _tag(each[0]))]
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
