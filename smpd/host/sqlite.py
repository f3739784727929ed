"""How every SQLite file of the daemon is opened: the one place that connects and sets.

A commit that returned is on the disk. One that failed is rolled back, and the next writes the same places of the log
anew before it syncs them: nothing relies on a page whose sync failed.
"""

import os
import sqlite3

from smp_proto.durable import sync_folder

BUSY_TIMEOUT_S = 5.0

SETTINGS = (
    "journal_mode=WAL",
    "synchronous=FULL",  # NORMAL loses the last commits in a power cut
    "foreign_keys=ON",
    "secure_delete=ON",
    "cell_size_check=ON",
    "trusted_schema=OFF",
    "journal_size_limit=16777216",  # bytes of WAL kept after a checkpoint
)
READER_SETTINGS = ("query_only=ON", "cell_size_check=ON", "trusted_schema=OFF", "cache_size=-512")


def connect(path: str) -> sqlite3.Connection:
    """Connect to a file, for any thread, without setting anything: what a newer SMP wrote stays as it is.

    The file is made with mode 0600 when absent, and its name made durable.

    Raises:
        OSError: it cannot be made, or is no plain file.
        sqlite3.Error: it cannot be opened.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    sync_folder(os.path.dirname(path) or ".")
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    # A flipped bit may leave no UTF-8; the reader of the row shall find out, not the cursor of all rows.
    connection.text_factory = lambda text: text.decode(errors="replace")
    return connection


def connect_memory() -> sqlite3.Connection:
    """A database that is nowhere."""
    return sqlite3.connect(":memory:", isolation_level=None)


def configure(connection: sqlite3.Connection, *, reader: bool = False) -> None:
    """Apply the settings of all that write, or of one that only reads.

    Raises:
        sqlite3.Error: as it came.
    """
    for setting in READER_SETTINGS if reader else SETTINGS:
        connection.execute(f"PRAGMA {setting}")
