"""Which role each request needs, and the one place that refuses: for want of a role, or of a permission."""

from typing import get_args

from smp_proto import control as c
from smp_proto.errors import DeniedError
from smpd.config import Control
from smpd.control.actor import Actor
from smpd.control.permissions import NEEDS, check, needs_of_job, needs_of_sync

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
    c.SyncList: "viewer",
    c.SyncShow: "viewer",
    c.MetricsRequest: "viewer",
    c.Submit: "operator",
    c.JobControl: "operator",
    c.ListObjects: "operator",
    c.RemoveObject: "operator",
    c.RemoteTest: "operator",
    c.VaultList: "operator",
    c.VaultEntries: "operator",
    c.VaultOpen: "operator",
    c.VaultRemove: "operator",
    c.QuarantineList: "operator",
    c.QuarantineShow: "operator",
    c.QuarantineRetry: "operator",
    c.QuarantineRemove: "operator",
    c.AuditRenew: "admin",
    c.Reload: "admin",
    c.NotifyTest: "admin",
    c.SyncAdd: "operator",
    c.SyncControl: "operator",
    c.BoxRotate: "admin",
    c.RemoteAdd: "admin",
    c.RemoteRemove: "admin",
    c.TrustAdd: "admin",
    c.TrustRemove: "admin",
}
REQUESTS: frozenset[type[c.Request]] = frozenset(get_args(c.AnyRequest))


def require(actor: Actor, request: c.Request, config: Control) -> None:
    """Let pass, or say what is missing.

    Raises:
        DeniedError: ``forbidden``, naming the role needed and the group that gives it, or what is not permitted.
    """
    kind = type(request)
    require_role(actor, LEAST_ROLE[kind], str(kind.__struct_config__.tag), config)
    if kind in NEEDS:
        check(actor.rights, actor.label, NEEDS[kind](request))


def require_owner(owner: Actor, spec: c.AnyJobSpec | c.SyncSpec, config: Control) -> None:
    """Let a job or a sync go on whose owner may still submit it.

    Raises:
        DeniedError: ``forbidden``, as :func:`require`.
    """
    if isinstance(spec, c.SyncSpec):
        require_role(owner, LEAST_ROLE[c.SyncAdd], "a sync", config)
        check(owner.rights, owner.label, needs_of_sync(spec))
    else:
        require_role(owner, LEAST_ROLE[c.Submit], "a job", config)
        check(owner.rights, owner.label, needs_of_job(spec))


def require_role(actor: Actor, needed: c.Role, what: str, config: Control) -> None:
    """Let pass who has at least this role.

    Raises:
        DeniedError: ``forbidden``, naming the role needed and the group that gives it.
    """
    if RANK[actor.role] < RANK[needed]:
        raise denied(f"{what} needs the role {needed}; {actor.label} has {actor.role}", needed, config)


def denied(message: str, needed: c.Role, config: Control) -> DeniedError:
    """The error for a role that is missing."""
    group = {"viewer": config.viewer_group, "operator": config.operator_group, "admin": config.admin_group}[needed]
    hint = f"ask to be added to the group {group}, then log in again" if group else f"no group has the role {needed}"
    return DeniedError("forbidden", message, hint=hint, details={"role": needed, "group": group})
