"""When something may have appeared in a folder, as the kernel tells (inotify(7), through watchfiles)."""

from collections.abc import AsyncGenerator

from watchfiles import Change, awatch

from smp_proto.durable import is_part
from smp_proto.errors import ResourceError

QUIET_MS = (
    1_000  # files that are still being written change all the time, so it is told once nothing changed for so long,
)
MOST_MS = 10_000  # or after so long
_LOOK_MS = 1_000  # how long a thread waits before it looks whether it is still wanted


async def changes(folder: str) -> AsyncGenerator[None, None]:
    """Once when watching has begun, then whenever something appeared below the folder, or changed there.

    Raises:
        ResourceError: ``disk_failed``, the kernel watches no more folders for this user, or the folder is gone.
    """
    told = awatch(
        folder,
        watch_filter=_matters,
        debounce=MOST_MS,
        step=QUIET_MS,
        rust_timeout=_LOOK_MS,
        yield_on_timeout=True,
        ignore_permission_denied=True,
        force_polling=False,
    )
    begun = False
    try:
        async for found in told:
            if found or not begun:
                begun = True
                yield
    except OSError as error:
        hint = "raise fs.inotify.max_user_watches (sysctl); until then the folder is listed from time to time"
        raise ResourceError("disk_failed", f"the folder {folder} cannot be watched", hint=hint) from error
    finally:
        await told.aclose()


def _matters(change: Change, path: str) -> bool:
    return change is not Change.deleted and not is_part(path.rpartition("/")[2])
