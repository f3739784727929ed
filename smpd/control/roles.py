"""Which role each request needs, and the one place that refuses."""

from typing import get_args

from smp_proto import control as c
from smp_proto.errors import DeniedError
from smpd.config import Control
from smpd.control.actor import Actor

RANK: dict[c.Role | None, int] = {None: 0, "viewer": 1, "operator": 2, "admin": 3}

LEAST_ROLE: dict[type[c.Request], c.Role] = {
    c.StatusRequest: "viewer",
    c.DoctorRequest: "viewer",
    c.JobsRequest: "viewer",
    c.JobRequest: "viewer",
    c.Watch: "viewer",
    c.RemoteList: "viewer",
    c.ProcessorsRequest: "viewer",
    c.TrustList: "viewer",
    c.BoxKey: "viewer",
    c.AuditRead: "viewer",
    c.Submit: "operator",
    c.JobControl: "operator",
    c.ListObjects: "operator",
    c.RemoteTest: "operator",
    c.VaultList: "operator",
    c.VaultEntries: "operator",
    c.VaultOpen: "operator",
    c.VaultRemove: "operator",
    c.RemoteAdd: "admin",
    c.RemoteRemove: "admin",
    c.TrustAdd: "admin",
    c.TrustRemove: "admin",
}
REQUESTS: frozenset[type[c.Request]] = frozenset(get_args(c.AnyRequest))


def require(actor: Actor, request: type[c.Request], config: Control) -> None:
    """Let pass, or say what is missing.

    Raises:
        DeniedError: ``forbidden``, naming the role needed and the group that gives it.
    """
    needed = LEAST_ROLE[request]
    if RANK[actor.role] < RANK[needed]:
        verb = request.__struct_config__.tag
        raise denied(f"{verb} needs the role {needed}; {actor.label} has {actor.role}", needed, config)


def denied(message: str, needed: c.Role, config: Control) -> DeniedError:
    """The error for a role that is missing."""
    group = {"viewer": config.viewer_group, "operator": config.operator_group, "admin": config.admin_group}[needed]
    hint = f"ask to be added to the group {group}, then log in again" if group else f"no group has the role {needed}"
    return DeniedError("forbidden", message, hint=hint, details={"role": needed, "group": group})
