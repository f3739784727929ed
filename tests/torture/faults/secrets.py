"""Faults that leave secrets behind in the daemon's memory; its workers are left alone."""

from torture import planted

kept: list[bytes] = []


def keep_file_key() -> None:
    """Keep one copy of each object's key as bytes."""
    if planted.ROLE == "smpd":
        from smp_proto.sealed.filekey import FileKey

        wipe = FileKey.wipe

        def keeping(self: FileKey) -> None:
            kept.append(bytes(self._material))
            wipe(self)

        FileKey.wipe = keeping


def keep_credential() -> None:
    """Do not overwrite what sealed the identity."""
    if planted.ROLE == "smpd":
        from smpd.vault import keys

        keys.wipe = lambda secret: kept.append(bytes(secret))
