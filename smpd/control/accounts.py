"""Who the users and groups of this machine are, and what they may: the one place that asks its user database.

That may be a directory service (sssd, LDAP) that answers late or never. It is asked in threads of its own, so that it
keeps nobody but those who are asked about waiting, and no longer than they wait for an answer.
"""

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel

from smp_proto.control import AnyJobSpec, SyncSpec
from smp_proto.errors import DaemonError, DeniedError
from smpd.config import Config
from smpd.control.actor import RoleGroups, owner_of, unknown_accounts
from smpd.control.permissions import Permissions
from smpd.control.roles import require_owner

_ANSWER_S = 4.0  # below what a connection may take to say HELLO, so that its peer is told
_AT_ONCE = 8
_OWNER_AGAIN_S = 30.0
T = TypeVar("T")


class UserDatabase:
    """Asks the user database, a few questions at once.

    A question that nobody waits for any more keeps its thread until it is answered; it does not keep the process.

    Args:
        answer_s: how long an answer is waited for.
    """

    def __init__(self, answer_s: float = _ANSWER_S) -> None:
        self._answer_s = answer_s
        self._free = anyio.Semaphore(_AT_ONCE)

    async def ask(self, look_up: Callable[..., T], *args: Any) -> T:
        """Call what may look something up.

        Raises:
            DaemonError: ``busy``, there was no answer in time.
        """
        answer: Future[T] = Future()
        answered = anyio.Event()
        token = anyio.lowlevel.current_token()

        def told() -> None:
            self._free.release()
            answered.set()

        def work() -> None:
            try:
                answer.set_result(look_up(*args))
            except BaseException as error:  # noqa: BLE001 - it is raised where it was asked
                answer.set_exception(error)
            with contextlib.suppress(RuntimeError):  # the event loop is gone
                anyio.from_thread.run_sync(told, token=token)

        try:
            with anyio.fail_after(self._answer_s):
                await self._free.acquire()
                try:
                    threading.Thread(target=work, name="user database", daemon=True).start()
                except BaseException:
                    self._free.release()
                    raise
                await answered.wait()
        except TimeoutError:
            hint = "try again later; on the box: getent passwd USER, and the log of its directory service"
            raise DaemonError("busy", "the user database of this box does not answer", hint=hint) from None
        return answer.result()


class Accounts:
    """Groups of the roles and tables of permissions as they were looked up, and whether an owner may still act.

    Blocks when it is made.

    Attributes:
        groups: behind the roles.
        permissions: what callers may use.
        unknown: see :func:`unknown_accounts`.
        database: is asked for callers.
    """

    def __init__(self, config: Config, database: UserDatabase) -> None:
        self.database = database
        self._control = config.control
        self.groups, self.permissions, self.unknown = self._found = _look_up(config)

    async def prepare(self, config: Config) -> None:
        """Look up what another configuration names. Raises as :meth:`UserDatabase.ask`; nothing has changed then."""
        self._found = await self.database.ask(_look_up, config)

    async def take_up(self, config: Config) -> None:
        """Go by what was prepared."""
        self.groups, permissions, self.unknown = self._found
        self.permissions.become(permissions)
        self._control = config.control

    async def require(self, label: str, spec: AnyJobSpec | SyncSpec) -> None:
        """Every attempt of a job, and every listing and act of a sync, has the rights that its owner has now."""
        if not self.permissions.configured:
            return
        details = {"held": "", "retry_after": _OWNER_AGAIN_S}
        try:
            owner = await self.database.ask(owner_of, label, self.groups, self.permissions)
        except DaemonError as error:
            raise DaemonError(error.code, error.message, hint=error.hint, details=details) from error
        try:
            require_owner(owner, spec, self._control)
        except DeniedError as error:
            # A directory service that is away answers as if there were no such user.
            if owner.named or owner.label == label:
                raise
            message = f"the user database does not know {label} now: {error.message}"
            raise DeniedError("forbidden", message, hint=error.hint, retryable=True, details=details) from error


def _look_up(config: Config) -> tuple[RoleGroups, Permissions, list[str]]:
    return RoleGroups.lookup(config.control), Permissions(config.permissions), unknown_accounts(config)
