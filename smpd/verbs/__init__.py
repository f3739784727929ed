"""What each request of the control socket does: a map from message to function, one file a subject.

A verb checks what it is asked, writes the audit record, and calls the room that does the work. It knows who asks
(the actor), and it opens no path that a client names: files come as descriptors.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from smp_proto import control as c
from smp_proto.aio import Exchange, aside
from smpd.control.actor import Actor
from smpd.transfer.places import asker
from smpd.verbs import doctor, inspect, jobs, keys, metrics, notices, quarantine, remotes, service, syncs, vault
from smpd.verbs.daemon import Daemon

Verb = Callable[[Daemon, Actor, Any, Exchange], Awaitable[Any]]

VERBS: dict[type[c.Request], Verb] = {
    c.StatusRequest: inspect.status,
    c.DoctorRequest: doctor.doctor,
    c.ProcessorsRequest: inspect.processors,
    c.NotifyTest: notices.notify_test,
    c.AuditRead: inspect.audit_read,
    c.AuditRenew: inspect.audit_renew,
    c.Reload: service.reload,
    c.Submit: jobs.submit,
    c.JobsRequest: jobs.jobs,
    c.JobRequest: jobs.job,
    c.JobControl: jobs.control,
    c.VaultList: vault.vault_list,
    c.VaultEntries: vault.vault_entries,
    c.VaultOpen: vault.vault_open,
    c.VaultRemove: vault.vault_remove,
    c.QuarantineList: quarantine.quarantine_list,
    c.QuarantineShow: quarantine.quarantine_show,
    c.QuarantineRetry: quarantine.quarantine_retry,
    c.QuarantineRemove: quarantine.quarantine_remove,
    c.RemoteAdd: remotes.remote_add,
    c.RemoteList: remotes.remote_list,
    c.RemoteTest: remotes.remote_test,
    c.RemoteRemove: remotes.remote_remove,
    c.ListObjects: remotes.ls,
    c.RemoveObject: remotes.rm,
    c.TrustAdd: remotes.trust_add,
    c.TrustList: remotes.trust_list,
    c.TrustRemove: remotes.trust_remove,
    c.BoxKey: keys.box_key,
    c.BoxRotate: keys.box_rotate,
    c.SyncAdd: syncs.sync_add,
    c.SyncList: syncs.sync_list,
    c.SyncShow: syncs.sync_show,
    c.SyncControl: syncs.sync_control,
    c.MetricsRequest: metrics.metrics,
}


def handlers(daemon: Daemon) -> dict[type[c.Request], Callable[[Actor, Any, Exchange], Awaitable[Any]]]:
    """The verbs bound to a running daemon, for the control server."""
    bound: dict[type[c.Request], Any] = {request: partial(_answer, verb, daemon) for request, verb in VERBS.items()}
    bound[c.Watch] = daemon.events.watch
    return bound


async def _answer(verb: Verb, daemon: Daemon, actor: Actor, request: Any, exchange: Exchange) -> Any:
    aside.set(True)  # what is asked of workers here is no work on a job
    asker.set(actor.label)
    return await verb(daemon, actor, request, exchange)
