"""The blocking client: one socket, one answer at a time, nothing imported beyond msgspec."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

from smp_proto import control as c
from smp_proto.errors import DaemonError, SmpError
from smpctl.asking import ANSWER_TIMEOUT_S, SLOW_TIMEOUT_S, Asking
from smpctl.connection import Exchange
from smpctl.files import LocalFile, batches, wanted_entries
from smpctl.watching import Cursor, job_of, joined

if TYPE_CHECKING:
    from smpctl.landing import Landing

T = TypeVar("T")
Progress = Callable[[int, int], None]
Paths = Iterable[str | os.PathLike[str] | LocalFile]


class Client(Asking):
    """A client of the daemon, connected when first used; a context manager. One thread at a time.

    Args:
        path: the control socket; found as ``smpctl.address.candidates`` says when None.

    Every method raises the daemon's own error (a subclass of ``SmpError``), or ``DaemonError``: ``daemon_down``
    when nobody answers, ``protocol`` and ``protocol_version`` when the two sides do not fit.
    """

    # ── the box ──

    def status(self) -> c.Status:
        """How the daemon is."""
        return self._call(c.StatusRequest(), c.Status)

    def doctor(self) -> list[c.Check]:
        """What the box can and cannot do; starts a compute process if none runs."""
        return self._call(c.DoctorRequest(), c.Doctor, SLOW_TIMEOUT_S).checks

    def notify_test(self) -> c.NotifyTested:
        """Have the daemon tell somebody that this is a test; see ``error`` of what was tried."""
        return self._call(c.NotifyTest(), c.NotifyTested, SLOW_TIMEOUT_S)

    def reload(self) -> c.Reloaded:
        """Have the daemon read its configuration again."""
        return self._call(c.Reload(), c.Reloaded)

    def processors(self) -> list[c.ProcessorInfo]:
        """The processors that are loaded; starts a compute process if none runs."""
        parts = self._parts(c.ProcessorsRequest(), c.Processors, SLOW_TIMEOUT_S)
        return [info for part in parts for info in part.processors]

    def metrics(self) -> list[c.MetricFamily]:
        """Every metric of the daemon, of remotes and syncs those that one may see."""
        return joined(self._stream(c.MetricsRequest(), c.MetricFamily))

    def box_key(self) -> c.PublicKey:
        """The public key of the box, to seal for it."""
        return self._call(c.BoxKey(), c.PublicKey)

    def box_rotate(self, reason: str = "") -> c.PublicKey:
        """Give the box a new key, which is returned; the present one only opens from then on."""
        return self._call(c.BoxRotate(reason), c.PublicKey, SLOW_TIMEOUT_S)

    # ── jobs ──

    def submit(
        self, spec: c.GetSpec | c.RunSpec, *, key: str | None = None, priority: c.Priority = "normal"
    ) -> c.JobView:
        """Have a job accepted; for a put see :meth:`put`.

        ``key`` makes it idempotent: the same key again returns the same job. One is made up when None, and serves
        to ask once more if the connection breaks before the answer.
        """
        request = c.Submit(spec, key or new_key(), priority)
        try:
            return self._call(request, c.JobView)
        except DaemonError as error:
            if error.code != "daemon_down" or self._connection is None:
                raise
            return self._call(request, c.JobView)

    def put(
        self,
        files: Paths,
        target: str,
        recipients: list[str],
        *,
        key: str | None = None,
        priority: c.Priority = "normal",
        progress: Progress | None = None,
        also: Iterable[str] = (),
    ) -> c.JobView:
        """Hand files over to be sealed and uploaded; returns once they are sealed in the spool.

        Args:
            files: paths (folders are walked) or ``LocalFile`` with names of their own.
            target: ``REMOTE:PATH``.
            recipients: public keys as text.
            key: as for :meth:`submit`; without one a broken connection is not tried again.
            priority: of the upload.
            progress: called with bytes sealed and bytes in all.
            also: more places for the same sealed object; each has a job, named in the ``also`` of what is returned.
        """
        from smpctl.handing import Handing  # noqa: PLC0415 - only a put pays for it

        named = list(files)
        request = c.Submit(c.PutSpec(target, recipients, list(also)), key or new_key(), priority)

        def hand_over() -> c.JobView:
            handing = Handing(named, progress)
            with self._open(request, None) as exchange:
                for message, fd in handing:
                    try:
                        exchange.send(message, [fd])
                    finally:
                        os.close(fd)
                    while handing.must_wait and (sealing := exchange.receive(c.Sealing)) is not None:
                        handing.sealed(sealing)
                for sealing in exchange.messages(c.Sealing):
                    handing.sealed(sealing)
                return exchange.result(c.JobView)

        return self._again(hand_over)

    def jobs(self, states: Iterable[c.JobState] = (), *, limit: int = 100, begins: str = "") -> list[c.JobView]:
        """Jobs, newest first; with ``begins`` those whose id begins so."""
        return self._call(c.JobsRequest(list(states), limit, begins), c.Jobs).jobs

    def job(self, id: str) -> c.JobView:  # noqa: A002 - the protocol's own name
        """One job."""
        return self._call(c.JobRequest(id), c.JobView)

    def pause(self, id: str) -> c.JobView:  # noqa: A002
        """Pause a job; what was fetched is kept."""
        return self._call(c.JobControl(id, "pause"), c.JobView)

    def resume(self, id: str) -> c.JobView:  # noqa: A002
        """Let a paused job go on."""
        return self._call(c.JobControl(id, "resume"), c.JobView)

    def cancel(self, id: str) -> c.JobView:  # noqa: A002
        """Cancel a job."""
        return self._call(c.JobControl(id, "cancel"), c.JobView)

    def watch(
        self,
        since: int = 0,
        jobs: Iterable[str] = (),
        *,
        ago_s: float = 0.0,
        resume: bool = True,
        patience_s: float = 60.0,
    ) -> Iterator[c.Event]:
        """Yield a snapshot of the jobs, then events; :func:`smpctl.job_of` gives the job of an event.

        Args:
            since: go on after this sequence number; 0 for the snapshot.
            ago_s: without ``since``, begin with what happened in the last so many seconds, as far as it is kept.
            jobs: only these; the iterator then ends when all are final. Empty for all, without an end.
            resume: go on after ``lagged`` and across a restart of the daemon, which sends a snapshot again.
            patience_s: how long the daemon may be away.
        """
        wanted = list(jobs)
        cursor = Cursor(since, resume, patience_s)
        closes = self._closes
        while True:
            try:
                start = cursor.joined(self.connect().boot_id)
                with self._open(c.Watch(start, wanted, ago_s), None) as exchange:
                    for event in exchange.messages(c.Event):
                        cursor.saw(event)
                        yield event
                return
            except SmpError as error:
                if self._closes == closes:
                    time.sleep(cursor.after(error))
                if self._closes != closes:
                    raise

    def wait(
        self,
        id: str,  # noqa: A002
        on_event: Callable[[c.JobView], None] | None = None,
        *,
        patience_s: float = 60.0,
    ) -> c.JobView:
        """Wait until a job is final, across restarts of the daemon, and return it; its ``error`` says if it failed."""
        last: c.JobView | None = None
        for event in self.watch(jobs=[id], patience_s=patience_s):
            job = job_of(event)
            last = job or last
            if job is not None and on_event is not None:
                on_event(job)
        return last if last is not None and last.state in c.FINAL_STATES else self.job(id)

    # ── remotes ──

    def remote_add(
        self,
        name: str,
        config: c.AnyRemoteConfig,
        *,
        mode: c.Mode = "zero-knowledge",
        secret: c.AnyRemoteSecret | None = None,
        replace: bool = False,
    ) -> c.RemoteView:
        """Keep a remote; its secret is sealed at rest. ``replace``: another secret of one that is kept."""
        return self._call(c.RemoteAdd(name, config, mode, secret, replace), c.RemoteView)

    def remotes(self) -> list[c.RemoteView]:
        """All remotes, without their secrets."""
        parts = self._parts(c.RemoteList(), c.Remotes)
        return [remote for part in parts for remote in part.remotes]

    def remote_test(self, name: str) -> c.RemoteTested:
        """Connect to a remote, log in and list."""
        return self._call(c.RemoteTest(name), c.RemoteTested, SLOW_TIMEOUT_S)

    def remote_remove(self, name: str) -> None:
        """Forget a remote and its secret."""
        self._call(c.RemoteRemove(name), type(None))

    def ls(self, location: str, *, recursive: bool = True) -> Iterator[c.ObjectInfo]:
        """Yield the objects below ``REMOTE:PREFIX``."""
        for batch in self._stream(c.ListObjects(location, recursive), c.Objects, SLOW_TIMEOUT_S):
            yield from batch.objects

    # ── syncs ──

    def rm(self, location: str) -> None:
        """Remove an object of a remote, if it is there."""
        self._call(c.RemoveObject(location), type(None))

    def sync_add(self, spec: c.SyncSpec) -> c.SyncView:
        """Begin to watch a prefix."""
        return self._call(c.SyncAdd(spec), c.SyncView)

    def syncs(self) -> list[c.SyncView]:
        """All syncs, by name."""
        return [sync for part in self._parts(c.SyncList(), c.Syncs) for sync in part.syncs]

    def sync_show(self, name: str) -> c.SyncShown:
        """One sync, and the objects that failed."""
        return self._call(c.SyncShow(name), c.SyncShown)

    def sync_control(self, name: str, action: Literal["pause", "resume", "now", "retry", "remove"]) -> c.SyncView:
        """Pause a sync, let it go on, list at once, try again what failed, or forget it."""
        return self._call(c.SyncControl(name, action), c.SyncView, SLOW_TIMEOUT_S)

    # ── vault ──

    def vault(self, job: str = "") -> list[c.VaultItem]:
        """What is kept on the box, sealed, newest first; of one job where it is named."""
        found: list[c.VaultItem] = []
        while True:
            page = self._call(c.VaultList(job, found[-1].id if found else ""), c.Vault).items
            found += page
            if len(page) < c.VAULT_PAGE:
                return found

    def vault_entries(self, id: str) -> list[c.EntryView]:  # noqa: A002
        """The names inside one item; opening its index is audited."""
        parts = self._parts(c.VaultEntries(id), c.Entries)
        return [entry for part in parts for entry in part.entries]

    def vault_open(
        self,
        id: str,  # noqa: A002
        dest: str | os.PathLike[str],
        *,
        names: Iterable[str] | None = None,
        overwrite: bool = False,
    ) -> list[c.EntryView]:
        """Open an item in the clear into files below ``dest``, made with the caller's own rights.

        The files get their names once the daemon has verified the whole object; until then, and after a failure,
        there is none. An object of over 200 entries is opened in several goes.

        Args:
            id: of the item.
            dest: a folder, made if need be.
            names: only these entries; None for all.
            overwrite: whether files of the same names may be replaced.

        Raises:
            UsageError: ``bad_name``; an entry's name leads elsewhere.
            StateError: ``exists``.
        """
        entries = wanted_entries(self.vault_entries(id), names)
        self._land({id: entries}, dest, overwrite)
        return entries

    def vault_open_all(
        self, ids: Iterable[str], dest: str | os.PathLike[str], *, overwrite: bool = False
    ) -> dict[str, list[c.EntryView]]:
        """Open several items into one folder, as :meth:`vault_open` does one: all files get their names, or none.

        Raises:
            StateError: ``exists``, also when two items have entries for one file.
        """
        items = {each: self.vault_entries(each) for each in ids}
        self._land(items, dest, overwrite)
        return items

    def _land(self, items: dict[str, list[c.EntryView]], dest: str | os.PathLike[str], overwrite: bool) -> None:
        from smpctl.landing import Landing, check_apart, opening  # noqa: PLC0415 - only an export pays for it

        check_apart(items)
        with Landing(dest, overwrite=overwrite) as landing:
            landing.plan(entry.name for entries in items.values() for entry in entries)
            for item, batch in batches(items):
                with opening(item):
                    self._again(partial(self._fill, landing, item, batch))
            landing.commit({entry.name: entry.size for entries in items.values() for entry in entries})

    def _fill(self, landing: "Landing", item: str, batch: list[c.EntryView]) -> None:
        with self._open(c.VaultOpen(item), None) as exchange:
            for entry in batch:
                fd = landing.create(entry.name)
                try:
                    exchange.send(c.OpenInto(entry.name, last=entry is batch[-1]), [fd])
                finally:
                    os.close(fd)
            exchange.result(c.Entries)

    def vault_remove(self, id: str) -> None:  # noqa: A002
        """Delete an item."""
        self._call(c.VaultRemove(id), type(None))

    # ── quarantine ──

    def quarantine(self, job: str = "") -> list[c.QuarantineItem]:
        """What was refused, newest first; by one job where it is named."""
        found: list[c.QuarantineItem] = []
        while True:
            parts = self._parts(c.QuarantineList(job, found[-1].id if found else ""), c.Quarantine)
            page = [item for part in parts for item in part.items]
            found += page
            if len(page) < c.QUARANTINE_PAGE:
                return found

    def quarantine_show(self, id: str) -> c.QuarantineItem:  # noqa: A002
        """One item."""
        return self._call(c.QuarantineShow(id), c.QuarantineItem)

    def quarantine_retry(self, id: str, *, accept_older: bool = False) -> c.JobView:  # noqa: A002
        """Resume the job that refused an item: it fetches and verifies again whatever it refused.

        ``accept_older``: take this very object although a newer one was accepted at its place before.
        """
        return self._call(c.QuarantineRetry(id, accept_older), c.JobView)

    def quarantine_remove(self, id: str) -> c.JobView:  # noqa: A002
        """Delete an item, and return its job, which is cancelled with its last item."""
        return self._call(c.QuarantineRemove(id), c.JobView)

    # ── trust and audit ──

    def trust_add(self, name: str, key: str, *, prefixes: Iterable[str] = (), until: float = 0.0) -> c.TrustView:
        """Have the daemon believe a sender; ``key`` is a public key as text."""
        return self._call(c.TrustAdd(name, key, list(prefixes), until), c.TrustView)

    def trusted(self) -> list[c.TrustView]:
        """The senders that the daemon knows, removed ones included."""
        return self._call(c.TrustList(), c.Trusted).senders

    def trust_remove(self, name: str) -> c.TrustView:
        """Have the daemon stop believing a sender."""
        return self._call(c.TrustRemove(name), c.TrustView)

    def audit_read(self, since: int = 0, *, newest: bool = False) -> tuple[list[bytes], c.AuditProof]:
        """Records from ``since`` on, as stored, one line each, and what is needed to verify them.

        ``newest``: of the checkpoints only the newest one.
        """

        def read(exchange: Exchange) -> tuple[list[bytes], c.AuditProof]:
            batches = list(exchange.messages(c.AuditLines))
            proof = exchange.result(c.AuditProof)
            proof.checkpoints = [note for batch in batches for note in batch.checkpoints] + proof.checkpoints
            return [line for batch in batches for line in batch.lines], proof

        return self._ask(c.AuditRead(since, newest=newest), read, ANSWER_TIMEOUT_S)

    def audit_renew(self, reason: str) -> c.AuditRenewed:
        """Have an audit log that is broken set aside, and a new one begun."""
        return self._call(c.AuditRenew(reason), c.AuditRenewed, SLOW_TIMEOUT_S)

    def audit_lines(self, since: int = 0, *, last: int = 0) -> Iterator[bytes]:
        """Yield the records alone, for a log that is too large to hold; with ``last`` so many of the last."""
        for batch in self._stream(c.AuditRead(since, last, newest=True), c.AuditLines):
            yield from batch.lines


def new_key() -> str:
    """A fresh idempotency key."""
    return os.urandom(16).hex()
