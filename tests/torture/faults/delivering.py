"""Faults of what makes a result arrive once, planted into the daemon."""

from typing import Any

from torture import planted


def upload_without_looking() -> None:
    """Send again after a crash, whatever is at the target."""
    if planted.ROLE == "smpd":
        from smpd.links import fetching
        from smpd.transfer.questions import Questions

        ask, write = Questions.ask, Questions.write

        async def blind(self: Questions, request: object, *arguments: Any) -> Any:
            if isinstance(request, fetching.Look):
                return fetching.Looked()
            return await ask(self, request, *arguments)

        async def anyhow(self: Questions, *arguments: Any, **options: Any) -> Any:
            return await write(self, *arguments, **{**options, "replaces": None})

        Questions.ask, Questions.write = blind, anyhow


def forget_what_ran() -> None:
    """Lose, at start, the jobs that were running."""
    if planted.ROLE == "smpd":
        from smpd.jobs.journal import Journal

        recover = Journal.recover

        def forgetful(self: Journal) -> Any:
            with self._db.transaction() as connection:
                connection.execute("DELETE FROM jobs WHERE state='running'")
            return recover(self)

        Journal.recover = forgetful


def forget_uploads() -> None:
    """Keep no id of an upload, nor the name of a temporary file."""
    if planted.ROLE == "smpd":
        from smpd.transfer.delivery import Courier

        async def cleared(*_: object) -> None:
            return None

        Courier._clear = cleared


def begin_anew() -> None:
    """Give an object of a sync another job after a crash, whatever became of the one it had."""
    if planted.ROLE == "smpd":
        import secrets

        from smpd.sync.watcher import Watcher

        async def recover(self: Watcher) -> None:
            for found in self._store.in_state(self.standing.number, ["working", "delivered"]):
                self._store.again(found.number)

        async def resumed(*_: object) -> bool:
            return False

        submit = Watcher._submit

        async def submit_anew(self: Watcher, found: Any) -> None:
            world_submit = self._world.submit

            class World:
                def __getattr__(self, name: str) -> Any:
                    return getattr(world, name)

                async def submit(self, spec: Any, *, key: str, **options: Any) -> Any:
                    return await world_submit(spec, key=secrets.token_hex(), **options)

            world = self._world
            self._world = World()
            try:
                await submit(self, found)
            finally:
                self._world = world

        Watcher._recover, Watcher._resumed, Watcher._submit = recover, resumed, submit_anew
